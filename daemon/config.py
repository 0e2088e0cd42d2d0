"""The daemon's settings: read once, checked here, passed down frozen.

A flag beats the environment, which beats the config file, which beats the default (spec 03 §3.1).
Flags are given as the variables they override, so that a detached daemon gets them through its
environment. The config file may set any of them in its object `settings`, which a service that no
shell starts needs. Every value is checked before anything starts, and the error names the variable.
What can change while the daemon runs is a new Config, adopted by `reload.py`.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID

import attrs

from daemon.agents.isolation import SETTINGS, Setting
from daemon.agents.providers import PROVIDERS
from daemon.identity import (
    IdentityError,
    legacy_daemon_ids,
    load_daemon_id,
    load_machine_key,
)
from shared.codec import DecodeError, loads
from shared.home import Home, find_home, gather_secrets
from shared.ids import InvalidId, canonical_id
from shared.log import LEVELS

T = TypeVar("T")

_NOT_WRITTEN: Final = frozenset(
    {
        "BULLPEN_DAEMON_TRIAL",
        "BULLPEN_LAUNCHED_BY",
        "BULLPEN_PARENT_PID",
        "BULLPEN_SERVICE",
        "BULLPEN_SERVER_URL",
        "LOG_LEVEL",
    }
)
"""What tells of one start, or has a place of its own in the file."""

DEFAULT_SERVER_URL: Final = "http://localhost:8080"
DEFAULT_PORT: Final = 27514
"""Not the reference's (19514): its `setup`, `stop` and `restart` would find our daemon there and end it."""
_FIRST_PROFILE_PORT: Final = 27515

ARTIFACT_PATTERNS: Final = ("node_modules", ".next", ".turbo")
"""Directories that a build makes again; base names."""

_UNITS: Final = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,  # micro sign
    "μs": 1e-6,  # Greek mu: both are typed
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
    "d": 86400.0,
}
_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h|d)")
_SIZE = re.compile(r"(\d+\.?\d*|\.\d+)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)
_LONGEST: Final = (2**63 - 1) / 1e9
"""Seconds. More does not fit the grammar's native type, 64-bit nanoseconds."""


class ConfigError(Exception):
    """A setting is missing or wrong; the text names it and says what is expected."""


@attrs.frozen(kw_only=True)
class Config:
    """Everything the daemon was told. Durations are seconds; 0 means "no limit" where allowed.

    `min_free_disk` is in bytes; with less, no new task is claimed. `local_usage` lets the server be
    told what agent programs use here beside tasks.

    `parent_pid` is the process whose end ends the daemon too; 0 for none. `service` names the
    service manager that started it. `runtime_name` stands in runtimes' names in place of the
    device's. `environment` holds what the config file adds to the process's environment. `trial`
    is a start that only shows it can: it claims nothing and ends once it is ready.
    """

    home: Home
    server_url: str
    token: str = attrs.field(repr=False)
    daemon_id: str
    machine_key: str = attrs.field(default="", repr=False)
    legacy_daemon_ids: tuple[str, ...] = ()
    device_name: str = "local-machine"
    runtime_name: str = ""
    launched_by: str = ""
    service: str = ""
    trial: bool = False
    poll_interval: float = 30.0
    heartbeat_interval: float = 15.0
    sync_interval: float = 30.0
    max_concurrent_tasks: int = 20
    agent_timeout: float = 0.0
    idle_watchdog: float = 1800.0
    tool_watchdog: float = 7200.0
    codex_semantic_inactivity: float = 600.0
    codex_multi_agent: bool = False
    codex_memory: bool = False
    agents: tuple[str, ...] | None = None
    agent_isolation: Setting = "auto"
    agent_paths: tuple[Path, ...] = ()
    extra_args: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict)
    models: Mapping[str, str] = attrs.field(factory=dict)
    commands: Mapping[str, str] = attrs.field(factory=dict)
    profile_command_overrides: Mapping[str, str] = attrs.field(factory=dict)
    environment: Mapping[str, str] = attrs.field(factory=dict)
    control_port: int = DEFAULT_PORT
    workspaces_root: Path
    auto_update: bool = False
    auto_update_interval: float = 21600.0
    shutdown_grace: float = 10.0
    min_free_disk: int = 200 * 1024**2
    local_usage: bool = True
    gc_enabled: bool = True
    gc_interval: float = 3600.0
    gc_ttl: float = 86400.0
    gc_orphan_ttl: float = 259200.0
    gc_kept_ttl: float = 2592000.0
    gc_artifact_ttl: float = 43200.0
    gc_artifact_patterns: tuple[str, ...] = ARTIFACT_PATTERNS
    log_level: str = "info"
    parent_pid: int = 0


