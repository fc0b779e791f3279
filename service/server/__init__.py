"""Processes and sockets: the supervisor, its workers, and the HTTP protocol; no routes."""
