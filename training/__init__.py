"""Offline training: fits every family on a data set, evaluates the samples and exports the weights."""
