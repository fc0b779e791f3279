"""Measurements: ratios taken side by side in one run, each module a command that prints a table."""
