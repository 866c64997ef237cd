"""Parts that every tower and architecture is made of: torch and transformers, no towers."""
