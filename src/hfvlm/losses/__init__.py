"""Training objectives as functions of features and logits."""
