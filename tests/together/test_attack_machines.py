"""Real daemons: whose machine one is, and which of its directories a project opens."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.database import Database
from server.store.queries import Connection
from shared.home import Home, write_private
from tests.support.bullpen import Bullpen, clean_environment, start_up, wait_for
from tests.support.portal import open_portal
from tests.support.postgres import open_test_database
from tests.support.rows import World, insert, make_token, make_user, make_world
from tests.support.server_process import start_server

pytestmark = pytest.mark.together


def _run(bullpen: Bullpen, project_id: str, *statuses: str) -> dict[str, object]:
    words = ("issue", "create", "--title", "Look", "--assignee", "demo", "--project", project_id)
    script = ("--description", "demo:sh touch was-here\n", "--allow-duplicate", "--output", "json")
    issue = json.loads(bullpen.cli(*words, *script).stdout)
    done: dict[str, object] = bullpen.wait_for_task(issue["id"], *statuses)
    return done


def test_a_project_does_not_open_a_directory_its_machines_owner_does(tmp_path: Path) -> None:
    place = tmp_path / "private"
    (place / "src").mkdir(parents=True)
    with start_up(tmp_path / "home") as bullpen:
        daemon_id = (bullpen.home / "daemon.id").read_text().strip()
        words = ("project", "create", "--title", "P", "--output", "json")
        project_id = json.loads(bullpen.cli(*words).stdout)["id"]
        ref = {"local_path": str(place / "src"), "daemon_id": daemon_id}
        body = {"resource_type": "local_directory", "resource_ref": ref}
        with bullpen.api() as api:  # as a page does, or a server that means ill
            api.post(f"/api/projects/{project_id}/resources", json=body).raise_for_status()
        refused = _run(bullpen, project_id, "failed")
        assert refused["failure_reason"] == "local_directory_error"
        assert "bullpen daemon allow-dir" in str(refused["error"])
        assert not (place / "src" / "was-here").exists()

        assert "No directory" in bullpen.cli("daemon", "allow-dir").stdout
        bullpen.cli("daemon", "allow-dir", str(place))
        assert bullpen.cli("daemon", "allow-dir").stdout.strip() == str(place)
        _run(bullpen, project_id, "completed")
        assert (place / "src" / "was-here").exists()

        bullpen.cli("daemon", "allow-dir", "--remove", str(place))
        assert _run(bullpen, project_id, "failed")["failure_reason"] == "local_directory_error"
        for wrong in (("/",), (str(tmp_path / "none"),), ("--remove", str(place)), ("--remove",)):
            done = bullpen.cli("daemon", "allow-dir", *wrong, check=False)
            assert done.returncode != 0
            assert done.stderr.count("\n") == 1


@contextmanager
def _daemon(home: Path, url: str, token: str) -> Iterator[Path]:
    """A daemon of that home, signed in with a token; yields its log."""
    settings = {"BULLPEN_DAEMON_PORT": "0", "BULLPEN_AGENTS": "demo"}
    config = {"server_url": url, "token": token, "settings": settings}
    write_private(Home(home).config_file, json.dumps(config))
    log = home / "daemon.log"
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "daemon", "--home", str(home)],
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    try:
        yield log
    finally:
        process.terminate()
        process.wait(20)


def test_only_the_machine_itself_follows_whoever_signs_in_there(tmp_path: Path) -> None:
    urls = [""]

    @asynccontextmanager
    async def open_it() -> AsyncIterator[Database]:
        async with open_test_database(pool_size=2) as (database, urls[0]):
            yield database

    with open_portal(open_it) as portal, start_server(urls[0]) as server:
        database = portal.resource

        async def people() -> tuple[World, str, str]:
            world = await make_world(database)

            async def unit(conn: Connection) -> tuple[str, str]:
                user_id = await make_user(conn, "Mo")
                where = {"workspace_id": world.workspace_id, "user_id": user_id}
                await insert(conn, "member", **where, role="member")
                return user_id, await make_token(conn, user_id)

            return world, *(await database.write(unit))

        world, mo, token = portal(people)
        here, copy = tmp_path / "here", tmp_path / "copy"

        def owner(status: str) -> Any:
            headers = {"Authorization": f"Bearer {token}", "X-Workspace-ID": world.workspace_id}
            rows = httpx.get(f"{server.url}/api/runtimes", headers=headers, trust_env=False).json()
            mine = [row for row in rows if row["provider"] == "demo" and row["status"] == status]
            return mine[0]["owner_id"] if mine else None

        with _daemon(here, server.url, world.token):
            first = wait_for("the machine", lambda: owner("online"))
            assert first == world.user_id
            # another machine that calls itself by this one's id, under another account
            write_private(Home(copy).daemon_id_file, Home(here).daemon_id_file.read_text())
            with _daemon(copy, server.url, token) as log:
                wait_for("the refusal", lambda: "belongs to Dana" in log.read_text() or None)
            assert owner("online") == world.user_id
        wait_for("the machine to leave", lambda: owner("offline"))
        with _daemon(here, server.url, token):
            wait_for("its new owner", lambda: owner("online") == mo or None)
        key = Home(here).machine_key_file.read_text().strip()
        assert key not in (here / "daemon.log").read_text()
