"""The lecture's arguments, each as a run of the production code that ends in numbers and pictures."""
