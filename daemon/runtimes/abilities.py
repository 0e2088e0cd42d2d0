"""What this machine can be asked between tasks, and how it does it.

`runtimes/actions.py` calls these when a heartbeat brought a request; each is one async function that
returns what is to be told or raises Unable, and lasts no longer than its limit there. Tests put in
their own.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from daemon.agents import local_skills
from daemon.agents.contract import AgentError, AgentRun, Program
from daemon.agents.launch import open_agent
from daemon.agents.local_skills import ImportedSkill, LocalSkill
from daemon.agents.models import Models, TakesLevel, any_level
from daemon.agents.models_catalogue import Model
from daemon.tasks.environment import inherited

if TYPE_CHECKING:
    from daemon.config import Config

PING: Final = "Reply with exactly one word: pong"

LONGEST_ANSWER: Final = 4000
"""Characters kept of what an agent answers to a ping."""


class Unable(Exception):
    """What was asked cannot be done; the text is for the person who asked."""


def _nothing() -> None:
    """Stand in where nothing has to follow."""


@attrs.frozen(kw_only=True)
class Updated:
    """An update that worked. `then` is called once that was told: it restarts the daemon."""

    output: str
    then: Callable[[], None] = _nothing


Update = Callable[[str], Awaitable[Updated]]
"""Update this installation to a version, "" for the latest. Raises Unable."""


async def updates_are_off(_: str) -> Updated:
    """Stand in where nothing can update this installation."""
    raise Unable("updates are off for this installation")


@attrs.frozen(kw_only=True)
class Abilities:
    """One function per kind of request; None from a list means that the provider has none.

    `models` and `ping` raise Unable or AgentError, the skills Unable or SkillError. Without `update`
    the daemon's own updater is asked. `takes_level` is asked by tasks.
    """

    models: Callable[[Program], Awaitable[Sequence[Model] | None]]
    list_skills: Callable[[str], Awaitable[Sequence[LocalSkill] | None]]
    import_skill: Callable[[str, str], Awaitable[ImportedSkill]]
    ping: Callable[[Program], Awaitable[str]]
    update: Update | None = None
    takes_level: TakesLevel = any_level


def unable() -> Abilities:
    """Stand in where nothing but tasks is done."""

    async def refuse(*_: object) -> Any:
        raise Unable("not offered by this daemon")

    return Abilities(models=refuse, list_skills=refuse, import_skill=refuse, ping=refuse)


def abilities_of(config: Config) -> Abilities:
    """What the machine this runs on can do, as the user who runs it."""
    env = inherited(os.environ)
    home = Path.home()

    async def list_skills(provider: str) -> Sequence[LocalSkill] | None:
        look = partial(local_skills.list_skills, provider, home=home, env=env)
        return await trio.to_thread.run_sync(look, abandon_on_cancel=True)

    async def import_skill(provider: str, skill_key: str) -> ImportedSkill:
        read = partial(local_skills.import_skill, provider, skill_key, home=home, env=env)
        return await trio.to_thread.run_sync(read, abandon_on_cancel=True)

    models = Models(env)
    return Abilities(
        models=models.offered_by,
        takes_level=models.is_valid_level,
        list_skills=list_skills,
        import_skill=import_skill,
        ping=partial(ping, config, env),
    )


async def ping(config: Config, env: Mapping[str, str], program: Program) -> str:
    """Run an agent program once with a one-word prompt; return its answer.

    It works in an empty directory and without a task's token, so it can do nothing in Bullpen.
    Raises AgentError when it cannot be started, Unable when it does not answer.
    """
    provider = program.provider
    env = dict(env)
    if provider == "claude" and hasattr(os, "geteuid") and os.geteuid() == 0:
        env["IS_SANDBOX"] = "1"  # as for tasks: as root it refuses to work unattended otherwise
    with tempfile.TemporaryDirectory(prefix="bullpen-ping-") as place:
        run = AgentRun(
            program=program,
            cwd=Path(place),
            env=env,
            prompt=PING,
            model=config.models.get(provider, ""),
            extra_args=tuple(config.extra_args.get(provider, ())),
        )
        async with open_agent(run) as agent:
            async for _ in agent.messages:
                pass
    result = agent.result
    if result is None:
        raise AgentError(f"{provider} ended without a word")
    if result.status != "completed":
        raise Unable(result.error or f"{provider} {result.status}")
    return result.output[:LONGEST_ANSWER]
