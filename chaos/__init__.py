"""Hurts a running service and a running training in every way that they are to survive, and counts what was lost."""