def parse_duration(text: str) -> float:
    """Read `1h30m`, `.5d`, `250ms` or `0` as seconds (grammar: spec 03 §3.2). Raises ValueError."""
    sign, rest = (-1.0, text[1:]) if text.startswith("-") else (1.0, text.removeprefix("+"))
    if rest == "0":
        return 0.0
    total, position = 0.0, 0
    while position < len(rest):
        part = _PART.match(rest, position)
        if part is None:
            raise ValueError(f"{text!r} is not a duration such as 30s, 1h30m or 5d")
        total += float(part[1]) * _UNITS[part[2]]
        position = part.end()
    if position == 0:
        raise ValueError(f"{text!r} is not a duration such as 30s, 1h30m or 5d")
    if total > _LONGEST:
        raise ValueError(f"{text!r} is too long")
    return sign * total


def parse_size(text: str) -> int:
    """Read `200MB`, `1.5 GiB` or `0` as bytes; every unit counts by 1024. Raises ValueError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size such as 200MB or 2GB")
    return int(float(match[1]) * 1024 ** "_kmgt".index(match[2].lower() or "_"))


def normalise_server_url(text: str) -> str:
    """Turn any accepted spelling into the http(s) base URL (spec 01 §1.1). Raises ValueError."""
    parts = urlsplit(text.strip())
    scheme = {"ws": "http", "wss": "https"}.get(parts.scheme, parts.scheme)
    if scheme not in ("http", "https"):
        raise ValueError(f"{text!r} is not an http, https, ws or wss address")
    if not parts.hostname:
        raise ValueError(f"{text!r} names no host")
    path = "" if parts.path == "/ws" else parts.path
    return urlunsplit((scheme, parts.netloc, path, "", "")).rstrip("/")


def profile_port(profile: str) -> int:
    """Return the control port of a CLI profile: as in spec 03 §1, from another beginning."""
    if not profile:
        return DEFAULT_PORT
    return _FIRST_PROFILE_PORT + sum(profile.encode()) % 1000


def load_config(
    env: Mapping[str, str] = os.environ,
    flags: Mapping[str, str] | None = None,
    *,
    home: str | Path | None = None,
    profile: str = "",
    file: Mapping[str, Any] | None = None,
) -> Config:
    """Read and check every setting; `flags` holds variables given on the command line.

    `file` stands for the config file's object, if given. Raises ConfigError. Reads the config file and the machine's daemon id
    and key, making the latter two.
    """
    place = find_home(env, home=home, profile=profile)
    file = read_config_file(place) if file is None else file
    written = _settings(place, file)
    read = _Reader(written, env, flags or {})
    hostname = socket.gethostname()
    token = _text(file, "token")
    if not token:
        hint = f" --profile {profile}" if profile else ""
        raise ConfigError(f"not signed in ({place.config_file}): run `bullpen login{hint}`")
    daemon_id = read.value("BULLPEN_DAEMON_ID", _id, "")
    try:
        daemon_id = daemon_id or load_daemon_id(place)
        machine_key = load_machine_key(place)
    except IdentityError as error:
        raise ConfigError(str(error)) from error
    keep = read.value("BULLPEN_KEEP_ENV_AFTER_TASK", _switch, False)
    commands = _per_provider(read, "PATH", str)
    disk = _disk_settings(read, place)
    config = Config(
        home=place,
        server_url=read.value(
            "BULLPEN_SERVER_URL",
            normalise_server_url,
            None,
        )
        or _file_url(place, _text(file, "server_url")),
        token=token,
        daemon_id=daemon_id,
        machine_key=machine_key,
        legacy_daemon_ids=legacy_daemon_ids(place, hostname=hostname, daemon_id=daemon_id),
        device_name=read.text("BULLPEN_DAEMON_DEVICE_NAME") or hostname or "local-machine",
        runtime_name=read.text("BULLPEN_AGENT_RUNTIME_NAME"),
        launched_by=read.text("BULLPEN_LAUNCHED_BY"),
        service=read.text("BULLPEN_SERVICE"),
        trial=read.value("BULLPEN_DAEMON_TRIAL", _switch, False),
        poll_interval=read.value("BULLPEN_DAEMON_POLL_INTERVAL", _some_time, 30.0),
        heartbeat_interval=read.value("BULLPEN_DAEMON_HEARTBEAT_INTERVAL", _some_time, 15.0),
        sync_interval=read.value("BULLPEN_DAEMON_SYNC_INTERVAL", _some_time, 30.0),
        max_concurrent_tasks=read.value("BULLPEN_DAEMON_MAX_CONCURRENT_TASKS", _count, 20),
        agent_timeout=read.value("BULLPEN_AGENT_TIMEOUT", _time, 0.0),
        idle_watchdog=read.value("BULLPEN_AGENT_IDLE_WATCHDOG", _time, 1800.0),
        tool_watchdog=read.value("BULLPEN_AGENT_TOOL_WATCHDOG", _time, 7200.0),
        codex_semantic_inactivity=read.value(
            "BULLPEN_CODEX_SEMANTIC_INACTIVITY_TIMEOUT", _some_time, 600.0
        ),
        codex_multi_agent=read.value("BULLPEN_CODEX_MULTI_AGENT", _switch, False),
        codex_memory=read.value("BULLPEN_CODEX_MEMORY", _switch, False),
        agents=read.value("BULLPEN_AGENTS", _names, None),
        agent_isolation=read.value("BULLPEN_AGENT_ISOLATION", _isolation, "auto"),
        agent_paths=read.value("BULLPEN_AGENT_PATHS", _paths, ()),
        extra_args=_per_provider(read, "ARGS", _words),
        models=_per_provider(read, "MODEL", str),
        commands=commands,
        profile_command_overrides=_overrides(file),
        environment=_environment(place, file, env, commands),
        control_port=read.value("BULLPEN_DAEMON_PORT", _port, profile_port(profile)),
        workspaces_root=disk.workspaces_root,
        gc_enabled=read.value("BULLPEN_GC_ENABLED", _switch, True) and not keep,
        gc_interval=read.value("BULLPEN_GC_INTERVAL", _some_time, 3600.0),
        gc_ttl=read.value("BULLPEN_GC_TTL", _time, 86400.0),
        gc_orphan_ttl=read.value("BULLPEN_GC_ORPHAN_TTL", _time, 259200.0),
        gc_kept_ttl=disk.kept_ttl,
        gc_artifact_ttl=read.value("BULLPEN_GC_ARTIFACT_TTL", _time, 43200.0),
        gc_artifact_patterns=disk.artifact_patterns,
        auto_update=read.value("BULLPEN_DAEMON_AUTO_UPDATE", _switch, False),
        auto_update_interval=read.value("BULLPEN_DAEMON_AUTO_UPDATE_INTERVAL", _some_time, 21600.0),
        shutdown_grace=read.value("BULLPEN_DAEMON_SHUTDOWN_GRACE", _time, 10.0),
        min_free_disk=read.value("BULLPEN_MIN_FREE_DISK", parse_size, 200 * 1024**2),
        local_usage=read.value("BULLPEN_LOCAL_USAGE", _switch, True),
        log_level=read.value("BULLPEN_LOG_LEVEL", _level, read.value("LOG_LEVEL", _level, "info")),
        parent_pid=read.value("BULLPEN_PARENT_PID", _whole, 0),
    )
    _check_intervals(config)
    for name in written:
        if name not in read.asked or name in _NOT_WRITTEN:
            near = get_close_matches(name, read.asked - _NOT_WRITTEN, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"{place.config_file}: there is no setting {name}{hint}")
    return config


LONGEST_BEAT: Final = 45.0
"""Seconds after which a server of ours that was told nothing else counts a machine as away."""


def _check_intervals(config: Config) -> None:
    """Refuse intervals with which a healthy machine comes and goes or never works."""
    for name, seconds, most, why in (
        (
            "BULLPEN_DAEMON_HEARTBEAT_INTERVAL",
            config.heartbeat_interval,
            LONGEST_BEAT,
            "the server counts a machine as away that is silent for so long",
        ),
        (
            "BULLPEN_DAEMON_POLL_INTERVAL",
            config.poll_interval,
            3600.0,
            "tasks whose wake-up is lost would wait for so long",
        ),
        (
            "BULLPEN_DAEMON_SYNC_INTERVAL",
            config.sync_interval,
            3600.0,
            "workspaces and runtimes would be out of date for so long",
        ),
    ):
        if seconds > most:
            raise ConfigError(f"{name} must be at most {most:g}s, not {seconds:g}s: {why}")


def check_config_file(home: Home, file: Mapping[str, Any]) -> None:
    """Check what would become the config file, whether signed in or not. Raises ConfigError."""
    env = {"BULLPEN_DAEMON_ID": str(UUID(int=0))}  # none is minted for a look
    token = _text(file, "token") or "any"
    load_config(env, home=home.base, profile=home.profile, file={**file, "token": token})


@attrs.frozen(kw_only=True)
class DiskSettings:
    """What a look at the disk needs: as in Config, for whoever may not be signed in."""

    workspaces_root: Path
    artifact_patterns: tuple[str, ...]
    kept_ttl: float


def read_disk_settings(
    home: Home, env: Mapping[str, str], file: Mapping[str, Any] | None = None
) -> DiskSettings:
    """Read where tasks are and what is reclaimed of them. Raises ConfigError."""
    found = _settings(home, read_config_file(home) if file is None else file)
    return _disk_settings(_Reader(found, env), home)


def _disk_settings(read: _Reader, home: Home) -> DiskSettings:
    return DiskSettings(
        workspaces_root=read.value("BULLPEN_WORKSPACES_ROOT", _directory, home.workspaces),
        artifact_patterns=read.value(
            "BULLPEN_GC_ARTIFACT_PATTERNS", _base_names, ARTIFACT_PATTERNS
        ),
        kept_ttl=read.value("BULLPEN_GC_KEPT_TTL", _time, 2592000.0),
    )


def read_config_file(home: Home) -> dict[str, Any]:
    """Read the config file's object; a missing file is an empty one. Raises ConfigError."""
    gather_secrets(home)
    try:
        value = loads(home.config_file.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, DecodeError) as error:
        raise ConfigError(f"cannot read {home.config_file}: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{home.config_file} does not hold a JSON object")
    return value


