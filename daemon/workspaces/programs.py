"""Looking for agent programs again and again, without the cost of the first look.

The first look may ask the user's login shell, which runs all of its start-up files; later ones look
in the PATH and where programs were found before. A program that was found stays as long as its
file is there: one failed version probe must not take a runtime away from its tasks.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from daemon.agents.contract import Program

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
        if self._known is not None:
            env.pop("SHELL", None)
            places = [str(Path(program.path).parent) for program in self._known.values()]
            env["PATH"] = os.pathsep.join([env.get("PATH", os.defpath), *dict.fromkeys(places)])
        return env
