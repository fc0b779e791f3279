"""From parameters to a generation plan, an engine request and its result; without HTTP."""