class _Reader:
    """Looks variables up, trimmed, blank meaning unset, and names them in errors.

    Later sources win. `asked` holds every name there is a use for, as far as it was looked up.
    """

    def __init__(self, *sources: Mapping[str, str]) -> None:
        self._sources = sources[::-1]
        self.asked: set[str] = set()

    def text(self, name: str) -> str:
        self.asked.add(name)
        found = (source.get(name, "").strip() for source in self._sources)
        return next((text for text in found if text), "")

    def value(self, name: str, parse: Callable[[str], T], default: T) -> T:
        text = self.text(name)
        if not text:
            return default
        try:
            return parse(text)
        except ValueError as error:
            raise ConfigError(f"{name}: {error}") from error


def _time(text: str) -> float:
    seconds = parse_duration(text)
    if seconds < 0:
        raise ValueError(f"{text!r} is negative")
    return seconds


def _some_time(text: str) -> float:
    """A duration that paces a loop: below 10 ms it would only burn the processor."""
    seconds = _time(text)
    if seconds < 0.01:
        raise ValueError(f"{text!r} is too short; at least 10ms")
    return seconds


def _count(text: str) -> int:
    number = _whole(text)
    if not 1 <= number <= 1000:
        raise ValueError(f"{text!r} is not between 1 and 1000")
    return number


