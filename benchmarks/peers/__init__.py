"""Other servers of the same models, for comparison. `benchmarks.serve` starts them."""
