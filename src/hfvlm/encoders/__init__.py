"""Towers made of the parts in `nn`: vision and text encoders and decoders that architectures are composed from."""
