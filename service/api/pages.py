"""Pages for the browser: the playground, the lab, the live lab, and the API reference."""

from pathlib import Path

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope
from swagger_ui_bundle import swagger_ui_path

from service import errors

PLAYGROUND = Path(__file__).parents[1] / "playground"
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}
"""The pages load nothing from other hosts and run no inline scripts."""


class Pages(StaticFiles):
    """Static files with the security headers. Browsers revalidate them each time."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update({**SECURITY_HEADERS, "Cache-Control": "no-cache"})
        return response


class Formulas(Pages):
    """Pages about families, by name. A family without one gets 204: browsers log 404 as an error, and it is none."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        try:
            return await super().get_response(path, scope)
        except HTTPException as error:
            if error.status_code != 404:
                raise
            return Response(status_code=204, headers={**SECURITY_HEADERS, "Cache-Control": "no-cache"})


def add_pages(app: FastAPI, lab: Path) -> None:
    """Add the playground at /, the lab page in `lab` at /lab, the live lab at /lab/live, the API reference at /docs."""
    app.mount("/docs/assets", StaticFiles(directory=swagger_ui_path))
    app.add_api_route("/docs", api_reference, include_in_schema=False)
    app.mount("/playground/formulas", Formulas(directory=PLAYGROUND / "formulas"))
    app.mount("/playground", Pages(directory=PLAYGROUND))
    app.add_api_route("/", playground, include_in_schema=False, response_class=FileResponse)
    app.add_api_route("/lab/live", live_lab, include_in_schema=False, response_class=FileResponse)
    app.add_api_route("/lab/live/", live_lab_without_slash, include_in_schema=False)
    if (lab / "index.html").is_file():
        app.mount("/lab", Pages(directory=lab, html=True))
    else:
        app.add_api_route("/lab", no_lab, include_in_schema=False)


async def api_reference() -> HTMLResponse:
    """Swagger UI, from assets that are installed with the service."""
    return get_swagger_ui_html(
        openapi_url="openapi.json",
        title="Drawbridge",
        swagger_js_url="docs/assets/swagger-ui-bundle.js",
        swagger_css_url="docs/assets/swagger-ui.css",
        swagger_favicon_url="docs/assets/favicon-32x32.png",
    )


async def playground() -> FileResponse:
    """The playground."""
    return _page("index.html")


async def live_lab() -> FileResponse:
    """The live lab, whose experiments train in the browser."""
    return _page("lab/live.html")


async def live_lab_without_slash(request: Request) -> RedirectResponse:
    """To the live lab, whose links are relative."""
    return RedirectResponse(f"../live?{request.url.query}" if request.url.query else "../live")


def _page(name: str) -> FileResponse:
    """A page of the playground. Browsers revalidate it each time."""
    return FileResponse(PLAYGROUND / name, headers={**SECURITY_HEADERS, "Cache-Control": "no-cache"})


async def no_lab() -> None:
    """The response at /lab if there was no lab page at the start."""
    raise errors.NotFound("there is no lab page yet; write it with `drawbridge lab` and restart the service")
