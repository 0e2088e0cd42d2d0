"""Where a command gets its server, workspace and token from (spec 06 §20.1, §20.3, 03 §3.3).

Outside a task: flag, then `BULLPEN_*`, then the config file. Inside a task (agent context) only
flags and the `MULTICA_*` variables that the daemon gave count: the token must be the task's own,
and the owner's config file is neither read nor written. No command reads the environment by
itself; everything passes through one Settings.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import attrs

from daemon.cli.errors import CliError
from shared.home import Home, find_home, write_private
from shared.ids import TASK_TOKEN

DEFAULT_TIMEOUT: Final = 30.0
"""Seconds one request may take, unless the environment says otherwise."""

DEFAULT_PATIENCE: Final = 3600.0
"""Seconds a call inside a task waits for a server that is away, at most; it ends with the task."""

_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?|\.\d+)(ms|s|m|h)?")
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}
_OFF: Final = frozenset({"", "0", "false", "no", "off"})

CONFIG_KEYS: Final = ("server_url", "app_url", "workspace_id")
"""What `config set` may change; the token is `login`'s."""


@attrs.define(slots=False)
class Settings:
    """One command's settings. The `flag_*` values are None when the flag was not given."""

    env: Mapping[str, str] = attrs.field(factory=lambda: os.environ, repr=False)
    flag_home: str | None = None
    profile: str = ""
    flag_server_url: str | None = None
    flag_workspace_id: str | None = None
    flag_debug: bool = False
    transport: Any = attrs.field(default=None, repr=False)
    """A test's stand-in for the network; None is the real one."""

    @cached_property
    def home(self) -> Home:
        if self.profile and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.profile):
            raise CliError(
                f"profile name {self.profile!r} may only have letters, digits, dot, dash and "
                "underscore"
            )
        return find_home(self.env, home=self.flag_home, profile=self.profile)

    @cached_property
    def agent_context(self) -> bool:
        """Whether an agent inside a task is calling."""
        return bool(self._env("MULTICA_AGENT_ID") or self._env("MULTICA_TASK_ID"))

    @property
    def agent_id(self) -> str:
        return self._env("MULTICA_AGENT_ID")

    @property
    def task_id(self) -> str:
        return self._env("MULTICA_TASK_ID")

    @property
    def debug(self) -> bool:
        return self.flag_debug or self._either("DEBUG").lower() not in _OFF

    @property
    def timeout(self) -> float:
        """Seconds one request may take. Raises CliError for a malformed value."""
        text = self._either("HTTP_TIMEOUT")
        if not text:
            return DEFAULT_TIMEOUT
        match = _DURATION.fullmatch(text)
        seconds = float(match[1]) * _SECONDS[match[2]] if match else 0.0
        if seconds <= 0:
            raise CliError(f"BULLPEN_HTTP_TIMEOUT must be a duration such as 45s, not {text!r}")
        return seconds

    @property
    def patience(self) -> float:
        """Seconds a call inside a task waits for a server that is away; 0 for a person's call.

        Raises CliError for a malformed value.
        """
        text = self._either("TASK_PATIENCE")
        if not self.agent_context:
            return 0.0
        if not text:
            return DEFAULT_PATIENCE
        match = _DURATION.fullmatch(text)
        if match is None:
            raise CliError(f"BULLPEN_TASK_PATIENCE must be a duration such as 30m, not {text!r}")
        return float(match[1]) * _SECONDS[match[2]]

    @cached_property
    def config(self) -> dict[str, Any]:
        """The config file's content; empty in agent context, where it is never opened."""
        return {} if self.agent_context else read_config(self.home)

    def server_url(self) -> str:
        """The server's base URL, cleaned. Raises CliError when nothing names one."""
        if self.flag_server_url is not None:
            named = self.flag_server_url.strip()
        else:
            named = self._own("SERVER_URL")
        named = named or self._configured("server_url")
        if not named:
            if self.agent_context:
                raise CliError("MULTICA_SERVER_URL is not set in this task's environment")
            raise CliError(
                "no server known: start one with `bullpen up`, or name one with --server-url"
            )
        return clean_url(named)

    def try_workspace_id(self) -> str:
        """The selected workspace, or an empty string."""
        if self.flag_workspace_id is not None and self.flag_workspace_id.strip():
            return self.flag_workspace_id.strip()
        return self._own("WORKSPACE_ID") or self._configured("workspace_id")

    def workspace_id(self) -> str:
        """The selected workspace. Raises CliError when nothing names one."""
        found = self.try_workspace_id()
        if not found:
            if self.agent_context:
                raise CliError("MULTICA_WORKSPACE_ID is not set in this task's environment")
            raise CliError(
                "no workspace selected: use `bullpen workspace switch <slug>` or --workspace-id"
            )
        return found

    def try_token(self) -> str:
        """The token that would be used, of any kind, or an empty string."""
        return self._own("TOKEN") or self._configured("token")

    def token(self) -> str:
        """The token to call with. Raises CliError when there is none or it may not be used here."""
        found = self.try_token()
        if self.agent_context and not found.startswith(TASK_TOKEN):
            raise CliError(
                "inside a task only the task's own token may be used: MULTICA_TOKEN must start "
                f"with {TASK_TOKEN}"
            )
        if not found:
            raise CliError("not signed in: run `bullpen up`, or `bullpen login --token <token>`", 3)
        if not (found.isascii() and found.isprintable()) or " " in found:
            raise CliError("the token has characters that no token has; sign in again", 3)
        return found

    def app_url(self) -> str:
        """Where the web pages are: the server itself unless told otherwise."""
        named = self._own("APP_URL") or self._configured("app_url")
        return clean_url(named) if named else self.server_url()

    def save(self, **changes: Any) -> None:
        """Change the config file, keeping every key it has that we do not know; None removes one.

        Raises CliError in agent context and when the file cannot be written.
        """
        if self.agent_context:
            raise CliError("inside a task the owner's settings cannot be changed")
        self.config = save_config(self.home, changes)

    def _env(self, name: str) -> str:
        return self.env.get(name, "").strip()

    def _own(self, name: str) -> str:
        """A variable by the prefix that counts here."""
        return self._env(("MULTICA_" if self.agent_context else "BULLPEN_") + name)

    def _either(self, name: str) -> str:
        """A variable that says nothing about who is calling: both prefixes count."""
        return self._env("BULLPEN_" + name) or self._env("MULTICA_" + name)

    def _configured(self, key: str) -> str:
        value = self.config.get(key)
        return value.strip() if isinstance(value, str) else ""


