"""Offline: fits every family on real data and exports its weights."""
