"""Pictures of any common format, size and colour, as arrays of a given shape; for uploads and for training."""
