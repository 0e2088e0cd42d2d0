"""Which models the agent programs of this machine offer, and how hard each can be made to think.

Asked for by the server between tasks. Programs that can tell are started for it, in an empty
directory and with a deadline, and everything they started is gone afterwards; what they told is kept
for a minute, since people open the same list again. Owns those caches and nothing that runs.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import attrs
import structlog
import trio

from daemon.agents import models_catalogue as catalogue
from daemon.agents.contract import AgentError, Program
from daemon.agents.loose import parse
from daemon.agents.models_catalogue import Model, UnreadableCatalogue
from daemon.agents.process import AgentProcess, Launch, LineTooLong, open_process

log = structlog.get_logger(__name__)

V = TypeVar("V")

MODELS_KEPT: Final = 60.0
THINKING_KEPT: Final = 600.0
"""Seconds (spec 03 §30). An empty list is never kept: the program may just not be signed in yet."""

_SHORT: Final = 15.0
_LONG: Final = 35.0
"""Seconds for a command and for the slow ones; in all below the server's 60 s for the request."""

_LARGEST_OUTPUT: Final = 8 * 1024 * 1024
_METHOD_NOT_FOUND: Final = -32601


@attrs.frozen(kw_only=True)
class Command:
    """A way to ask a program: its arguments, and who reads the answer.

    `banner` also reads what it says on standard error.
    """

    arguments: tuple[str, ...]
    read: Callable[[str], list[Model]]
    limit: float = _SHORT
    banner: bool = False


@attrs.frozen(kw_only=True)
class Acp:
    """A program that tells its models when a session is opened over ACP."""

    arguments: tuple[str, ...]
    env: Mapping[str, str] = attrs.field(factory=dict)
    limit: float = _SHORT


Way = Command | Acp


@attrs.frozen(kw_only=True)
class Source:
    """How a provider's models are learnt: the first way that yields any, else `fallback`."""

    ways: tuple[Way, ...] = ()
    fallback: Callable[[], list[Model]] = list


_OPENCLAW: Final = tuple(
    Command(arguments=("agents", "list", *words), read=catalogue.read_openclaw_agents, limit=10.0)
    for words in (("--json",), ("--output", "json"), ("-o", "json"))
)

SOURCES: Final[Mapping[str, Source]] = {
    "codebuddy": Source(
        ways=(Command(arguments=("--help",), read=catalogue.read_codebuddy_help, limit=_LONG),)
    ),
    "copilot": Source(ways=(Acp(arguments=("--acp",)),), fallback=catalogue.copilot_models),
    "cursor": Source(
        ways=(Command(arguments=("--list-models",), read=catalogue.read_cursor_models),),
        fallback=catalogue.cursor_models,
    ),
    "opencode": Source(
        ways=(
            Command(arguments=("models", "--verbose"), read=catalogue.read_opencode_models),
            Command(arguments=("models",), read=catalogue.read_opencode_models),
        )
    ),
    "openclaw": Source(ways=_OPENCLAW),
    "pi": Source(
        ways=(Command(arguments=("--list-models",), read=catalogue.read_pi_models, banner=True),)
    ),
    "antigravity": Source(
        ways=(Command(arguments=("models",), read=catalogue.read_antigravity_models),)
    ),
    "hermes": Source(ways=(Acp(arguments=("acp",), env={"HERMES_YOLO_MODE": "1"}),)),
    "kimi": Source(ways=(Acp(arguments=("acp",)),)),
    "kiro": Source(ways=(Acp(arguments=("acp", "--trust-all-tools")),)),
    "qoder": Source(ways=(Acp(arguments=("--yolo", "--acp")),)),
    "gemini": Source(ways=(Acp(arguments=("--acp", "--skip-trust")),)),
}
"""The providers whose programs are asked; claude and codex are asked how hard they can think."""

_UNLISTED: Final = frozenset({"demo", "qwen"})
"""Providers that have no list to choose from."""


