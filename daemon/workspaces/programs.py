"""Looking for agent programs again and again, without the cost of the first look.

The first look may ask the user's login shell, which runs all of its start-up files, and then one
every hour; those between look in the PATH and where programs were found before. A program that was
found stays as long as its file is there: one failed version probe must not take a runtime away from
its tasks.
"""

from __future__ import annotations

import math
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import trio

from daemon.agents.contract import Program

SHELL_AGAIN: Final = 3600.0
"""Seconds until the login shell is asked again: what was installed meanwhile may be in a directory
that only its start-up files know."""
AskVersion = Callable[[str], Awaitable[str]]
"""Tell the version of the program at a path, "" if it does not say."""


async def no_version(_: str) -> str:
    """Stand in where programs are not started to be asked."""
    return ""


Look = Callable[[Mapping[str, str]], Awaitable[Sequence[Program]]]
"""Find programs in the given environment."""


def _is_runnable(path: str) -> bool:
    return os.access(path, os.X_OK)


class ProgramFinder:
    """Called for each look; remembers what the last one found."""

    def __init__(
        self,
        look: Look,
        env: Mapping[str, str],
        *,
        is_runnable: Callable[[str], bool] = _is_runnable,
    ) -> None:
        self._look = look
        self._env = env
        self._is_runnable = is_runnable
        self._known: dict[str, Program] | None = None
        self._ask_shell_at = -math.inf

    def look_with(self, look: Look) -> None:
        """Look differently from now on, as if for the first time."""
        self._look = look
        self._known = None
        self._ask_shell_at = -math.inf

    async def __call__(self) -> list[Program]:
        """Return the programs there are, in the order they were first found."""
        found = {program.provider: program for program in await self._look(self._search())}
        for provider, program in (self._known or {}).items():
            if provider not in found and self._is_runnable(program.path):
                found[provider] = program
        known = self._known or {}
        self._known = {key: found[key] for key in (*known, *found) if key in found}
        return list(self._known.values())

    def _search(self) -> dict[str, str]:
        env = dict(self._env)
        now = trio.current_time()
        if now < self._ask_shell_at:
            env.pop("SHELL", None)
        else:
            self._ask_shell_at = now + SHELL_AGAIN
        if self._known is not None:
            places = [str(Path(program.path).parent) for program in self._known.values()]
            env["PATH"] = os.pathsep.join([env.get("PATH", os.defpath), *dict.fromkeys(places)])
        return env
