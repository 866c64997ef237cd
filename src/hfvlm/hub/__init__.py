"""Saving so that a folder loads anywhere: the remote-code bundle, the model card, the push."""
