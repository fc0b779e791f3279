"""The verbs of the API; policy is elsewhere."""
