"""Whether a model's draws help to train a classifier: the same classifier on real images, on draws, and on both."""
