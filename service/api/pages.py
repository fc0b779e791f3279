"""The pages that people look at: the playground, and what the lab has written."""

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from service import errors

PLAYGROUND = Path(__file__).parents[1] / "playground"
POLICY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}
"""Nothing from elsewhere, and nothing written into a page that is not a file of its own."""


class Pages(StaticFiles):
    """Files under the policy. A browser asks each time whether they are still the same."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update({**POLICY, "Cache-Control": "no-cache"})
        return response


def add_pages(app: FastAPI, lab: Path) -> None:
    """The playground at /, and the lab's page, if one lies in `lab`, at /lab."""
    app.mount("/playground", Pages(directory=PLAYGROUND))
    app.add_api_route("/", playground, methods=["GET", "HEAD"], include_in_schema=False, response_class=FileResponse)
    if (lab / "index.html").is_file():
        app.mount("/lab", Pages(directory=lab, html=True))
    else:
        app.add_api_route("/lab", no_lab, include_in_schema=False)


async def playground() -> FileResponse:
    """The playground's one page."""
    return FileResponse(PLAYGROUND / "index.html", headers={**POLICY, "Cache-Control": "no-cache"})


async def no_lab() -> None:
    """Where no page of the lab lay at the start."""
    raise errors.NotFound("the lab has no page yet; write it with `python -m training lab`, and start the service anew")
