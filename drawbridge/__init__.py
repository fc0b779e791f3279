"""Drawbridge trains small generative models and serves samples from them. Importing this package needs httpx alone.

from drawbridge import Client

with Client("http://127.0.0.1:8000") as client:
    sevens = client.generate("cgan", label=7, n=100)
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"
__all__ = [
    "AsyncClient", "Client", "Event", "Nearest", "Neighbour", "Samples", "ServiceError", "Unreachable", "read_recipe",
]  # fmt: skip

if TYPE_CHECKING:
    from drawbridge.client import AsyncClient, Client, Event, Nearest, Neighbour, Samples, ServiceError, Unreachable
    from drawbridge.recipe import read_recipe
else:

    def __getattr__(name: str) -> Any:
        """Import the client when it is used, so that the command can handle Ctrl-C before it imports httpx."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from drawbridge import client, recipe

        return getattr(recipe if name == "read_recipe" else client, name)
