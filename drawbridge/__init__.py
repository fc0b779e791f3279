"""Drawbridge trains small generative models and serves samples from them. Importing this package needs httpx alone.

from drawbridge import Client

with Client("http://127.0.0.1:8000") as client:
    sevens = client.generate("cgan", label=7, n=100)
"""

from drawbridge.client import AsyncClient, Client, Event, Samples, ServiceError, Unreachable

__version__ = "0.2.0"
__all__ = ["AsyncClient", "Client", "Event", "Samples", "ServiceError", "Unreachable"]
