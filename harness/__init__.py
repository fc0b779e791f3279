"""Test harness: starts services, generates load, reads metrics and knows the bytes that requests must return."""