def _port(text: str) -> int:
    number = _whole(text)
    if not 0 <= number <= 65535:
        raise ValueError(f"{text!r} is not a port number")
    return number


def _switch(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise ValueError(f"{text!r} is neither true nor false")


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a whole number") from None


def _id(text: str) -> str:
    try:
        return canonical_id(text)
    except InvalidId:
        raise ValueError(f"{text!r} is not a UUID") from None


def _level(text: str) -> str:
    level = {"warn": "warning"}.get(text.lower(), text.lower())
    if level not in LEVELS:
        raise ValueError(f"{text!r} is not one of {', '.join(LEVELS)}")
    return level


def _isolation(text: str) -> Setting:
    if text.lower() not in SETTINGS:
        raise ValueError(f"{text!r} is none of {', '.join(SETTINGS)}")
    chosen: Setting = text.lower()  # type: ignore[assignment]
    return chosen


def _paths(text: str) -> tuple[Path, ...]:
    found = tuple(Path(part).expanduser() for part in text.split(os.pathsep) if part.strip())
    for path in found:
        if not path.is_absolute():
            raise ValueError(f"{str(path)!r} is not an absolute path")
    return found


def _names(text: str) -> tuple[str, ...] | None:
    return tuple(name for part in text.split(",") if (name := part.strip().lower())) or None


def _base_names(text: str) -> tuple[str, ...]:
    """Names of directories to clear: one with a separator could reach out of a task's directory."""
    names = (part.strip() for part in text.split(","))
    never = ("", ".", "..", ".git")
    return tuple(name for name in names if name not in never and not set(name) & {"/", "\\"})


def _words(text: str) -> tuple[str, ...]:
    return tuple(shlex.split(text))


def _directory(text: str) -> Path:
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as error:  # no home directory to expand
        raise ValueError(str(error)) from error


def _per_provider(read: _Reader, suffix: str, parse: Callable[[str], T]) -> dict[str, T]:
    found: dict[str, T] = {}
    for provider in PROVIDERS.values():
        value = read.value(f"BULLPEN_{provider.settings}_{suffix}", parse, None)
        if value is not None:
            found[provider.name] = value
    return found


def _settings(home: Home, file: Mapping[str, Any]) -> dict[str, str]:
    """The variables the file sets; numbers and booleans may be written as such."""
    value = file.get("settings", {})
    if not isinstance(value, dict):
        raise ConfigError(f"{home.config_file}: settings is not an object")
    settings: dict[str, str] = {}
    for name, given in value.items():
        if isinstance(given, bool | int | float):
            settings[name] = str(given).lower()
        elif isinstance(given, str):
            settings[name] = given
        else:
            raise ConfigError(f"{home.config_file}: {name} is neither text nor a number")
    return settings


def _environment(
    home: Home, file: Mapping[str, Any], env: Mapping[str, str], commands: Mapping[str, str]
) -> dict[str, str]:
    """What discovery and agents find in the environment because the file says so (03 §3.4).

    A variable that is there, even empty, is left alone by `backends`.
    """
    backends = file.get("backends", {})
    openclaw = backends.get("openclaw", {}) if isinstance(backends, dict) else None
    if not isinstance(openclaw, dict):
        raise ConfigError(f"{home.config_file}: backends is not an object of objects")
    told = {PROVIDERS[name].path_variable: command for name, command in commands.items()}
    told = {name: text for name, text in told.items() if not env.get(name, "").strip()}
    for key, variable in (
        ("binary_path", PROVIDERS["openclaw"].path_variable),
        ("state_dir", "OPENCLAW_STATE_DIR"),
    ):
        if (text := _text(openclaw, key)) and variable not in env:
            told.setdefault(variable, text)
    return told


def _text(file: Mapping[str, Any], key: str) -> str:
    value = file.get(key)
    return value.strip() if isinstance(value, str) else ""


def _file_url(home: Home, text: str) -> str:
    try:
        return normalise_server_url(text or DEFAULT_SERVER_URL)
    except ValueError as error:
        raise ConfigError(f"server_url in {home.config_file}: {error}") from error


def _overrides(file: Mapping[str, Any]) -> dict[str, str]:
    value = file.get("profile_command_overrides")
    if not isinstance(value, dict):
        return {}
    pairs = {str(key).strip(): str(path).strip() for key, path in value.items()}
    return {key: path for key, path in pairs.items() if key and path}
