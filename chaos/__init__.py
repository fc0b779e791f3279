"""Fault-injection suite: injects faults into a running service and into training, and counts what is lost."""
