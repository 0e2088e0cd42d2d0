"""The environment of an agent's process: what it must know, minus what it must not (spec 01 §7).

The daemon's own variables go: they name its home and its secrets, and an agent that inherits them
acts with its owner's credentials. What the agent gets instead is its task's token.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import structlog

from daemon.agents.providers import DEMO
from daemon.repos import desk
from shared.home import Home, write_private
from shared.wire.task import ClaimedTask

log = structlog.get_logger(__name__)

_DROPPED: Final = frozenset(
    {
        "CLAUDECODE",
        "CLAUDE_CODE_ENTRYPOINT",
        "CLAUDE_CODE_EXECPATH",
        "CLAUDE_CODE_SESSION_ID",
        "CLAUDE_CODE_SSE_PORT",
    }
)
"""Marks of a Claude Code session the daemon itself may run in."""

_DROPPED_PREFIXES: Final = ("CLAUDECODE_", "BULLPEN_", "MULTICA_")

_SHORTEST_WITHIN: Final = 16
"""Characters of a string within JSON that is taken for a secret: not "service_account"."""

_BLOCKED: Final = frozenset(
    {
        "HOME",
        "PATH",
        "USER",
        "SHELL",
        "SSH_AUTH_SOCK",  # with HOME it decides what an isolated agent sees of the machine
        "TERM",
        "TMPDIR",
        "CODEX_HOME",
        "CURSOR_DATA_DIR",
        "OPENCLAW_CONFIG_PATH",
        "OPENCLAW_INCLUDE_ROOTS",
    }
)
"""What an agent's own `custom_env` may not set."""


def build_environment(
    task: ClaimedTask,
    *,
    base: Mapping[str, str],
    provider: str,
    slot: int,
    server_url: str,
    control_port: int,
    launcher: Path,
    tmp: Path,
    as_root: bool,
    checkout_secret: str = "",
    owner_id: str = "",
) -> dict[str, str]:
    """Return the complete environment of the agent's process.

    `base` is the daemon's environment, `launcher` the directory that holds the `bullpen` command,
    `owner_id` the user to whom the machine belongs.
    """
    env = inherited(base)
    agent = task.agent
    for name, value in (agent.custom_env if agent is not None else {}).items():
        if is_blocked(name) or not _is_settable(name, value):
            log.warning("agent's variable not set", task_id=task.id, name=name)
        else:
            env[name] = value
    env |= {
        "MULTICA_TOKEN": task.auth_token,
        "MULTICA_SERVER_URL": server_url,
        "MULTICA_DAEMON_PORT": str(control_port),
        "MULTICA_WORKSPACE_ID": task.workspace_id,
        "MULTICA_AGENT_ID": task.agent_id,
        "MULTICA_AGENT_NAME": (agent.name if agent is not None else "") or "agent",
        "MULTICA_TASK_ID": task.id,
        "MULTICA_TASK_SLOT": str(slot),
        "PATH": os.pathsep.join(filter(None, (str(launcher), base.get("PATH", os.defpath)))),
        "TMPDIR": str(tmp),
    }
    if checkout_secret:
        env[desk.SECRET] = checkout_secret
    if task.autopilot_run_id:
        env["MULTICA_AUTOPILOT_RUN_ID"] = task.autopilot_run_id
    if task.autopilot_id:
        env["MULTICA_AUTOPILOT_ID"] = task.autopilot_id
    if task.quick_create_prompt:
        env["MULTICA_QUICK_CREATE_TASK_ID"] = task.id
        if task.quick_create_attachment_ids:
            ids = json.dumps(task.quick_create_attachment_ids)
            env["MULTICA_QUICK_CREATE_ATTACHMENT_IDS"] = ids
    asked_by_owner = task.initiator_type == "member" and task.initiator_id == owner_id
    if provider == DEMO and owner_id and asked_by_owner:
        env["MULTICA_DEMO_OWNER"] = owner_id
    if as_root and provider == "claude" and env.get("IS_SANDBOX") != "1":
        # as root the program refuses to work unattended unless this says exactly "1"
        log.info("running as root: IS_SANDBOX=1 for claude", task_id=task.id)
        env["IS_SANDBOX"] = "1"
    return env


def inherited(base: Mapping[str, str]) -> dict[str, str]:
    """What of the daemon's environment an agent program may have: nothing of the daemon's own."""
    return {name: value for name, value in base.items() if not _is_dropped(name)}


def secrets_of(task: ClaimedTask) -> list[str]:
    """The values that must not appear in the task's transcript.

    They are the token, the agent's own variables, the token of its gateway, and what its MCP servers
    get as `env` and `headers`, where a scheme's name ("Bearer …") is no part of the secret. A value
    that is JSON, as keys of services often are, has values of its own.
    """
    agent = task.agent
    if agent is None:
        return [task.auth_token]
    found = [task.auth_token]
    for value in agent.custom_env.values():
        found += [value, *_within(value)]
    found += _texts(_member(_member(agent.runtime_config, "gateway"), "token"))
    servers = _member(agent.mcp_config, "mcpServers")
    for server in servers.values() if isinstance(servers, Mapping) else ():
        for text in _texts([_member(server, "env"), _member(server, "headers")]):
            scheme, _, rest = text.partition(" ")
            found += [text, rest if scheme.isalpha() else "", *_within(text)]
    return found


def _texts(value: Any) -> Iterator[str]:
    """All strings in a JSON value, names of members left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for member in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(member)


def _within(text: str) -> list[str]:
    """The strings of a text that is a JSON document and long enough to be no word."""
    if text.lstrip()[:1] not in {"{", "["}:
        return []
    try:
        return [each for each in _texts(json.loads(text)) if len(each) >= _SHORTEST_WITHIN]
    except (ValueError, RecursionError):
        return []


def _member(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else None


def is_blocked(name: str) -> bool:
    """Whether `custom_env` may not set this variable."""
    upper = name.upper()
    return upper in _BLOCKED or upper.startswith(("MULTICA_", "BULLPEN_"))


def make_launcher(home: Home, executable: str = sys.executable) -> Path:
    """Write this installation's command below the home; return the directory it is in.

    It is there as `bullpen`, and as `multica`, which servers of the protocol tell agents to run. The
    directory holds nothing else. The interpreter's own one would put our `python` and `pip`
    before the user's. The interpreter runs isolated, so that neither the agent's working directory
    nor its PYTHONPATH can stand in for our packages.
    """
    source = str(Path(__file__).resolve().parents[2])
    program = (
        f"import sys; sys.path.insert(0, {source!r}); sys.argv[0] = 'bullpen'; "
        "from daemon.cli import main; main()"
    )
    command = shlex.join([executable, "-I", "-c", program])
    folder = home.root / "bin"
    for name in ("bullpen", "multica"):
        script = folder / name
        write_private(script, f'#!/bin/sh\nexec {command} "$@"\n')
        script.chmod(0o755)
    return folder


def _is_dropped(name: str) -> bool:
    return name in _DROPPED or name.startswith(_DROPPED_PREFIXES)


def _is_settable(name: str, value: str) -> bool:
    return bool(name) and "=" not in name and "\0" not in name + value
