"""Answering what the server asks of a runtime between tasks: models, skills, a ping, an update.

Requests come with heartbeat answers, over HTTP or the websocket. They run here, for as long as the
daemon is present, because the beat that brought one may be cancelled by unrelated changes. A few
workers share a bounded queue; what does not fit is dropped, and the server asks again or gives up.
A server that heard nothing hands a request out again, so one that is in hand is not begun twice,
and a result that could not be told is kept and told then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, Literal

import attrs
import structlog
import trio

from daemon.agents.contract import AgentError
from daemon.agents.local_skills import SkillError
from daemon.client import ApiError, Client
from daemon.runtimes.abilities import Abilities, Unable, Update, updates_are_off
from daemon.runtimes.directory import Directory
from daemon.runtimes.info import RuntimeInfo
from shared import codec
from shared.wire.runtime import Beat

log = structlog.get_logger(__name__)

WORKERS: Final = 4
"""Requests answered at a time: they start agent programs, which must not crowd out tasks."""

QUEUE: Final = 64
"""One beat brings at most 14 requests (10 imports and one of each other kind), 20 runtimes beat
within an interval, and nearly all of them bring none."""

WAITS: Final = (0.0, 0.5, 2.0, 4.0)
"""Seconds before each attempt to report; in all below the server's 60 s (spec 01 §1.6)."""

KEPT: Final = 64
"""Results kept because nobody could be told; the oldest goes."""

Kind = Literal["update", "models", "local_skills", "import", "ping"]

LIMITS: Final[dict[Kind, float]] = {
    "models": 45.0,
    "local_skills": 45.0,
    "import": 45.0,
    "ping": 100.0,
    "update": 140.0,
}
"""Seconds each may take, so that what came of it can still be told (spec 01 §3.19; a ping is given
120 s by our server)."""


@attrs.frozen(kw_only=True)
class Action:
    """One request. `path` is where its result goes, below the runtime; `wanted` is the skill's key
    or the version.
    """

    runtime_id: str
    kind: Kind
    path: str
    wanted: str = ""


Key = tuple[str, str]


def plan_actions(runtime_id: str, beat: Beat) -> Iterator[Action]:
    """List what a beat asks for. The plural import list wins over the singular (spec 01 §3.3)."""

    def action(kind: Kind, path: str, wanted: str = "") -> Action:
        return Action(runtime_id=runtime_id, kind=kind, path=path, wanted=wanted)

    if beat.pending_update is not None:
        version = beat.pending_update.target_version
        yield action("update", f"update/{beat.pending_update.id}", version)
    if beat.pending_model_list is not None:
        yield action("models", f"models/{beat.pending_model_list.id}")
    if beat.pending_local_skills is not None:
        yield action("local_skills", f"local-skills/{beat.pending_local_skills.id}")
    imports = beat.pending_local_skill_imports
    if not imports and beat.pending_local_skill_import is not None:
        imports = [beat.pending_local_skill_import]
    for wanted in imports:
        yield action("import", f"local-skills/import/{wanted.id}", wanted.skill_key)
    if beat.pending_ping is not None:
        yield action("ping", f"ping/{beat.pending_ping.id}")


