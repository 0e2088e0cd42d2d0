"""Claude Code: how it is started, and what may not be changed about that (spec 04 §2.1). ◇

Everything it says is the stream-JSON driver's business.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from daemon.agents.arguments import Takes, filter_arguments
from daemon.agents.contract import AgentError, AgentRun

LABEL: Final = "claude"

_BLOCKED: Final[Mapping[str, Takes]] = {
    "-p": "nothing",
    "--print": "nothing",
    "--output-format": "value",
    "--input-format": "value",
    "--permission-mode": "value",
    "--mcp-config": "value",
    "--effort": "value",
}
_SANDBOX_WORDS: Final = frozenset({"1", "true", "yes", "on"})


def arguments(run: AgentRun, *, mcp_file: str = "") -> list[str]:
    """Build the command line, program included.

    Variadic flags are never last before users' arguments, where a positional would join them.
    """
    argv = [run.program.path, *run.program.args, "-p"]
    argv += ["--output-format", "stream-json", "--input-format", "stream-json", "--verbose"]
    argv += ["--disallowedTools", "AskUserQuestion"]
    if mcp_file:
        argv += ["--mcp-config", mcp_file, "--strict-mcp-config"]
    argv += ["--permission-mode", "bypassPermissions"]
    for flag, value in (
        ("--model", run.model),
        ("--effort", run.thinking_level),
        ("--max-turns", str(run.max_turns or "")),
        ("--append-system-prompt", run.system_prompt),
        ("--resume", run.resume_session_id),
    ):
        argv += [flag, value] if value else []
    argv += filter_arguments(run.extra_args, _BLOCKED, label=LABEL)
    argv += filter_arguments(run.custom_args, _BLOCKED, label=LABEL)
    return argv


def environment(env: Mapping[str, str], *, is_root: bool | None = None) -> dict[str, str]:
    """Return the environment to start it with. Raises AgentError where it would refuse to run.

    As root it bypasses permissions only inside what it is told is a sandbox, and it wants to be
    told in exactly one way; whoever runs Bullpen decides, not Bullpen.
    """
    result = dict(env)
    if not (os.geteuid() == 0 if is_root is None else is_root):
        return result
    if result.get("CLAUDE_CODE_BUBBLEWRAP") == "1":
        return result
    if result.get("IS_SANDBOX", "").strip().lower() not in _SANDBOX_WORDS:
        raise AgentError(
            "claude refuses to work unattended as root: run the daemon as an ordinary user, or set"
            " IS_SANDBOX=1 for the daemon if this machine is a sandbox"
        )
    result["IS_SANDBOX"] = "1"
    return result
