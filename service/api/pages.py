"""Pages for the browser: the playground, the lab, the live lab, and the API reference."""

from pathlib import Path

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, RedirectResponse
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope
from swagger_ui_bundle import swagger_ui_path

from service import errors
from service.api.playground_files import PAGES, SECURITY_HEADERS, VERSION, PlaygroundFiles

PLAYGROUND = Path(__file__).parents[1] / "playground"


class Pages(StaticFiles):
    """Static files with the security headers. Browsers revalidate them each time."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update({**SECURITY_HEADERS, "Cache-Control": "no-cache"})
        return response


class Playground(Pages):
    """The playground's files, with and without their version in the address.

    An address with another version, of a page from before an update, gets today's file. A family without a page of
    formulas gets 204: browsers log 404 as an error, and it is none.
    """

    def __init__(self, files: PlaygroundFiles) -> None:
        super().__init__(directory=files.directory)
        self.files = files

    async def get_response(self, path: str, scope: Scope) -> Response:
        file = self.files.find(f"/playground/{path}")
        if file is not None and scope["method"] == "GET":
            return file.respond(scope)
        path = VERSION.sub("", path)
        try:
            return await super().get_response(path, scope)
        except HTTPException as error:
            if error.status_code != 404 or not path.startswith("formulas/"):
                raise
            return Response(status_code=204, headers={**SECURITY_HEADERS, "Cache-Control": "no-cache"})


def add_pages(app: FastAPI, lab: Path) -> PlaygroundFiles:
    """Add the playground at /, the lab page in `lab` at /lab, the live lab at /lab/live, the API reference at /docs.

    Returns the files of the playground, which can also be served without the application's routes.
    """
    files = PlaygroundFiles(PLAYGROUND)

    async def page(request: Request) -> Response:
        """A page of the playground. Browsers revalidate it each time."""
        file = files.find(request.scope["route"].path)
        assert file is not None
        return file.respond(request.scope)

    app.mount("/docs/assets", StaticFiles(directory=swagger_ui_path))
    app.add_api_route("/docs", api_reference, include_in_schema=False)
    app.mount("/playground", Playground(files))
    for path in PAGES:
        app.add_api_route(path, page, include_in_schema=False)
    app.add_api_route("/lab/live/", live_lab_without_slash, include_in_schema=False)
    if (lab / "index.html").is_file():
        app.mount("/lab", Pages(directory=lab, html=True))
    else:
        app.add_api_route("/lab", no_lab, include_in_schema=False)
    return files


async def api_reference() -> HTMLResponse:
    """Swagger UI, from assets that are installed with the service."""
    return get_swagger_ui_html(
        openapi_url="openapi.json",
        title="Drawbridge",
        swagger_js_url="docs/assets/swagger-ui-bundle.js",
        swagger_css_url="docs/assets/swagger-ui.css",
        swagger_favicon_url="docs/assets/favicon-32x32.png",
    )


async def live_lab_without_slash(request: Request) -> RedirectResponse:
    """To the live lab, whose links are relative."""
    return RedirectResponse(f"../live?{request.url.query}" if request.url.query else "../live")


async def no_lab() -> None:
    """The response at /lab if there was no lab page at the start."""
    raise errors.NotFound("there is no lab page yet; write it with `drawbridge lab` and restart the service")
