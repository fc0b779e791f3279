"""Limits on the size and the duration of request bodies."""

import asyncio
import time

from starlette.types import Message, Receive, Scope

from service.errors import BodyTooLarge, BodyTooSlow
from service.settings import Settings

MAX_PARAMETER_BYTES = 4 * 2**20
"""Bytes of a body without uploads. Parsed JSON takes many times the memory of its text."""


def max_body_bytes(scope: Scope, settings: Settings) -> int:
    """Bytes that the request's body may have."""
    form = any(
        name == b"content-type" and value.lower().startswith(b"multipart/form-data") for name, value in scope["headers"]
    )
    return settings.max_body_bytes if form else min(settings.max_body_bytes, MAX_PARAMETER_BYTES)


def check_content_length(scope: Scope, settings: Settings) -> None:
    """Raises BodyTooLarge if the request announces a body of more than `max_body_bytes`."""
    limit = max_body_bytes(scope, settings)
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > limit:
            raise BodyTooLarge(f"the body has {int(value)} bytes; send at most {limit}")


def limited(receive: Receive, scope: Scope, settings: Settings) -> Receive:
    """`receive` that raises BodyTooLarge or BodyTooSlow once a body exceeds the `settings`."""
    received, complete, started_at = 0, False, time.monotonic()
    limit = max_body_bytes(scope, settings)

    async def receive_within_limits() -> Message:
        nonlocal received, complete
        # After the body, `receive` waits for the client to disconnect.
        remaining = None if complete else max(0.0, started_at + settings.body_timeout - time.monotonic())
        try:
            async with asyncio.timeout(remaining):
                message = await receive()
        except TimeoutError:
            raise BodyTooSlow(f"the body did not arrive within {settings.body_timeout:g} s") from None
        received += len(message.get("body", b""))
        if received > limit:
            raise BodyTooLarge(f"send at most {limit} bytes")
        complete = not message.get("more_body", False)
        return message

    return receive_within_limits
