"""HTTP without a model: a bare ASGI application, and a FastAPI route at /fastapi, that return the same image always."""

import os
from typing import Any

import uvicorn
from fastapi import FastAPI, Response
from pydantic import BaseModel

from harness import workload

IMAGE = workload.generate_pngs([("gan", 0, 1)])[0]
HEADERS = [(b"content-type", b"image/png"), (b"content-length", str(len(IMAGE)).encode())]
api = FastAPI()


class ImageRequest(BaseModel):
    """The parameters of an image."""

    model: str
    seed: int
    steps: int = 1


@api.post("/fastapi")
async def route(request: ImageRequest) -> Response:
    """Validate the request and return the image."""
    del request
    return Response(IMAGE, media_type="image/png")


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Return the image. The body is not read."""
    if scope["type"] != "http" or scope["path"] == "/fastapi":
        await api(scope, receive, send)
        return
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": IMAGE})


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ["PORT"]), log_level="warning", access_log=False)