TakesLevel = Callable[[Program, str, str], Awaitable[bool]]
"""Whether a program takes a level of thinking for a model; see `Models.is_valid_level`."""


async def any_level(*_: object) -> bool:
    """Stand in where programs are not asked: what cannot be told is believed."""
    return True


class _Kept(Generic[V]):
    """Answers that are believed for a while."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._answers: dict[Any, tuple[float, V]] = {}

    def get(self, key: Any) -> V | None:
        at, value = self._answers.get(key, (float("-inf"), None))
        return value if trio.current_time() < at + self._seconds else None

    def put(self, key: Any, value: V) -> None:
        self._answers[key] = (trio.current_time(), value)


class Models:
    """The catalogues of this machine. `env` is what agent programs are started with."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env
        self._models: _Kept[Sequence[Model]] = _Kept(MODELS_KEPT)
        self._told: _Kept[str] = _Kept(THINKING_KEPT)

    async def offered_by(self, program: Program) -> Sequence[Model] | None:
        """Return a program's models; None if it has none to choose from. Raises AgentError.

        The program is the runtime's own, so that one of a custom profile tells its own models.
        """
        match program.provider:
            case "claude":
                return await self._claude(program)
            case "codex":
                return await self._codex(program)
            case provider if provider in _UNLISTED or provider not in SOURCES:
                return None
        key = (program.provider, program.path, program.args)
        if (kept := self._models.get(key)) is None:
            kept = await self._ask(program, SOURCES[program.provider])
            if kept:
                self._models.put(key, kept)
        return kept

    async def is_valid_level(self, program: Program, model: str, level: str) -> bool:
        """Whether the program takes this level of thinking; what cannot be told is believed.

        `model` "" means the program's own choice.
        """
        if not level:
            return True
        try:
            models = await self.offered_by(program)
        except (AgentError, UnreadableCatalogue, OSError) as error:
            log.info("thinking level not checked", provider=program.provider, error=str(error))
            return True
        return models is not None and catalogue.is_valid_level(models, model, level)

    async def _claude(self, program: Program) -> Sequence[Model]:
        try:
            told = await self._told_by(program, ("--help",))
        except AgentError as error:
            log.info("thinking levels not read", provider=program.provider, error=str(error))
            return catalogue.claude_models(catalogue.PLAIN_LEVELS)
        return catalogue.claude_models(catalogue.read_claude_help(told))

    async def _codex(self, program: Program) -> Sequence[Model]:
        base = catalogue.codex_models()
        try:
            told = await self._told_by(program, ("debug", "models", "--bundled"))
            return catalogue.read_codex_catalogue(told, base)
        except (AgentError, UnreadableCatalogue) as error:
            log.info("models not read", provider=program.provider, error=str(error))
            return base

    async def _told_by(self, program: Program, arguments: tuple[str, ...]) -> str:
        """What a command says, kept as long as the program stays the same."""
        key = (program.provider, program.path, program.version, program.args)
        if (kept := self._told.get(key)) is None:
            kept = await run_command(program, arguments, self._env, limit=_SHORT)
            self._told.put(key, kept)
        return kept

    async def _ask(self, program: Program, source: Source) -> Sequence[Model]:
        failure: Exception | None = None
        for way in source.ways:
            try:
                if found := await self._try(program, way):
                    return found
            except (AgentError, UnreadableCatalogue) as error:
                log.info("models not listed", provider=program.provider, error=str(error))
                failure = failure or error
        found = source.fallback()
        if not found and failure is not None:
            raise AgentError(f"{program.provider} does not tell its models: {failure}")
        return found

    async def _try(self, program: Program, way: Way) -> Sequence[Model]:
        if isinstance(way, Acp):
            env = {**self._env, **way.env}
            session = await open_acp_session(program, way.arguments, env, limit=way.limit)
            return catalogue.read_acp_session(session)
        told = await run_command(
            program, way.arguments, self._env, limit=way.limit, banner=way.banner
        )
        return way.read(told)


