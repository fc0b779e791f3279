"""The services that draw a data set: all of them must have the same weights."""

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from drawbridge.client import AsyncClient, ServiceError, Unreachable
from drawbridge.dataset import DatasetError


@dataclass(frozen=True)
class Service:
    """A service that draws, and what messages call it."""

    name: str
    client: AsyncClient


async def with_model(services: Sequence[Service], name: str) -> tuple[list[Service], dict[str, Any]]:
    """The services that respond, and the model `name` as they describe it.

    Raises DatasetError if one has no such model or other weights of it, and Unreachable if none responds.
    """
    results = await asyncio.gather(*(service.client.models() for service in services), return_exceptions=True)
    found, model = list[Service](), dict[str, Any]()
    for service, result in zip(services, results, strict=True):
        at = f"{service.name}: " if len(services) > 1 else ""
        if isinstance(result, Unreachable) and len(services) > 1:
            print(f"{service.name} is left out: {result}", file=sys.stderr)
            continue
        if isinstance(result, ServiceError):
            raise DatasetError(f"{at}{result}")
        if isinstance(result, BaseException):
            raise result
        models = {one["name"]: one for one in result}
        if name not in models:
            raise DatasetError(f"{at}no model {name!r}; available models: {', '.join(models) or 'none'}")
        model = model or models[name]
        if models[name]["digest"] != model["digest"]:
            raise DatasetError(
                f"{at}other weights of {name} ({models[name]['digest'][:12]}) than {found[0].name} has "
                f"({model['digest'][:12]}); name services with the same weights"
            )
        found.append(service)
    if not found:
        raise Unreachable("none of the services responds")
    return found, model


async def note_other_devices(services: Sequence[Service], key: str, label: str) -> None:
    """Print a line for each service whose images may differ in single bits from those of the first.

    Equal ETags promise equal bytes: they cover the versions and the kind of device. HEAD generates nothing.
    """
    first = services[0]
    tags = [await _etag(service, key, label) for service in services] if len(services) > 1 else []
    for service, tag in zip(services, tags, strict=False):
        if tag and tags[0] and tag != tags[0]:
            print(
                f"note: {service.name} has another version or device than {first.name}: its images may differ in "
                "single bits, and so may the data set by which of them drew what",
                file=sys.stderr,
            )


async def _etag(service: Service, key: str, label: str) -> str | None:
    """The ETag of an image; None if the service has none or does not respond."""
    query = httpx.QueryParams(model=key, label=label, seed=0, format="npz")
    try:
        response = await service.client.http.head("/generate", params=query)
    except httpx.TransportError:
        return None
    tag: str | None = response.headers.get("etag")
    return tag
