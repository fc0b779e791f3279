"""The first thing that comes to mind: FastAPI, and one forward pass a request."""

import os

import uvicorn
from fastapi import FastAPI, Response

from harness import workload

app = FastAPI()


@app.post("/generate")
def generate(model: str, seed: int, steps: int = 1) -> Response:
    """One image."""
    (content,) = workload.generate_pngs([(model, seed, steps)])
    return Response(content, media_type="image/png")


if __name__ == "__main__":
    workload.warm_up()
    uvicorn.run(app, port=int(os.environ["PORT"]), log_level="warning")
