"""Telling the service manager: real datagrams, and when which is sent."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from daemon.notify import PATIENCE, Notifier, run_notify, take_notifier
from tests.support.daemon_rig import open_rig
from tests.support.fake_server import open_fake_server

pytestmark = pytest.mark.fast


class Manager:
    """A service manager's socket."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._line = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._line.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self._line.setblocking(False)

    def told(self) -> list[str]:
        """What has arrived since the last look."""
        found = []
        while True:
            try:
                found.append(self._line.recv(4096).decode())
            except BlockingIOError:
                return found

    def close(self) -> None:
        self._line.close()


@pytest.fixture
def manager(tmp_path: Path) -> Any:
    made = Manager(str(tmp_path / "notify"))
    yield made
    made.close()


def test_a_datagram_with_assignments(manager: Manager) -> None:
    Notifier(address=manager.address).tell(READY=1, STATUS="it is well")
    assert manager.told() == ["READY=1\nSTATUS=it is well"]


def test_nobody_listening_is_no_trouble(tmp_path: Path) -> None:
    Notifier().tell(READY=1)
    Notifier(address=str(tmp_path / "none")).tell(READY=1)
    Notifier(address="@").tell(READY=1)


def test_the_variables_are_ours_alone() -> None:
    env = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "6000000", "WATCHDOG_PID": "7", "A": "b"}
    told = dict(env)
    notifier = take_notifier(env, 7)
    assert env == {"A": "b"}, "no agent inherits them"
    assert (notifier.address, notifier.watchdog) == ("/run/x", 6.0)
    assert notifier.environment == {key: told[key] for key in told if key != "A"}
    assert take_notifier(dict(told), 8).watchdog == 0, "meant for another process"
    assert take_notifier({}, 7) == Notifier()


async def _watch(notifier: Notifier, health: Callable[[], dict[str, Any]], seconds: float) -> None:
    with trio.move_on_after(seconds):
        await run_notify(notifier, health)


async def test_ready_once_running(autojump_clock: MockClock, manager: Manager) -> None:
    health = {"status": "starting"}
    notifier = Notifier(address=manager.address)
    await _watch(notifier, lambda: health, 10)
    assert manager.told() == ["STATUS=starting"]
    health["status"] = "running"
    await _watch(notifier, lambda: health, 1000)
    assert manager.told() == ["READY=1", "STATUS=running"]


async def test_readiness_is_told_again_until_it_has_arrived(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    address = str(tmp_path / "late")
    async with trio.open_nursery() as nursery:
        notifier = Notifier(address=address)
        nursery.start_soon(run_notify, notifier, lambda: {"status": "running"})
        await trio.sleep(5)
        manager = Manager(address)
        await trio.sleep(1.5)
        assert manager.told() == ["READY=1", "STATUS=running"]
        manager.close()
        nursery.cancel_scope.cancel()


async def test_a_server_that_is_away_does_not_make_the_manager_restart_us(
    autojump_clock: MockClock, manager: Manager
) -> None:
    health = {"status": "starting", "problem": "no answer\nfrom it"}
    notifier = Notifier(address=manager.address)
    await _watch(notifier, lambda: health, PATIENCE - 1)
    assert manager.told() == ["STATUS=no answer from it"]
    await _watch(notifier, lambda: health, PATIENCE + 1.5)
    assert "READY=1" in manager.told()


async def test_signs_of_life_come_well_within_the_watchdog(
    autojump_clock: MockClock, manager: Manager
) -> None:
    notifier = Notifier(address=manager.address, watchdog=9.0)
    await _watch(notifier, lambda: {"status": "running"}, 20.5)
    assert manager.told().count("WATCHDOG=1") == 7


async def test_the_daemon_tells_of_start_and_stop(
    autojump_clock: MockClock, tmp_path: Path, manager: Manager
) -> None:
    notifier = Notifier(address=manager.address)
    async with open_fake_server() as server, open_rig(server, tmp_path, notifier=notifier) as rig:
        await rig.until_running()
        await trio.sleep(2)
        told = manager.told()
        assert told[-2:] == ["READY=1", "STATUS=running"]
        rig.stop.ask("test")
        await rig.ended.wait()
        assert manager.told() == ["STOPPING=1"]
