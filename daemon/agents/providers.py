"""The agent programs Bullpen knows, as data. ◇

A provider is offered only when a driver for it exists (`launch.DRIVERS`); the others stand here so
that a driver is all that has to be added (spec 03 §3.5).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Final

import attrs

Version = tuple[int, int, int]
_VERSION: Final = re.compile(r"v?(\d+)\.(\d+)\.(\d+)")


@attrs.frozen(kw_only=True)
class Provider:
    """What discovery needs to know.

    `settings` is the middle of its variables (`BULLPEN_<settings>_PATH`). `in_login_shell` allows
    the login-shell fallback, `places` are tried last.
    """

    name: str
    title: str
    command: str
    settings: str
    minimum: Version | None = None
    in_login_shell: bool = True
    places: tuple[str, ...] = ()

    @property
    def path_variable(self) -> str:
        return f"BULLPEN_{self.settings}_PATH"


_CODEX_APP: Final = "Applications/Codex.app/Contents/Resources/codex"
DEMO: Final = "demo"

PROVIDERS: Final[Mapping[str, Provider]] = {
    provider.name: provider
    for provider in (
        Provider(
            name="claude",
            title="Claude Code",
            command="claude",
            settings="CLAUDE",
            minimum=(2, 0, 0),
        ),
        Provider(
            name="codex",
            title="Codex",
            command="codex",
            settings="CODEX",
            minimum=(0, 100, 0),
            places=(f"/{_CODEX_APP}", f"~/{_CODEX_APP}"),
        ),
        Provider(
            name="copilot",
            title="GitHub Copilot",
            command="copilot",
            settings="COPILOT",
            minimum=(1, 0, 0),
        ),
        Provider(name="opencode", title="OpenCode", command="opencode", settings="OPENCODE"),
        Provider(name="openclaw", title="OpenClaw", command="openclaw", settings="OPENCLAW"),
        Provider(name="hermes", title="Hermes", command="hermes", settings="HERMES"),
        Provider(name="pi", title="Pi", command="pi", settings="PI"),
        Provider(name="cursor", title="Cursor", command="cursor-agent", settings="CURSOR"),
        Provider(name="kimi", title="Kimi", command="kimi", settings="KIMI"),
        Provider(name="kiro", title="Kiro", command="kiro-cli", settings="KIRO"),
        Provider(name="codebuddy", title="CodeBuddy", command="codebuddy", settings="CODEBUDDY"),
        Provider(name="antigravity", title="Antigravity", command="agy", settings="ANTIGRAVITY"),
        Provider(
            name="qoder",
            title="Qoder",
            command="qodercli",
            settings="QODER",
            in_login_shell=False,
        ),
        Provider(name="qwen", title="Qwen Code", command="qwen", settings="QWEN"),
        Provider(name="gemini", title="Gemini CLI", command="gemini", settings="GEMINI"),
        # Ships with Bullpen and runs by Bullpen's own Python, so it is never searched for.
        Provider(name=DEMO, title="Demo", command="", settings="DEMO", in_login_shell=False),
    )
}


def parse_version(output: str) -> tuple[str, Version | None]:
    """Return what to show as the version and its numbers, if any (spec 03 §3.6)."""
    for line in output.splitlines():
        if match := _VERSION.search(line):
            major, minor, patch = (int(part) for part in match.groups())
            return line.strip(), (major, minor, patch)
    return output.strip(), None


def too_old(provider: Provider, version: Version | None) -> bool:
    """Say whether a version is known to be below the minimum; an unreadable one is given a try."""
    return provider.minimum is not None and version is not None and version < provider.minimum


def chosen_command(provider: Provider, env: Mapping[str, str]) -> str:
    """Return the command to look for: the user's, else the provider's own."""
    return env.get(provider.path_variable, "").strip() or provider.command


def is_pinned(command: str) -> bool:
    """Say whether a command names a place, so that nothing else may stand in for it."""
    return os.sep in command
