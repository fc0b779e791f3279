"""API keys, and the quotas that they carry."""
