"""Where this server is for whoever calls: its address in links, TLS, and the path it lives under.

The `Host` header is the caller's word and never gets into a link. What counts is the configured
public address, what a trusted proxy says, and else the very address the connection came in by.
"""

from __future__ import annotations

import re
from contextvars import ContextVar
from typing import Final
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

from server.config import Config
from server.web.context import services
from server.web.limits import is_trusted_peer

ROOT: ContextVar[str] = ContextVar("root", default="")
"""The path all addresses of the request at hand begin with ("/bullpen", or nothing)."""

_AUTHORITY: Final = re.compile(r"(?:[A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1"})


def here(path: str) -> str:
    """The path as a browser has to ask for it: below the root path."""
    return ROOT.get() + path


def base_url(connection: HTTPConnection) -> str:
    """The address that links to this server begin with, its root path included."""
    config = services(connection).config
    if config.public_url:
        return config.public_url
    scheme = "https" if is_secure(connection) else "http"
    return f"{scheme}://{_authority(connection, config)}"


def is_secure(connection: HTTPConnection) -> bool:
    """Whether the caller came through TLS, so that cookies may demand it."""
    config = services(connection).config
    if config.secure:
        return True
    said = connection.headers.get("x-forwarded-proto", "").rpartition(",")[2].strip().lower()
    return said in {"https", "wss"} and is_trusted_peer(connection, config)


def origin_of(text: str) -> tuple[str, str] | None:
    """Scheme and authority of an Origin header, lower case; None for what is no http(s) origin."""
    try:
        parts = urlsplit(text.strip())
    except ValueError:
        return None
    authority = parts.netloc.lower()
    if parts.scheme not in {"http", "https"} or not _AUTHORITY.fullmatch(authority):
        return None
    return parts.scheme, authority


def _authority(connection: HTTPConnection, config: Config) -> str:
    said = connection.headers.get("x-forwarded-host", "").rpartition(",")[2].strip()
    if said and _AUTHORITY.fullmatch(said) and is_trusted_peer(connection, config):
        return said
    host, port = connection.scope.get("server") or ("127.0.0.1", config.port)
    behind = f":{port}" if port else ""
    if host in _LOOPBACK and connection.headers.get("host", "") == f"localhost{behind}":
        return f"localhost{behind}"
    return f"[{host}]{behind}" if ":" in host else f"{host}{behind}"
