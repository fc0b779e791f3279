"""What training and service share: the family contract, randomness, and weights on disk."""
