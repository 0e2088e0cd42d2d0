"""The stylesheet, the script and the icons: read once, served from memory under their own hash.

All files lie in one folder whose name is a hash over all of them, so that a module may import its
neighbour by a relative name and browsers may keep everything for ever. A wrong hash (a page from
before an update) gets the current file, not to be kept.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

_FOLDER: Final = Path(__file__).parent / "static"
_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

_files: Final = {
    path.name: path.read_bytes() for path in sorted(_FOLDER.iterdir()) if path.suffix in _TYPES
}


def _digest() -> str:
    whole = hashlib.sha256()
    for name, content in _files.items():
        whole.update(f"{name}\0{len(content)}\0".encode() + content)
    return whole.hexdigest()[:16]


VERSION: Final = _digest()


def asset(name: str) -> str:
    """Return the address of a static file. Raises KeyError for one that does not exist."""
    _files[name]
    return f"/static/{VERSION}/{name}"


def modules() -> list[str]:
    """Return the script's modules, for the page to fetch at once instead of one after another."""
    return [asset(name) for name in _files if name.endswith(".js") and name != "theme.js"]


async def _serve(request: Request) -> Response:
    name = request.path_params["name"]
    content = _files.get(name)
    if content is None:
        return PlainTextResponse("not found\n", status_code=404)
    current = request.path_params["version"] == VERSION
    tag = f'"{VERSION}"'
    headers = {
        "ETag": tag,
        "Cache-Control": "public, max-age=31536000, immutable" if current else "no-cache",
        "X-Content-Type-Options": "nosniff",
    }
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=_TYPES[Path(name).suffix])


routes: Final = [Route("/static/{version}/{name}", _serve, name="static")]
