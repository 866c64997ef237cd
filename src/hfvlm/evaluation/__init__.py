"""How good a model is: zero-shot classification and retrieval."""
