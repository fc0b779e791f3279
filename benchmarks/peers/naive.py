"""The simplest server: a FastAPI route with one forward pass for each request."""

import os

import uvicorn
from fastapi import FastAPI, Response
from pydantic import BaseModel

from harness import workload

app = FastAPI()


class ImageRequest(BaseModel):
    """The parameters of an image."""

    model: str
    seed: int
    steps: int = 1


@app.post("/generate")
def generate(request: ImageRequest) -> Response:
    """Return one image."""
    (content,) = workload.generate_pngs([(request.model, request.seed, request.steps)])
    return Response(content, media_type="image/png")


if __name__ == "__main__":
    workload.warm_up()
    uvicorn.run(app, port=int(os.environ["PORT"]), log_level="warning")
