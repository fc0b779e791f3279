"""Images as bytes: PNG, archives, event streams, animations, and uploads back to tensors."""
