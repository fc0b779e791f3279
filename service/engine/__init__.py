"""The engine: continuous batching of requests, one device step at a time. It knows no HTTP."""
