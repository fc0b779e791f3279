"""The engine: one device step at a time for whoever is there. It knows no HTTP."""
