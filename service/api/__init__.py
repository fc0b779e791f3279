"""HTTP routes, and what turns a request into a plan and a result into a response."""
