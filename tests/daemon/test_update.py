"""When the daemon changes its own version, on virtual time; and how installations are told apart."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from daemon.client import Client
from daemon.runtimes.actions import LIMITS
from daemon.tasks.task import Job
from daemon.upkeep import installation as installations
from daemon.upkeep.installation import (
    Installation,
    NotUpdatable,
    UpdateError,
    find_installation,
    hold_update,
    is_newer,
)
from daemon.upkeep.update import AGAIN, FIRST, REQUEST, refuse
from shared import __version__
from shared.home import Home
from shared.wire.task import CompleteRequest
from tests.support.daemon_rig import Rig, open_rig
from tests.support.fake_server import FakeServer, open_fake_server

pytestmark = pytest.mark.fast

NEW = "9.9.9"

CALM: Any = {"heartbeat_interval": 3600.0, "poll_interval": 3600.0, "sync_interval": 3600.0}
"""Little else happens, so that hours pass quickly."""
CLAIM = "POST /api/daemon/runtimes/.*/tasks/claim"


class Shop:
    """An installer whose steps take time; `calls` are (when, what)."""

    def __init__(self, newest: str | None = NEW) -> None:
        self.newest = newest
        self.calls: list[tuple[float, str]] = []
        self.refuses: set[str] = set()
        self.failed: set[str] = set()

    async def _step(self, what: str) -> None:
        self.calls.append((trio.current_time(), what))
        await trio.sleep(3)
        if what.split()[0] in self.refuses:
            raise UpdateError(f"no {what}")

    async def latest(self) -> str | None:
        await self._step("latest")
        return self.newest

    async def prove(self, version: str) -> None:
        await self._step(f"prove {version}")

    async def switch(self, version: str) -> None:
        await self._step(f"switch {version}")

    def go_back(self) -> None:
        self.calls.append((trio.current_time(), "back"))

    def has_failed(self, version: str) -> bool:
        return version in self.failed

    def note_failure(self, version: str) -> None:
        self.failed.add(version)

    def times(self, what: str) -> list[float]:
        return [at for at, said in self.calls if said.split()[0] == what]


async def _work(client: Client, job: Job, shutdown: trio.CancelScope) -> None:
    await client.start(job.task.id)
    with shutdown:
        await trio.sleep(float(job.task.thread_name))
    with trio.move_on_after(5, shield=True):
        await client.complete(job.task.id, CompleteRequest(output="done"))


async def _with_task(rig: Rig, server: FakeServer, seconds: float) -> Any:
    await rig.until_running()
    task = server.add_task(server.runtime_id("claude"), thread_name=str(seconds))
    server.wake(server.runtime_id("claude"))
    await rig.until(lambda: task.status == "running")
    return task


async def test_an_idle_daemon_updates_two_minutes_after_its_start(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    shop = Shop()
    async with (
        open_fake_server() as server,
        open_rig(server, tmp_path, installer=shop, auto_update=True) as rig,
    ):
        await rig.ended.wait()
        assert [what for _, what in shop.calls] == ["latest", f"prove {NEW}", f"switch {NEW}"]
        assert shop.times("latest") == [pytest.approx(FIRST, abs=1)]
        assert rig.stop.successor is not None
        assert (rig.stop.successor.version, rig.stop.successor.installer) == (NEW, shop)
        [(gone, _)] = server.deregistered
        assert gone >= shop.times("switch")[0] + 3, "goodbye comes after the switch"
        assert all(at < shop.times("switch")[0] for at in server.times(CLAIM))


async def test_every_six_hours_and_only_if_wanted(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    for wanted, looks in ((True, 4), (False, 0)):
        shop = Shop(newest=None)
        async with (
            open_fake_server() as server,
            open_rig(server, tmp_path, installer=shop, auto_update=wanted, **CALM) as rig,
        ):
            await rig.until_running()
            with trio.move_on_after(19 * 3600):
                await rig.ended.wait()
            assert len(shop.calls) == looks
            for before, after in zip(shop.calls, shop.calls[1:], strict=False):
                assert after[0] - before[0] == pytest.approx(6 * 3600, abs=5)


@pytest.mark.parametrize("newest", [None, __version__, "0.0.9", "9.9.9rc1", "nonsense"])
async def test_only_a_later_release_is_an_update(
    autojump_clock: MockClock, tmp_path: Path, newest: str | None
) -> None:
    shop = Shop(newest)
    async with (
        open_fake_server() as server,
        open_rig(server, tmp_path, installer=shop, auto_update=True) as rig,
    ):
        await rig.until_running()
        await trio.sleep(300)
        assert [what for _, what in shop.calls] == ["latest"]


async def test_a_running_task_is_never_interrupted_and_claims_go_on_meanwhile(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    shop = Shop()
    async with (
        open_fake_server() as server,
        open_rig(server, tmp_path, installer=shop, auto_update=True, run_job=_work) as rig,
    ):
        task = await _with_task(rig, server, 500)
        await trio.sleep(200)
        other = server.add_task(server.runtime_id("claude"), thread_name="400")
        await rig.ended.wait()
        assert (task.status, other.status) == ("completed", "completed")
        assert len(shop.times("prove")) == 1, "proved once, switched when there was room"
        assert 0 <= shop.times("switch")[0] - 600 < 60 + AGAIN


@pytest.mark.parametrize("step", ["latest", "prove", "switch"])
async def test_what_fails_changes_nothing(
    autojump_clock: MockClock, tmp_path: Path, step: str
) -> None:
    shop = Shop()
    shop.refuses = {step}
    async with (
        open_fake_server() as server,
        open_rig(server, tmp_path, installer=shop, auto_update=True, run_job=_work, **CALM) as rig,
    ):
        await rig.until_running()
        await trio.sleep(300)
        task = await _with_task(rig, server, 1)
        await rig.until(lambda: task.status == "completed")
        assert not rig.stop.asked.is_set()
        await trio.sleep(7 * 3600)
        assert len(shop.times("latest")) == 2
        assert len(shop.times("switch")) == (1 if step == "switch" else 0), "not tried again"


async def test_the_server_asks_for_an_update(autojump_clock: MockClock, tmp_path: Path) -> None:
    shop = Shop(newest=None)
    async with (
        open_fake_server() as server,
        open_rig(server, tmp_path, installer=shop, run_job=_work) as rig,
    ):
        await _with_task(rig, server, 50)
        runtime_id = server.runtime_id("claude")
        server.pending[runtime_id] = {"pending_update": {"id": "u", "target_version": f"v{NEW}"}}
        await rig.ended.wait()
        [told] = server.results.values()
        assert told == {"status": "completed", "output": f"Updated to {NEW}"}
        [first, _] = [
            call.body["status"] for call in server.calls if call.path.endswith("update/u/result")
        ]
        assert first == "running"
        assert rig.stop.successor is not None
        assert all(task.status == "completed" for task in server.tasks.values())


@pytest.mark.parametrize(
    ("target", "refuses", "why"),
    [
        ("0.0.1", "", "no later version"),
        ("", "", "no later version"),
        (NEW, "prove", f"no prove {NEW}"),
        (NEW, "switch", f"no switch {NEW}"),
    ],
)
async def test_an_update_asked_for_that_fails_is_told(
    autojump_clock: MockClock, tmp_path: Path, target: str, refuses: str, why: str
) -> None:
    shop = Shop()
    shop.refuses = {refuses}
    async with open_fake_server() as server, open_rig(server, tmp_path, installer=shop) as rig:
        await rig.until_running()
        server.pending[server.runtime_id("claude")] = {
            "pending_update": {"id": "u", "target_version": target}
        }
        await trio.sleep(60)
        [told] = server.results.values()
        assert told["status"] == "failed"
        assert why in told["error"]
        task = server.add_task(server.runtime_id("claude"))
        await rig.until(lambda: task.status == "completed")


async def test_an_update_asked_for_does_not_wait_long_for_tasks(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    shop = Shop()
    async with (
        open_fake_server() as server,
        open_rig(server, tmp_path, installer=shop, run_job=_work) as rig,
    ):
        await _with_task(rig, server, 500)
        server.pending[server.runtime_id("claude")] = {
            "pending_update": {"id": "u", "target_version": NEW}
        }
        await rig.until(lambda: len(server.results) == 1, within=120)
        await rig.until(
            lambda: next(iter(server.results.values()))["status"] == "failed", within=120
        )
        other = server.add_task(server.runtime_id("claude"), thread_name="1")
        await rig.until(lambda: other.status == "completed", within=60)
        assert not rig.stop.asked.is_set()


async def test_a_request_that_runs_out_of_time_opens_the_barrier_again(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """The proof took so long that the request ends while tasks are waited for."""

    class Slow(Shop):
        async def prove(self, version: str) -> None:
            await trio.sleep(LIMITS["update"] - REQUEST / 2)

    async with (
        open_fake_server() as server,
        open_rig(server, tmp_path, installer=Slow(), run_job=_work) as rig,
    ):
        await _with_task(rig, server, 500)
        server.pending[server.runtime_id("claude")] = {
            "pending_update": {"id": "u", "target_version": NEW}
        }
        await rig.until(lambda: server.results.get("update/u", {}).get("status") == "failed")
        other = server.add_task(server.runtime_id("claude"), thread_name="1")
        await rig.until(lambda: other.status == "completed", within=60)


async def test_a_drain_that_is_taken_back_opens_nothing_for_an_update(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    class Slow(Shop):
        async def switch(self, version: str) -> None:
            await super().switch(version)
            await trio.sleep(60)

    shop = Slow()
    async with (
        open_fake_server() as server,
        open_rig(server, tmp_path, installer=shop, run_job=_work, auto_update=True) as rig,
    ):
        await rig.until(lambda: shop.times("switch"))
        rig.stop.resume()
        late = server.add_task(server.runtime_id("claude"), thread_name="500")
        server.wake(server.runtime_id("claude"))
        await rig.ended.wait()
        assert late.status == "queued"


def test_who_must_not_update_itself() -> None:
    assert refuse(parent_pid=0, launched_by="", version="1.2.3") == ""
    assert "desktop" in refuse(parent_pid=0, launched_by="desktop", version="1.2.3")
    assert "bullpen up" in refuse(parent_pid=7, launched_by="", version="1.2.3")
    assert "development" in refuse(parent_pid=0, launched_by="", version="1.2.3-4-gabc")


@pytest.mark.parametrize(
    ("one", "other", "newer"),
    [
        ("1.10.0", "1.9.9", True),
        ("v2.0.0", "1.9.9", True),
        ("1.9.9", "1.9.9", False),
        ("1.9", "1.8.0", False),
        ("1.9.9", "1.8.0.dev1", False),
    ],
)
def test_versions(one: str, other: str, newer: bool) -> None:
    assert is_newer(one, other) is newer


class _Distribution(metadata.Distribution):
    def __init__(self, direct_url: dict[str, Any] | None) -> None:
        self._direct_url = direct_url

    def read_text(self, filename: str) -> str | None:
        wanted = filename == "direct_url.json" and self._direct_url
        return json.dumps(self._direct_url) if wanted else None

    def locate_file(self, path: Any) -> Any:
        raise NotImplementedError


def _find(prefix: Path, direct_url: dict[str, Any] | None = None, **more: Any) -> Installation:
    env = {"PATH": str(prefix.parent / "bin")}
    values = {"base_prefix": Path("/usr"), "env": env, **more}
    return find_installation(prefix, origin=lambda: _Distribution(direct_url), **values)


def test_installations_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for tool in ("uv", "pipx"):
        (tmp_path / "bin" / tool).write_text("#!/bin/sh\n")
        (tmp_path / "bin" / tool).chmod(0o755)
    prefix = tmp_path / "bullpen"
    pip = prefix / "lib" / "python3.11" / "site-packages" / "pip"
    pip.mkdir(parents=True)
    (pip / "__main__.py").touch()
    made = _find(prefix)
    assert (made.kind, made.tool) == ("pip", str(prefix / "bin" / "python"))
    (prefix / "pipx_metadata.json").touch()
    made = _find(prefix)
    assert (made.kind, made.tool) == ("pipx", str(tmp_path / "bin" / "pipx"))
    (prefix / "uv-receipt.toml").touch()
    made = _find(prefix)
    assert (made.kind, made.tool) == ("uv tool", str(tmp_path / "bin" / "uv"))
    with pytest.raises(NotUpdatable, match="uv, which is not in the PATH"):
        _find(prefix, env={"PATH": "/nowhere"})


@pytest.mark.parametrize(
    ("direct_url", "why"),
    [
        ({"url": "file:///src", "dir_info": {"editable": True}}, "checkout file:///src"),
        ({"url": "file:///src", "dir_info": {}}, "installed from file:///src"),
        ({"url": "ssh://host/repo", "vcs_info": {"vcs": "git"}}, "installed from ssh://host/repo"),
        ({"what": 1}, "does not say where it came from"),
    ],
)
def test_what_came_from_elsewhere_is_not_replaced_by_a_name(
    tmp_path: Path, direct_url: dict[str, Any], why: str
) -> None:
    """A package of the same name in an index may be anybody's."""
    with pytest.raises(NotUpdatable, match=why):
        _find(tmp_path, direct_url)


def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(NotUpdatable, match="system's own packages"):
        _find(tmp_path, base_prefix=tmp_path)
    with pytest.raises(NotUpdatable, match="no pip"):
        _find(tmp_path)

    def absent() -> metadata.Distribution:
        raise metadata.PackageNotFoundError

    with pytest.raises(NotUpdatable, match="checkout"):
        find_installation(tmp_path, origin=absent)


def test_one_update_at_a_time(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with (
        hold_update(home),
        pytest.raises(UpdateError, match="another update"),
        hold_update(home),
    ):
        pass
    with hold_update(home):
        pass


def test_no_command_names_a_place_to_download_from(tmp_path: Path) -> None:
    for kind in ("uv tool", "pipx", "pip"):
        made = Installation(kind=kind, prefix=tmp_path / "bullpen", tool="tool")  # type: ignore[arg-type]
        commands = [made.outdated(), *made.beside(tmp_path / "new", "1.2.3"), made.upgrade("1.2.3")]
        assert not any("://" in word or "index" in word for words in commands for word in words)
        assert any("bullpen==1.2.3" in words for words in commands)
    assert installations.NAME == "bullpen"
