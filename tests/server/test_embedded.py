"""The embedded Postgres, and the server as a process: first start, ready file, every way to end."""

from __future__ import annotations

import json
import os
import pwd
import signal
import stat
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import psutil
import pytest
import trio

from server.database import open_database
from server.embedded import EmbeddedError, open_embedded
from shared.home import Home

pytestmark = pytest.mark.postgres

ROOT = Path(__file__).parents[2]
LIMIT = 60.0


@pytest.fixture
def home() -> Iterator[Home]:
    """A home below a directory nobody else may enter; its Postgres is stopped afterwards."""
    with tempfile.TemporaryDirectory(prefix="bp-") as place:  # 0700
        home = Home(Path(place) / "private" / "home")
        home.base.parent.mkdir(mode=0o700)
        yield home
        pid_file = home.postgres / "postmaster.pid"
        if pid_file.exists():
            with suppress(psutil.NoSuchProcess, ValueError):
                left = psutil.Process(int(pid_file.read_text().split()[0]))
                left.terminate()
                left.wait(10)


def runs(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def ask(url: str, statement: str) -> Any:
    async with open_database(url, pool_size=2) as database:
        return await database.write(lambda conn: conn.fetchval(statement))


async def test_it_starts_stops_and_keeps_its_data(home: Home) -> None:
    said: list[str] = []
    async with open_embedded(home, said.append) as first:
        await ask(first.url, "create table kept (x int)")
        assert await ask(first.url, "select current_user") == "bullpen"
        assert await ask(first.url, "show synchronous_commit") == "on"
        assert await ask(first.url, "show jit") == "off"
    assert said == ["making a database", "starting the database"]
    assert not runs(first.pid)
    async with open_embedded(home, said.append) as second:
        assert await ask(second.url, "select count(*) from kept") == 0
        assert second.url == first.url
    assert said[2:] == ["starting the database"]


async def test_nobody_gets_in_without_the_password(home: Home) -> None:
    async with open_embedded(home) as running:
        socket = running.data / ".s.PGSQL.5432"
        assert stat.S_IMODE(socket.stat().st_mode) == 0o700
        assert stat.S_IMODE((home.secrets / "postgres.password").stat().st_mode) == 0o600
        assert stat.S_IMODE(home.postgres.stat().st_mode) == 0o700
        host = f"?host={running.data}"
        for credentials in ("bullpen", "postgres", "bullpen:wrong", "postgres:postgres"):
            with pytest.raises(Exception, match=r"password|authentication"):
                await ask(f"postgresql://{credentials}@/bullpen{host}", "select 1")
        process = psutil.Process(running.pid)
        assert not process.net_connections("inet"), "no network port is open"
        password = (home.secrets / "postgres.password").read_text().strip()
        assert password not in " ".join(process.cmdline())
        assert password not in str(process.environ())


async def test_directories_above_stay_closed_to_others(home: Home) -> None:
    async with open_embedded(home):
        for place in (home.base, home.base.parent, home.base.parent.parent):
            assert not place.stat().st_mode & stat.S_IRWXO, place
            if os.geteuid() == 0:
                assert await may("pgserver", "-x", place), "or Postgres cannot reach its data"
                assert not await may("pgserver", "-r", place)
                assert not await may("nobody", "-x", place)


async def may(user: str, what: str, place: Path) -> bool:
    done = await trio.run_process(
        ["test", what, place], user=user, group=user_group(user), extra_groups=[], check=False
    )
    return done.returncode == 0


def user_group(user: str) -> int:
    return pwd.getpwnam(user).pw_gid


async def test_a_running_one_is_found_and_a_killed_one_restarted(home: Home) -> None:
    async with open_embedded(home) as first:
        await ask(first.url, "create table kept (x int)")
        async with open_embedded(home) as shared:
            assert shared.pid == first.pid
        assert runs(first.pid), "who came first still uses it"
        os.kill(first.pid, signal.SIGKILL)
        with trio.fail_after(LIMIT):
            while runs(first.pid):  # noqa: ASYNC110
                await trio.sleep(0.02)
        async with open_embedded(home) as second:
            assert second.pid != first.pid
            assert await ask(second.url, "select count(*) from kept") == 0


async def test_a_pid_file_of_a_process_that_is_something_else_does_not_matter(home: Home) -> None:
    async with open_embedded(home) as first:
        text = (home.postgres / "postmaster.pid").read_text()
    other = text.replace(str(first.pid), str(os.getpid()), 1)
    (home.postgres / "postmaster.pid").write_text(other)
    async with open_embedded(home) as second:
        assert await ask(second.url, "select 1") == 1


async def test_a_start_that_was_cut_short_is_repeated(home: Home) -> None:
    home.root.mkdir(parents=True)
    half = home.postgres.with_name("postgres.new")
    half.mkdir()
    (half / "PG_VERSION").write_text("half")
    async with open_embedded(home) as running:
        assert await ask(running.url, "select 1") == 1
    assert not half.exists()


async def test_a_lost_password_is_replaced(home: Home) -> None:
    async with open_embedded(home) as first:
        pass
    (home.secrets / "postgres.password").unlink()
    async with open_embedded(home) as second:
        assert second.url != first.url
        assert await ask(second.url, "select 1") == 1


async def test_a_long_home_path_works(home: Home) -> None:
    long = Home(home.base / ("with a space, a comma and 'quotes' " + "x" * 90))
    async with open_embedded(long) as running:
        assert await ask(running.url, "select 1") == 1
        sockets = Path(unquote(running.url.partition("?host=")[2]))
        assert sockets != long.postgres
        assert stat.S_IMODE(os.stat(sockets).st_mode) == 0o700  # noqa: PTH116


async def test_data_that_is_not_ours_is_left_alone(home: Home) -> None:
    home.postgres.mkdir(parents=True)
    (home.postgres / "letter.txt").write_text("dear")
    with pytest.raises(EmbeddedError, match="not empty"):
        async with open_embedded(home):
            pass
    assert (home.postgres / "letter.txt").read_text() == "dear"


# --- the server as a process ----------------------------------------------------------------------


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BULLPEN_")}
    return kept | more


@asynccontextmanager
async def open_process(
    home: Home, *args: str, **env: str
) -> AsyncIterator[tuple[trio.Process, dict[str, Any]]]:
    """`python -m server`, once it is ready; killed at the end if it still runs."""
    ready = home.base.parent / f"ready-{len(list(home.base.parent.iterdir()))}.json"
    command = [sys.executable, "-m", "server", "--home", str(home.base), "--port", "0"]
    log = (home.base.parent / "log").open("ab")
    process = await trio.lowlevel.open_process(
        [*command, "--ready-file", str(ready), *args],
        cwd=ROOT,
        env=environment(**env),
        stderr=log,
        stdout=log,
    )
    try:
        with trio.fail_after(LIMIT):
            while not ready.exists():
                assert process.poll() is None, (home.base.parent / "log").read_text()
                await trio.sleep(0.05)
        yield process, json.loads(ready.read_text())
    finally:
        log.close()
        if process.poll() is None:
            process.kill()
            with trio.fail_after(LIMIT, shield=True):
                await process.wait()


async def ended(process: trio.Process, *, within: float = 10.0) -> int:
    with trio.fail_after(within):
        return await process.wait()


async def test_the_first_start_makes_someone_to_be_and_later_ones_find_them(home: Home) -> None:
    async with open_process(home, "--setup") as (process, first):
        assert first["postgres"]["embedded"] is True
        assert first["pid"] == process.pid
        async with httpx.AsyncClient(
            base_url=first["url"], headers={"authorization": f"Bearer {first['token']}"}
        ) as client:
            me = (await client.get("/api/me")).json()
            assert (me["id"], me["name"], me["email"]) == (
                first["user_id"],
                "You",
                "local@bullpen.local",
            )
            workspace = (await client.get("/api/workspaces")).json()[0]
            assert (workspace["slug"], workspace["issue_prefix"]) == ("bullpen", "BUL")
        process.send_signal(signal.SIGTERM)
        assert await ended(process) == 0
    assert not runs(first["postgres"]["pid"])
    async with open_process(home, "--setup") as (process, second):
        kept = ("user_id", "workspace_id", "workspace_slug")
        assert [second[key] for key in kept] == [first[key] for key in kept]
        assert second["token"] != first["token"]
        headers = {"authorization": f"Bearer {first['token']}"}
        async with httpx.AsyncClient(base_url=second["url"], headers=headers) as client:
            assert (await client.get("/api/me")).status_code == 401
        process.send_signal(signal.SIGINT)
        assert await ended(process) == 0
    for path in home.base.parent.glob("ready-*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_after_a_killed_server_the_next_one_works(home: Home) -> None:
    async with open_process(home, "--setup") as (process, first):
        process.kill()
        await ended(process)
        assert runs(first["postgres"]["pid"]), "Postgres goes on"
    async with open_process(home) as (process, second):
        assert second["postgres"]["pid"] == first["postgres"]["pid"]
        assert "token" not in second
        process.kill()
        await ended(process)
        os.kill(first["postgres"]["pid"], signal.SIGKILL)
    async with open_process(home) as (process, third):
        assert third["postgres"]["pid"] != first["postgres"]["pid"]
        process.send_signal(signal.SIGTERM)
        assert await ended(process) == 0


async def test_it_stops_when_its_parent_is_gone(home: Home) -> None:
    parent = await trio.lowlevel.open_process(["sleep", "1000"])
    try:
        async with open_process(home, "--parent-pid", str(parent.pid)) as (process, _):
            parent.kill()
            assert await ended(process, within=15) == 0
    finally:
        with suppress(ProcessLookupError):
            parent.kill()
        with trio.move_on_after(5, shield=True):
            await parent.wait()


async def test_what_cannot_start_says_why_in_one_line(home: Home) -> None:
    async def run(*args: str, **env: str) -> tuple[int, str]:
        done = await trio.run_process(
            [sys.executable, "-m", "server", "--home", str(home.base), *args],
            cwd=ROOT,
            env=environment(**env),
            capture_stderr=True,
            capture_stdout=True,
            check=False,
        )
        return done.returncode, done.stderr.decode()

    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    port = str(listener.socket.getsockname()[1])
    code, said = await run("--port", port)
    assert code == 1
    assert f"Error: port {port} on 127.0.0.1 is in use" in said
    assert "Traceback" not in said, said
    listener.socket.close()
    code, said = await run(BULLPEN_MAX_BODY="lots")
    assert code == 1
    assert "BULLPEN_MAX_BODY must be a number" in said
    code, said = await run("--port", "0", BULLPEN_DATABASE_URL="postgresql://x@127.0.0.1:1/x")
    assert code == 1
    assert "Traceback" not in said, said
    assert not (home.base / "postgres").exists()
