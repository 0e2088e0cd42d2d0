"""Servers as processes of their own that share nothing but a Postgres."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import attrs

from tests.support.bullpen import clean_environment, wait_for

_SECRET = "one secret for every server of a test"


@attrs.frozen(kw_only=True)
class ServerProcess:
    """One running server: where it listens, what it is."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def kill(self) -> None:
        """End it as a power cut does."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)


@contextmanager
def start_server(
    database_url: str,
    env: Mapping[str, str] | None = None,
    *flags: str,
    log_file: Path | None = None,
) -> Iterator[ServerProcess]:
    """Run one server on a database; it is gone when the block is left.

    Its log goes to `log_file`, or beside its home. A setting that is empty is not set.
    """
    with tempfile.TemporaryDirectory(prefix="bullpen-server-") as name:
        root = Path(name)
        ready = root / "ready.json"
        words = [sys.executable, "-m", "server", "--home", str(root / "home"), "--port", "0"]
        settings = {
            "BULLPEN_DATABASE_URL": database_url,
            "BULLPEN_JWT_SECRET": _SECRET,
            "BULLPEN_DRAIN": "0.2",
        }
        if not env or "BULLPEN_SWEEP_INTERVAL" not in env:
            # never, in the time of a test; a sweep may not be rarer than what it looks for
            settings |= {"BULLPEN_SWEEP_INTERVAL": "3600", "BULLPEN_OFFLINE_AFTER": "3600"}
        log_path = log_file or root / "server.log"
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [*words, "--ready-file", str(ready), *flags],
                env=clean_environment(**(settings | dict(env or {}))),
                stdout=log,
                stderr=log,
            )

        def listening() -> dict[str, Any] | None:
            assert process.poll() is None, log_path.read_text()
            return json.loads(ready.read_text()) if ready.exists() else None

        try:
            told = wait_for("the server", listening, seconds=60)
            yield ServerProcess(url=told["url"], process=process, log=log_path)
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait(5)


@contextmanager
def start_servers(
    count: int, database_url: str, env: Mapping[str, str] | None = None
) -> Iterator[list[ServerProcess]]:
    """Several servers on one database."""
    with ExitStack() as stack:
        yield [stack.enter_context(start_server(database_url, env)) for _ in range(count)]
