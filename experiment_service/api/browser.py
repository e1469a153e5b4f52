"""The browser client and the page that shows its use, as static files."""

import hashlib
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response

_STATIC = Path(__file__).parent / "static"

router = APIRouter(include_in_schema=False)


def _answer(request: Request, name: str, media_type: str) -> Response:
    content = (_STATIC / name).read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    # Kept by browsers, asked about again after an hour.
    headers = {"ETag": tag, "Cache-Control": "public, max-age=3600"}
    if request.headers.get("if-none-match") == tag:
        return Response(None, 304, headers=headers)
    # A script of another origin may be imported: it holds no secret.
    headers["Access-Control-Allow-Origin"] = "*"
    headers["X-Content-Type-Options"] = "nosniff"
    return Response(content, headers=headers, media_type=media_type)


@router.get("/client.js")
def client(request: Request) -> Response:
    """Return the browser client, an ES module."""
    return _answer(request, "client.js", "text/javascript")


@router.get("/storefront")
def storefront(request: Request) -> Response:
    """Return the example of a shop's page."""
    return _answer(request, "storefront.html", "text/html")
