"""The pages for people: the demonstration and the API reference, both without a network."""

from importlib.resources import files

from fastapi import FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

from serving.security_headers import ASSETS, policy


def add(app: FastAPI) -> None:
    """The app has GET / and /docs from now on."""
    html = files("serving").joinpath("static/index.html").read_text(encoding="utf-8")
    # The page is one file: nothing comes from anywhere else, and tiles are shown from memory.
    page_policy = policy(html, img_src="blob: data:", connect_src="'self'")

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return HTMLResponse(html, headers={"Content-Security-Policy": page_policy})

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        root = request.scope.get("root_path", "")
        page = get_swagger_ui_html(
            openapi_url=f"{root}{app.openapi_url}",
            title=f"{app.title}: API reference",
            swagger_js_url=f"{root}{ASSETS}/swagger-ui-bundle.js",
            swagger_css_url=f"{root}{ASSETS}/swagger-ui.css",
            swagger_favicon_url=f"{root}{ASSETS}/favicon.png",
        )
        # Swagger UI writes styles into its elements and draws from data: URLs.
        page.headers["Content-Security-Policy"] = policy(
            bytes(page.body).decode(),
            script_src="'self'",
            style_src="'self' 'unsafe-inline'",
            img_src="'self' data:",
            connect_src="'self'",
        )
        return page

    # FastAPI's own page loads these from a content delivery network.
    app.mount(ASSETS, StaticFiles(packages=[("fastapi_offline", "static")]), name="docs-assets")
