"""Original checkpoints to hfvlm folders, and back: one table of key rules an architecture."""