async def run_command(
    program: Program,
    arguments: Sequence[str],
    env: Mapping[str, str],
    *,
    limit: float,
    banner: bool = False,
) -> str:
    """Run a program to its end, without input; return what it says. Raises AgentError.

    `banner` adds its standard error. `limit` is in seconds; nothing it started is left afterwards.
    """
    argv = [program.path, *program.args, *arguments]
    if banner:
        argv = ["/bin/sh", "-c", 'exec "$0" "$@" 2>&1', *argv]
    said: list[str] = []
    size = 0
    try:
        with trio.fail_after(limit), tempfile.TemporaryDirectory(prefix="bullpen-") as place:
            launch = Launch(label=program.provider, argv=argv, cwd=Path(place), env=env)
            async with open_process(launch) as process:
                process.close_stdin()
                while (line := await process.receive_line()) is not None:
                    size += len(line)
                    if size > _LARGEST_OUTPUT:
                        raise LineTooLong(f"more than {_LARGEST_OUTPUT} bytes of output")
                    said.append(line.decode("utf-8", "replace"))
                await process.wait()
                if process.exit_code:
                    told = process.stderr_tail() or "\n".join(said[-5:])
                    raise AgentError(
                        f"{program.provider} {' '.join(arguments)} ended with exit code"
                        f" {process.exit_code}: {told[-500:].strip()}"
                    )
    except trio.TooSlowError:
        raise AgentError(
            f"{program.provider} {' '.join(arguments)} did not end within {limit:g} s"
        ) from None
    except LineTooLong as error:
        raise AgentError(f"{program.provider} {' '.join(arguments)}: {error}") from error
    return "\n".join(said) + "\n"


async def open_acp_session(
    program: Program, arguments: Sequence[str], env: Mapping[str, str], *, limit: float
) -> Any:
    """Open a session over ACP and throw it away; return what `session/new` answered.

    Raises AgentError. `limit` is in seconds for the whole exchange.
    """
    try:
        with trio.fail_after(limit), tempfile.TemporaryDirectory(prefix="bullpen-") as place:
            argv = [program.path, *program.args, *arguments]
            launch = Launch(label=program.provider, argv=argv, cwd=Path(place), env=env)
            async with open_process(launch) as process:
                about = {"name": "bullpen", "version": "1"}
                wanted = {"protocolVersion": 1, "clientInfo": about, "clientCapabilities": {}}
                await _call(process, program, 0, "initialize", wanted)
                place_of_work = {"cwd": place, "mcpServers": []}
                return await _call(process, program, 1, "session/new", place_of_work)
    except trio.TooSlowError:
        raise AgentError(f"{program.provider} did not answer within {limit:g} s") from None
    except LineTooLong as error:
        raise AgentError(f"{program.provider}: {error}") from error


async def _call(
    process: AgentProcess, program: Program, number: int, method: str, params: dict[str, Any]
) -> Any:
    """Call a method and return its result; what the agent asks meanwhile is declined."""
    _write(process, {"id": number, "method": method, "params": params})
    while (line := await process.receive_line()) is not None:
        said = parse(line)
        if said is None:
            continue  # a banner
        if "method" in said:
            if "id" in said:
                error = {"code": _METHOD_NOT_FOUND, "message": "not offered here"}
                _write(process, {"id": said["id"], "error": error})
            continue
        if said.get("id") != number:
            continue
        if "error" in said:
            error = said["error"] if isinstance(said["error"], dict) else {}
            raise AgentError(f"{program.provider} {method}: {error.get('message', 'failed')}")
        return said.get("result")
    told = process.stderr_tail()[-500:]
    raise AgentError(f"{program.provider} ended before it answered {method}: {told}".rstrip(": "))


def _write(process: AgentProcess, message: dict[str, Any]) -> None:
    process.send(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
