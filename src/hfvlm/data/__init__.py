"""Reading image-text data, and collators that turn it into batches."""
