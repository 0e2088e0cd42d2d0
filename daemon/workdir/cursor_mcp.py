"""MCP servers that cursor takes from files: what they are, and that they are approved (05 §12). ◇

Cursor reads `.cursor/mcp.json` at the top of the project and asks before it uses a server, unless its
data directory says that it was approved. The task gets a data directory of its own, so nothing is
approved in the user's name.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from daemon.workdir.errors import PrepareError

MCP_FILE: Final = ".cursor/mcp.json"


def managed_servers(mcp_config: Any) -> dict[str, dict[str, Any]] | None:
    """Return the servers an agent is configured with, None if it leaves them to the user.

    Raises PrepareError.
    """
    if mcp_config is None:
        return None
    servers = mcp_config.get("mcpServers", {}) if isinstance(mcp_config, Mapping) else None
    if not isinstance(servers, Mapping):
        raise PrepareError("the agent's MCP configuration has no object of servers")
    for name, server in servers.items():
        if not name.strip() or not isinstance(server, Mapping):
            raise PrepareError(f"MCP server {name!r} is not an object with a name")
    return {name: dict(server) for name, server in servers.items()}


def mcp_file(servers: Mapping[str, Mapping[str, Any]]) -> str:
    return json.dumps({"mcpServers": servers}, indent=2, ensure_ascii=False) + "\n"


def data_files(project: Path, servers: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the files of cursor's data directory, by their path in it."""
    folder = f"projects/{re.sub(r'[^A-Za-z0-9]+', '-', str(project)).strip('-')}"
    trusted = {
        "trustedAt": "1970-01-01T00:00:00Z",
        "workspacePath": str(project),
        "trustMethod": "multica-managed",
    }
    approvals = [f"{name}-{_approval(project, servers[name])}" for name in sorted(servers)]
    return {
        f"{folder}/mcp-approvals.json": json.dumps(approvals),
        f"{folder}/.workspace-trusted": json.dumps(trusted),
    }


def _approval(project: Path, server: Mapping[str, Any]) -> str:
    """What cursor itself computes; keys of the server in the order they are written in."""
    path = json.dumps(str(project), ensure_ascii=False)
    text = json.dumps(server, ensure_ascii=False, separators=(",", ":"))
    whole = f'{{"path":{path},"server":{text}}}'
    return hashlib.sha256(whole.encode()).hexdigest()[:16]