class Actions:
    """The queue and its workers. Only the workers change `_untold` and `_updating`."""

    def __init__(self, client: Client, directory: Directory, abilities: Abilities) -> None:
        self._client = client
        self._directory = directory
        self._abilities = abilities
        self.update: Update = abilities.update or updates_are_off
        """Updates this installation; `app.py` sets it once."""
        self._send, self._receive = trio.open_memory_channel[Action](QUEUE)
        self._in_hand: set[Key] = set()  # from submit to the end of the report
        self._untold: dict[Key, dict[str, Any]] = {}
        self._updating = False

    def submit(self, runtime_id: str, beat: Beat) -> None:
        """Take over what a beat asks for. Never waits."""
        for action in plan_actions(runtime_id, beat):
            key = (action.runtime_id, action.path)
            if key in self._in_hand:
                continue
            try:
                self._send.send_nowait(action)
            except trio.WouldBlock:
                log.warning("too many requests at once; dropped", runtime_id=runtime_id)
            else:
                self._in_hand.add(key)

    async def run(self) -> None:
        """Answer requests until cancelled."""
        async with trio.open_nursery() as workers:
            for _ in range(WORKERS):
                workers.start_soon(self._work)

    async def _work(self) -> None:
        async for action in self._receive:
            try:
                await self._answer(action)
            finally:
                self._in_hand.discard((action.runtime_id, action.path))

    async def _answer(self, action: Action) -> None:
        key = (action.runtime_id, action.path)
        then: Callable[[], None] | None = None
        result = self._untold.pop(key, None)
        if result is None:
            runtime = self._directory.find(action.runtime_id)
            if action.kind == "update":
                if self._updating:
                    return
                self._updating = True
                try:
                    result, then = await self._update(action)
                finally:
                    self._updating = False
            elif runtime is None:
                return  # no longer ours
            else:
                result = await self._perform(action, runtime)
        if not await self._report(action, result):
            self._untold[key] = result
            if len(self._untold) > KEPT:
                del self._untold[next(iter(self._untold))]
        if then is not None:
            then()

    async def _update(self, action: Action) -> tuple[dict[str, Any], Callable[[], None] | None]:
        """Say that it is under way, then do it; the second value restarts the daemon."""
        await self._report(action, {"status": "running"})
        then: list[Callable[[], None]] = []

        async def update() -> dict[str, Any]:
            done = await self.update(action.wanted)
            then.append(done.then)
            return {"output": done.output}

        result = await _bounded(action, update)
        return result, then[0] if then else None

    async def _perform(self, action: Action, runtime: RuntimeInfo) -> dict[str, Any]:
        """Do what was asked and return the result to report."""
        began = trio.current_time()

        async def perform() -> dict[str, Any]:
            match action.kind:
                case "models":
                    models = await self._abilities.models(runtime.program)
                    return {"models": _listed(models), "supported": models is not None}
                case "local_skills":
                    skills = await self._abilities.list_skills(runtime.provider)
                    return {"skills": _listed(skills), "supported": skills is not None}
                case "import":
                    skill = await self._abilities.import_skill(runtime.provider, action.wanted)
                    return {"skill": codec.unstructure(skill)}
            return {"output": await self._abilities.ping(runtime.program)}

        result = await _bounded(action, perform)
        if action.kind == "ping":
            result["duration_ms"] = round(1000 * (trio.current_time() - began))
        return result

    async def _report(self, action: Action, result: dict[str, Any]) -> bool:
        """Report, trying again after failures that are not the request's fault (spec 01 §1.6).

        False: the server could not be told, and may ask again.
        """
        for wait in WAITS:
            await trio.sleep(wait)
            try:
                await self._client.report_result(action.runtime_id, action.path, result)
            except ApiError as error:
                log.warning("result not reported", path=action.path, error=str(error))
                if error.final or error.status in (408, 429):
                    return True
            else:
                return True
        return False


async def _bounded(action: Action, perform: Callable[[], Any]) -> dict[str, Any]:
    """Run one request to its result, whatever happens in it."""
    limit = LIMITS[action.kind]
    result: dict[str, Any] = {
        "status": "failed",
        "error": f"the machine was not done after {limit:g} s",
    }
    try:
        with trio.move_on_after(limit):
            result = {"status": "completed", **await perform()}
    except* (Unable, AgentError, SkillError) as group:
        result = {"status": "failed", "error": str(_first(group))}
    except* Exception as crash:
        log.exception("request crashed", kind=action.kind)
        result = {"status": "failed", "error": f"internal error: {_first(crash)!r}"}
    return result


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _listed(values: Any) -> list[Any] | None:
    return None if values is None else codec.unstructure(list(values))
