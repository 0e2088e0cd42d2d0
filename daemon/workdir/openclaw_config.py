"""The configuration an openclaw task runs with (spec 05 §13).

It includes the user's own and changes three things: the workspace is the task's directory, the
agent's MCP servers take the place of the user's if it has any of its own, and a gateway is used if
the agent asks for one. The user's configuration is asked for, never guessed: a task on half a
configuration would do harm, so every failure is one. Nothing runs here beyond the questions.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import attrs
import structlog
import trio

from daemon.workdir.errors import PrepareError
from daemon.workdir.layout import Layout
from shared.home import write_private
from shared.wire.task import TaskAgent

log = structlog.get_logger(__name__)

ANSWER_WITHIN: Final = 5.0
"""Seconds for each question to the program."""

_NOT_SET: Final = ("No value at ", "not set", "missing key", "Path not found")


@attrs.frozen(kw_only=True)
class OpenClaw:
    """The program, as it is asked about its configuration."""

    path: str
    env: Mapping[str, str] = attrs.field(repr=False)

    async def ask(self, *words: str) -> str:
        """Return what `openclaw config …` prints. Raises PrepareError with what it says instead."""
        command = f"openclaw config {' '.join(words)}"
        try:
            with trio.fail_after(ANSWER_WITHIN):
                done = await trio.run_process(
                    [self.path, "config", *words],
                    env=dict(self.env),
                    stdin=subprocess.DEVNULL,
                    capture_stdout=True,
                    capture_stderr=True,
                    check=False,
                )
        except trio.TooSlowError:
            raise PrepareError(f"{command}: no answer in {ANSWER_WITHIN:g} s") from None
        except OSError as error:
            raise PrepareError(f"{command}: {error}") from error
        told = done.stdout.decode("utf-8", "replace")
        if done.returncode:
            said = done.stderr.decode("utf-8", "replace").strip() or told.strip()
            raise PrepareError(f"{command}: {said[:500]}")
        return told


async def provide_openclaw(
    openclaw: OpenClaw, layout: Layout, agent: TaskAgent | None
) -> dict[str, str]:
    """Write the task's configuration; return the variables that name it. Raises PrepareError."""
    servers = managed_servers(agent.mcp_config if agent is not None else None)
    gateway = gateway_of(agent.runtime_config if agent is not None else None)
    active = _active_config(await openclaw.ask("file"), openclaw.env)
    agents = await _agents(openclaw) if active.exists() else []
    included = active if active.exists() else None
    if servers is not None and included is not None:
        included = await _snapshot(openclaw, layout)
    config = config_of(
        str(layout.work_dir), agents, included=included, servers=servers, gateway=gateway
    )
    path = layout.env_root / "openclaw-config.json"
    try:
        write_private(path, json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise PrepareError(f"cannot write {path}: {error}") from error
    variables = {"OPENCLAW_CONFIG_PATH": str(path)}
    if included == active:
        roots = openclaw.env.get("OPENCLAW_INCLUDE_ROOTS", "").split(os.pathsep)
        granted = dict.fromkeys(root for root in (str(active.parent), *roots) if root.strip())
        variables["OPENCLAW_INCLUDE_ROOTS"] = os.pathsep.join(granted)
    return variables


def config_of(
    work_dir: str,
    agents: list[Any],
    *,
    included: Path | None,
    servers: Mapping[str, Any] | None,
    gateway: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the configuration; `included` is the file it builds on."""
    section: dict[str, Any] = {"defaults": {"workspace": work_dir}}
    if agents:
        section["list"] = [
            {**each, "workspace": work_dir} if isinstance(each, Mapping) else each
            for each in agents
        ]
    config: dict[str, Any] = {"$include": [str(included)]} if included is not None else {}
    config["agents"] = section
    if servers is not None:
        config["mcp"] = {"servers": dict(servers)}
    if gateway:
        config["gateway"] = dict(gateway)
    return config


def managed_servers(mcp_config: Any) -> dict[str, Any] | None:
    """Return the agent's own MCP servers, None if it has the user's. Raises PrepareError."""
    if mcp_config is None:
        return None
    servers = mcp_config.get("mcpServers", {}) if isinstance(mcp_config, Mapping) else None
    if not isinstance(servers, Mapping):
        raise PrepareError("the agent's MCP configuration has no object of servers")
    for name, server in servers.items():
        if not isinstance(server, Mapping) or not (server.get("command") or server.get("url")):
            raise PrepareError(f"MCP server {name!r} has neither a command nor a url")
    return dict(servers)


def gateway_of(runtime_config: Any) -> dict[str, Any]:
    """Return the gateway of an agent in gateway mode; {} in local mode, whatever else is there."""
    if not isinstance(runtime_config, Mapping) or runtime_config.get("mode") != "gateway":
        return {}
    told = runtime_config.get("gateway")
    if not isinstance(told, Mapping):
        log.warning("gateway mode without a gateway")
        return {}
    gateway: dict[str, Any] = {key: told[key] for key in ("host", "port") if told.get(key)}
    if told.get("tls"):
        gateway["tls"] = True
    if told.get("token"):
        gateway["auth"] = {"mode": "token", "token": told["token"]}
    return gateway


def _active_config(told: str, env: Mapping[str, str]) -> Path:
    """Return the user's configuration file, which need not exist, from what the program says."""
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    text = lines[-1] if lines else ""
    if text.startswith("~/"):
        text = env.get("HOME", str(Path.home())) + text[1:]
    path = Path(text)
    if not path.is_absolute() or path.is_dir():
        raise PrepareError(f"openclaw names no configuration file: {text[:200]!r}")
    return path


async def _agents(openclaw: OpenClaw) -> list[Any]:
    try:
        text = await openclaw.ask("get", "agents.list", "--json")
    except PrepareError as error:
        if any(phrase in str(error) for phrase in _NOT_SET):
            return []
        raise
    value = _json(text)
    if value is None:
        return []
    if not isinstance(value, list):
        raise PrepareError("openclaw's agents.list is no list")
    return value


async def _snapshot(openclaw: OpenClaw, layout: Layout) -> Path | None:
    """Write the user's configuration without its MCP servers; None if there is none."""
    value = _json(await openclaw.ask("get", "--json"))
    if value is None:
        return None
    if not isinstance(value, dict):
        raise PrepareError("openclaw's configuration is no object")
    if isinstance(value.get("mcp"), dict):
        value["mcp"].pop("servers", None)
        if not value["mcp"]:
            del value["mcp"]
    path = layout.env_root / "openclaw-user-snapshot.json"
    try:
        write_private(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise PrepareError(f"cannot write {path}: {error}") from error
    return path


def _json(text: str) -> Any:
    if not text.strip():
        return None
    try:
        return json.loads(text)
    except ValueError as error:
        raise PrepareError(f"openclaw's answer is no JSON: {error}") from error
