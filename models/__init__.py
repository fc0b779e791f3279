"""The shared floor: what a family is, where randomness comes from, how weights are kept."""
