"""No model at all: what HTTP itself costs here, as an ASGI application and as a route of FastAPI."""

import os
from typing import Any

import uvicorn
from fastapi import FastAPI, Response

from harness import workload

IMAGE = workload.generate_pngs([("gan", 0, 1)])[0]
HEAD = [(b"content-type", b"image/png"), (b"content-length", str(len(IMAGE)).encode())]
api = FastAPI()


@api.post("/fastapi")
async def route(model: str, seed: int, steps: int = 1) -> Response:
    """The same image, always, whatever was read."""
    del model, seed, steps
    return Response(IMAGE, media_type="image/png")


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Likewise, at /generate."""
    if scope["type"] != "http" or scope["path"] == "/fastapi":
        await api(scope, receive, send)
        return
    await send({"type": "http.response.start", "status": 200, "headers": HEAD})
    await send({"type": "http.response.body", "body": IMAGE})


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ["PORT"]), log_level="warning", access_log=False)
