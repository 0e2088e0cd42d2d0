"""Changes of the config file under a running daemon: what counts at once, and what is refused."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import structlog
import trio
from trio.testing import MockClock

from daemon.client import Client
from daemon.config import Config, load_config
from daemon.reload import FIXED, plan_change
from daemon.tasks.task import Job
from tests.support.daemon_rig import CLAUDE, CODEX, Rig, open_rig
from tests.support.fake_server import WORKSPACE, FakeServer, make_config, open_fake_server, uid

pytestmark = pytest.mark.fast

OLD = "mul_" + "0" * 40
NEW = "mul_" + "1" * 40


def test_what_changes_live_and_what_needs_a_restart(tmp_path: Path) -> None:
    now = make_config(tmp_path)
    wanted = attrs.evolve(
        now, token=NEW, max_concurrent_tasks=2, device_name="other", control_port=1
    )
    change = plan_change(now, wanted)
    assert set(change.live) == {"token", "max_concurrent_tasks"}
    assert set(change.restart) == {"device_name", "control_port"}
    assert (change.config.token, change.config.max_concurrent_tasks) == (NEW, 2)
    assert (change.config.device_name, change.config.control_port) == ("box", now.control_port)


def test_a_token_never_goes_to_another_server(tmp_path: Path) -> None:
    now = make_config(tmp_path)
    change = plan_change(now, attrs.evolve(now, token=NEW, server_url="http://elsewhere"))
    assert change.config == now
    assert set(change.restart) == {"token", "server_url"}


def test_every_fixed_name_is_a_setting() -> None:
    assert {field.name for field in attrs.fields(Config)} >= FIXED


@asynccontextmanager
async def _reloading(
    server: FakeServer, home: Path, *, run_job: Any = None, **file: Any
) -> AsyncIterator[Rig]:
    """A rig whose settings come from a file; what the file says may be changed with `_write`."""
    _write(home, **file)
    env = {"BULLPEN_HOME": str(home), "BULLPEN_DAEMON_ID": uid("daemon")}
    env["BULLPEN_DAEMON_DEVICE_NAME"] = "box"
    load = partial(load_config, env)
    more = {"run_job": run_job} if run_job else {}
    config = load()
    names = {field.name for field in attrs.fields(Config)} - {"home"}
    values = {name: getattr(config, name) for name in names}
    async with open_rig(server, home, load=load, **more, **values) as rig:
        await rig.until_running()
        yield rig


def _write(home: Path, **file: Any) -> None:
    text = json.dumps({"token": OLD, "server_url": "http://server", **file})
    temporary = home / "new"
    temporary.write_text(text)
    (home / "secrets").mkdir(exist_ok=True)
    temporary.replace(home / "secrets" / "config.json")


async def test_a_new_sign_in_counts_without_a_restart(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_fake_server() as server, _reloading(server, tmp_path):
        await trio.sleep(40)
        before = len(server.calls)
        _write(tmp_path, token=NEW)
        await trio.sleep(2.1)
        after = [call.headers["authorization"] for call in server.calls[before:]]
        assert f"Bearer {NEW}" in after, "the sync pass is made at once"
        assert after[after.index(f"Bearer {NEW}") :].count(f"Bearer {OLD}") == 0


async def test_more_and_fewer_tasks(autojump_clock: MockClock, tmp_path: Path) -> None:
    async def work(client: Client, job: Job, shutdown: trio.CancelScope) -> None:
        await client.start(job.task.id)
        with shutdown:
            await trio.sleep(600)

    async with open_fake_server() as server:
        settings = {"BULLPEN_DAEMON_MAX_CONCURRENT_TASKS": 1}
        async with _reloading(server, tmp_path, run_job=work, settings=settings) as rig:
            for _ in range(5):
                server.add_task(server.runtime_id("claude"))
            await trio.sleep(60)
            assert len(rig.pool.active) == 1
            _write(tmp_path, settings={"BULLPEN_DAEMON_MAX_CONCURRENT_TASKS": 3})
            await trio.sleep(60)
            assert len(rig.pool.active) == 3
            _write(tmp_path, settings={"BULLPEN_DAEMON_MAX_CONCURRENT_TASKS": 1})
            await trio.sleep(700)
            assert len(rig.pool.active) == 1, "the surplus ended and was not replaced"


async def test_a_path_override_repairs_a_failed_profile_at_once(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    profile = {
        "id": uid("profile"),
        "command_name": "no-such-command-anywhere",
        "protocol_family": "claude",
        "display_name": "Mine",
        "enabled": True,
    }
    async with open_fake_server() as server:
        server.profiles[WORKSPACE] = [profile]
        async with _reloading(server, tmp_path) as rig:
            assert len(rig.health.tell()["workspaces"][0]["runtimes"]) == 1
            program = tmp_path / "mine"
            program.write_text("#!/bin/sh\n")
            program.chmod(0o755)
            _write(tmp_path, profile_command_overrides={profile["id"]: str(program)})
            await trio.sleep(2.5)
            assert len(rig.health.tell()["workspaces"][0]["runtimes"]) == 2


async def test_programs_are_looked_for_at_once(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_fake_server() as server, _reloading(server, tmp_path) as rig:
        rig.programs[:] = [CLAUDE, CODEX]
        _write(tmp_path, settings={"BULLPEN_AGENT_TIMEOUT": "1h"})
        await trio.sleep(2.5)
        assert rig.health.tell()["agents"] == ["claude", "codex"]


async def test_a_file_that_cannot_be_used_changes_nothing(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    warned: list[dict[str, Any]] = []

    def keep(_: Any, __: str, record: Any) -> Any:
        if record["event"].startswith("the config file cannot be used"):
            warned.append(dict(record))
        raise structlog.DropEvent

    structlog.configure(processors=[keep], cache_logger_on_first_use=False)
    async with open_fake_server() as server, _reloading(server, tmp_path) as rig:
        for text in ("{", json.dumps({"server_url": "http://server"})):
            (tmp_path / "secrets" / "config.json").write_text(text)
            os.utime(tmp_path / "secrets" / "config.json", ns=(1, len(text)))
            await trio.sleep(10)
        assert len(warned) == 2, "each once"
        (tmp_path / "secrets" / "config.json").unlink()
        await trio.sleep(100)
        assert rig.health.tell()["status"] == "running"
        last = server.calls[-1]
        assert last.headers["authorization"] == f"Bearer {OLD}"
        _write(tmp_path, token=NEW)
        await trio.sleep(3)
        assert server.calls[-1].headers["authorization"] == f"Bearer {NEW}"
