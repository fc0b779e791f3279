"""Online: loads weights and draws samples on request, many callers packed into one batch."""

VERSION = "0.1.0"