def read_config(home: Home) -> dict[str, Any]:
    """Read a home's config file; a missing or empty one is empty.

    Raises CliError when it is unreadable.
    """
    path = home.config_file
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"cannot read {path}: {_reason(error)}") from error
    if not text.strip():
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CliError(f"{path} is not valid JSON ({error}); mend or remove it") from error
    if not isinstance(value, dict):
        raise CliError(f"{path} must hold a JSON object; mend or remove it")
    return value


def save_config(home: Home, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Apply changes to a home's config file and return the result. Raises CliError."""
    config = read_config(home)
    for key, value in changes.items():
        if value:
            config[key] = value
        else:
            config.pop(key, None)
    try:
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        write_private(home.config_file, text)
    except OSError as error:
        raise CliError(f"cannot write {home.config_file}: {_reason(error)}") from error
    return config


def clean_url(text: str) -> str:
    """Bring a server URL to its base form (spec 06 §20.1). Raises CliError."""
    try:
        parts = urlsplit(text.strip())
        port_is_valid = parts.port is None or parts.port > 0
    except ValueError:
        parts, port_is_valid = urlsplit(""), False
    scheme = {"ws": "http", "wss": "https"}.get(parts.scheme, parts.scheme)
    if scheme not in ("http", "https") or not parts.hostname or not port_is_valid:
        raise CliError(f"{text!r} is not a server URL; it looks like http://127.0.0.1:8080")
    path = parts.path.rstrip("/")
    if path == "/ws":
        path = ""
    return urlunsplit((scheme, parts.netloc, path, "", ""))


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
