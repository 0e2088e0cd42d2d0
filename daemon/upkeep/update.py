"""Keeping the daemon's own version up to date, without anybody's task noticing (spec 03 §22).

Woken two minutes after the start and then every six hours, if that is wanted, or by a request of
the server. A new version is proved first; the switch waits behind the claim barrier until no task
is left, and the barrier stays closed until the process has made room for its successor. It ends by
being cancelled; `become` then runs outside the tree, once everything the daemon held is free.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NoReturn, Protocol

import attrs
import structlog
import trio

from daemon.runtimes.abilities import Unable, Updated
from daemon.upkeep.installation import UpdateError, hold_update, is_newer, release
from shared import __version__

if TYPE_CHECKING:
    from daemon.services import Services

log = structlog.get_logger(__name__)

FIRST: Final = 120.0
"""Seconds until the first look, at most; a machine that has just started has other work."""

AGAIN: Final = 60.0
"""Seconds between looks whether a version that has been proved can be switched to."""

REQUEST: Final = 60.0
"""Seconds a request of the server waits for running tasks; its own patience is not much longer."""

BARRIER: Final = "update"
"""Why the claim barrier is closed; a restart that waits for tasks has a reason of its own."""

TRIAL: Final = 90.0
"""Seconds the successor's first start may take until it has registered."""


class Updates(Protocol):
    """What `installation.Installer` does, as it is used here."""

    async def latest(self) -> str | None: ...

    async def prove(self, version: str) -> None: ...

    async def switch(self, version: str) -> None: ...

    def go_back(self) -> None: ...

    def has_failed(self, version: str) -> bool: ...

    def note_failure(self, version: str) -> None: ...


@attrs.frozen(kw_only=True)
class Successor:
    """The version that takes over, and the way back."""

    version: str
    installer: Updates


@attrs.define(kw_only=True, eq=False)
class Updater:
    """One update at a time. `refusal` says why there is never one; its own tasks change the rest.

    `make_room` ends the daemon for a successor.
    """

    services: Services
    installer: Updates | None
    make_room: Callable[[Successor], None]
    refusal: str = ""
    version: str = __version__
    busy: bool = False

    async def run(self) -> None:
        """Look for new versions until cancelled, whenever the settings want it."""
        if self.refusal or self.installer is None:
            if self.services.config.auto_update:
                log.warning("Bullpen does not update itself here", reason=self.refusal)
            return
        await trio.sleep(min(FIRST, self.services.config.auto_update_interval))
        while True:
            if self.services.config.auto_update:
                await self.look(self.installer)
            await trio.sleep(self.services.config.auto_update_interval)

    async def look(self, installer: Updates) -> None:
        """Look once, and switch if there is a new version that works. Never raises for it."""
        if self.busy:
            return
        wanted = ""
        try:
            with self._alone():
                wanted = await installer.latest() or ""
                if not is_newer(wanted, self.version) or installer.has_failed(wanted):
                    return
                log.info("a new version is there; trying it", version=wanted)
                await installer.prove(wanted)
                if not await self._close_barrier():
                    log.info("the new version waits: there was always a task", version=wanted)
                    return
                await self._switch(installer, wanted)
        except UpdateError as error:
            log.warning("not updated", version=wanted, error=str(error))

    async def answer(self, target: str) -> Updated:
        """Do an update the server asked for. Raises Unable."""
        if self.refusal or self.installer is None:
            raise Unable(self.refusal)
        if self.busy:
            raise Unable("another update is under way")
        wanted = target.strip().removeprefix("v")
        try:
            with self._alone():
                if not is_newer(wanted, self.version):
                    raise UpdateError(f"{target!r} is no later version than {self.version}")
                await self.installer.prove(wanted)
                if not await self._close_barrier(REQUEST):
                    tasks = len(self.services.pool.active)
                    raise UpdateError(f"{tasks} tasks are running; ask again when they have ended")
                successor = await self._switch(self.installer, wanted, leave=False)
        except UpdateError as error:
            raise Unable(str(error)) from error
        return Updated(output=f"Updated to {wanted}", then=lambda: self.make_room(successor))

    async def _close_barrier(self, within: float | None = None) -> bool:
        """Close the claim barrier once nothing is under way; tell whether it could be.

        By itself, claims go on meanwhile; a request's wait holds them up, so it is short.
        """
        pool = self.services.pool
        if within is not None:
            closed = False
            pool.pause(BARRIER)
            try:
                with trio.move_on_after(within):
                    await pool.wait_empty()
                closed = pool.idle
            finally:
                if not closed:
                    pool.resume(BARRIER)
            return closed
        deadline = trio.current_time() + self.services.config.auto_update_interval
        while not pool.try_pause(BARRIER):
            if trio.current_time() >= deadline:
                return False
            await trio.sleep(AGAIN)
        return True

    async def _switch(self, installer: Updates, wanted: str, *, leave: bool = True) -> Successor:
        """Switch behind the closed barrier, which is opened again only if that fails."""
        switched = False
        try:
            with hold_update(self.services.config.home):
                await installer.switch(wanted)
            switched = True
        finally:
            if not switched:
                installer.note_failure(wanted)
                self.services.pool.resume(BARRIER)
        log.info("updated; making room for the new version", version=wanted)
        successor = Successor(version=wanted, installer=installer)
        if leave:
            self.make_room(successor)
        return successor

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self.busy = True
        try:
            yield
        finally:
            self.busy = False


def refuse(*, parent_pid: int, launched_by: str, version: str = __version__) -> str:
    """Say why this daemon must not update itself; empty if it may. ◇"""
    if launched_by == "desktop":
        return "the desktop app manages Bullpen's version"
    if parent_pid:
        return "it was started by `bullpen up`: end that, run `bullpen update`, and start it again"
    if release(version) is None:
        return f"{version} is a development version"
    return ""


def become(
    successor: Successor,
    command: Sequence[str],
    env: Mapping[str, str],
    manager: Mapping[str, str],
) -> NoReturn:
    """Replace this process by the new version, once that has started in earnest, or by the old one.

    The trial start registers, claims nothing and ends. The process keeps its number, so whoever
    started it goes on watching the right one; `manager` is what a service manager put into the
    environment, which a trial must not answer.
    """
    try:
        tried = subprocess.run(
            command,
            env={**env, "BULLPEN_DAEMON_TRIAL": "1"},
            stdin=subprocess.DEVNULL,
            timeout=TRIAL,
            check=False,
        )
        why = f"exit {tried.returncode}" if tried.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        why = str(error)
    if why:
        log.warning("the new version did not start; going back", version=successor.version, why=why)
        try:
            successor.installer.note_failure(successor.version)
            successor.installer.go_back()
        except UpdateError:
            log.exception("there was no way back")
    os.execve(command[0], list(command), {**env, **manager})  # noqa: S606
