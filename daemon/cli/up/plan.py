"""What one `bullpen up` was asked to do, and what can be said about it before anything starts."""

from __future__ import annotations

import errno
import shutil
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

import attrs

from daemon.cli.errors import CliError
from daemon.cli.settings import read_config
from shared.home import Home

DEFAULT_PORT: Final = 8080
LOOPBACK: Final = "127.0.0.1"
WILDCARDS: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared with, not bound to

_ROOM: Final = 150 * 1024 * 1024
"""Bytes a new database needs."""


@attrs.frozen(kw_only=True)
class Plan:
    """What one `bullpen up` was asked to do. `port` None means: the usual one, or a free one."""

    home: Home
    host: str
    port: int | None
    agents: tuple[str, ...] | None
    browser: bool
    env: Mapping[str, str] = attrs.field(repr=False)
    invoked_as: str = "bullpen"

    @property
    def listens_on(self) -> str:
        """The address the server listens on."""
        return self.host or self.env.get("BULLPEN_HOST", "").strip() or LOOPBACK

    @property
    def local_host(self) -> str:
        """How programs on this machine name that address in a URL."""
        host = self.listens_on
        if host in WILDCARDS:
            return LOOPBACK
        return f"[{host}]" if ":" in host else host


def about_disk(home: Home, error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return f"the disk of {home.root} is full"
    return f"{error.filename or home.root}: {error.strerror or error}"


def check_home(home: Home) -> None:
    """Raises CliError for a home that belongs elsewhere or has no room for a first start."""
    config = read_config(home)
    known = config.get("server_url")
    if isinstance(known, str) and known and config.get("token"):
        host = urlsplit(known).hostname or ""
        if host not in {"localhost", "::1", *WILDCARDS} and not host.startswith("127."):
            raise CliError(
                f"{home.root} is signed in to {known}; give the local Bullpen a home of its own: "
                "--home DIR or --profile NAME"
            )
    free = shutil.disk_usage(home.root).free
    if not home.postgres.exists() and free < _ROOM:
        raise CliError(
            f"only {free // 2**20} MB are free for {home.root}; a new Bullpen needs "
            f"{_ROOM // 2**20} MB"
        )


def choose_port(plan: Plan, known_url: str) -> int:
    """The port to ask the server for. Raises CliError if the one asked for is taken.

    Without a wish it is the one of the last time, so that links and sessions stay good; 0, any
    free one, when somebody else has it.
    """
    wish = plan.port
    if wish is None and plan.env.get("BULLPEN_PORT", "").strip().isdigit():
        wish = int(plan.env["BULLPEN_PORT"])
    host = plan.listens_on
    if wish is not None:
        if wish != 0 and not _is_free(host, wish):
            raise CliError(
                f"port {wish} of {host} is taken by another program; choose another with "
                "--port N, or any free one with --port 0"
            )
        return wish
    known = None
    with suppress(ValueError):
        known = urlsplit(known_url).port
    for port in (known, DEFAULT_PORT):
        if port and _is_free(host, port):
            return port
    return 0


def _is_free(host: str, port: int) -> bool:
    """Whether a listener could be opened; a host that cannot be bound at all is not our question."""
    try:
        places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        return True
    for family, kind, protocol, _, address in places:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
            except OSError as error:
                if error.errno in (errno.EADDRINUSE, errno.EACCES):
                    return False
    return True
