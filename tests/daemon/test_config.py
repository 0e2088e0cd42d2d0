"""Settings: what is read, from where, in which order, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from daemon.config import (
    Config,
    ConfigError,
    load_config,
    normalise_server_url,
    parse_duration,
    profile_port,
)
from tests.support.fake_server import uid

pytestmark = pytest.mark.fast

TOKEN = "mul_" + "a" * 40


def _load(home: Path, env: dict[str, str] | None = None, **flags: Any) -> Config:
    file = home / "config.json"
    if not file.exists():
        file.write_text(json.dumps({"token": TOKEN}))
    return load_config({"BULLPEN_HOME": str(home), **(env or {})}, flags)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("30s", 30.0),
        ("1h2m3s", 3723.0),
        ("5d", 432000.0),
        ("1d12h", 129600.0),
        ("0.5d", 43200.0),
        (".5d", 43200.0),
        ("250ms", 0.25),
        ("1µs", 1e-6),
        ("1μs", 1e-6),
        ("-1s", -1.0),
        ("+1s", 1.0),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "30", "5days", "s", "1.2.3s", "1h30", "999999999d", "1 h"])
def test_no_durations(text: str) -> None:
    with pytest.raises(ValueError):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("ws://localhost:8080/ws", "http://localhost:8080"),
        ("wss://api.example.com/ws", "https://api.example.com"),
        ("https://example.com/base/", "https://example.com/base"),
        ("https://example.com/ws/more", "https://example.com/ws/more"),
        ("http://example.com?x=1#y", "http://example.com"),
    ],
)
def test_server_urls(text: str, url: str) -> None:
    assert normalise_server_url(text) == url


@pytest.mark.parametrize("text", ["ftp://example.com", "example.com", "http://"])
def test_no_server_urls(text: str) -> None:
    with pytest.raises(ValueError):
        normalise_server_url(text)


def test_profile_ports() -> None:
    assert profile_port("") == 27514
    assert profile_port("a") == 27515 + 97
    assert profile_port("ü") == 27515 + (0xC3 + 0xBC) % 1000


def test_defaults(tmp_path: Path) -> None:
    config = _load(tmp_path)
    assert config.server_url == "http://localhost:8080"
    assert config.token == TOKEN
    assert (config.poll_interval, config.heartbeat_interval, config.sync_interval) == (30, 15, 30)
    assert config.max_concurrent_tasks == 20
    assert config.agent_timeout == 0
    assert config.control_port == 27514
    assert config.workspaces_root == tmp_path / "workspaces"
    assert config.agents is None
    assert TOKEN not in repr(config)


def test_a_flag_beats_the_environment_beats_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"token": TOKEN, "server_url": "http://file.example"})
    )
    assert _load(tmp_path).server_url == "http://file.example"
    env = {"BULLPEN_SERVER_URL": "http://env.example"}
    assert _load(tmp_path, env).server_url == "http://env.example"
    config = _load(tmp_path, env, BULLPEN_SERVER_URL="http://flag.example")
    assert config.server_url == "http://flag.example"


def test_blank_is_unset_and_text_is_trimmed(tmp_path: Path) -> None:
    env = {"BULLPEN_DAEMON_POLL_INTERVAL": "  ", "BULLPEN_DAEMON_HEARTBEAT_INTERVAL": " 5s "}
    config = _load(tmp_path, env)
    assert (config.poll_interval, config.heartbeat_interval) == (30, 5)


def test_the_file_may_set_every_variable_below_the_environment(tmp_path: Path) -> None:
    settings = {
        "BULLPEN_DAEMON_MAX_CONCURRENT_TASKS": 3,
        "BULLPEN_DAEMON_AUTO_UPDATE": True,
        "BULLPEN_AGENT_TIMEOUT": "2h",
        "BULLPEN_CODEX_PATH": "~/codex",
    }
    (tmp_path / "config.json").write_text(json.dumps({"token": TOKEN, "settings": settings}))
    config = _load(tmp_path)
    assert (config.max_concurrent_tasks, config.auto_update) == (3, True)
    assert config.agent_timeout == 7200
    assert config.environment == {"BULLPEN_CODEX_PATH": "~/codex"}, "where discovery looks"
    env = {"BULLPEN_AGENT_TIMEOUT": "1h", "BULLPEN_CODEX_PATH": "/bin/codex"}
    config = _load(tmp_path, env, BULLPEN_DAEMON_MAX_CONCURRENT_TASKS="4")
    assert (config.max_concurrent_tasks, config.agent_timeout) == (4, 3600)
    assert config.commands == {"codex": "/bin/codex"}
    assert config.environment == {}
    assert _load(tmp_path, {"BULLPEN_AGENT_TIMEOUT": " "}).agent_timeout == 7200


@pytest.mark.parametrize(
    ("file", "why"),
    [
        ({"settings": []}, "settings is not an object"),
        ({"settings": {"BULLPEN_AGENT_TIMEOUT": None}}, "BULLPEN_AGENT_TIMEOUT"),
        ({"settings": {"BULLPEN_AGENT_TIMEOUT": "2"}}, "BULLPEN_AGENT_TIMEOUT: '2'"),
        ({"settings": {"BULLPEN_AGENT_TIMEOT": "2h"}}, "did you mean BULLPEN_AGENT_TIMEOUT"),
        ({"settings": {"BULLPEN_PARENT_PID": "1"}}, "no setting BULLPEN_PARENT_PID"),
        ({"settings": {"BULLPEN_SERVER_URL": "http://x"}}, "no setting BULLPEN_SERVER_URL"),
        ({"backends": {"openclaw": "x"}}, "backends"),
        ({"backends": 1}, "backends"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, file: dict[str, Any], why: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"token": TOKEN, **file}))
    with pytest.raises(ConfigError, match=why):
        _load(tmp_path)


def test_backends_fill_only_what_is_absent(tmp_path: Path) -> None:
    backends = {"openclaw": {"binary_path": " /opt/claw ", "state_dir": "/var/claw"}}
    (tmp_path / "config.json").write_text(json.dumps({"token": TOKEN, "backends": backends}))
    assert _load(tmp_path).environment == {
        "BULLPEN_OPENCLAW_PATH": "/opt/claw",
        "OPENCLAW_STATE_DIR": "/var/claw",
    }
    env = {"BULLPEN_OPENCLAW_PATH": "", "OPENCLAW_STATE_DIR": "/mine"}
    assert _load(tmp_path, env).environment == {}, "set but empty is there, too"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("target", ("target",)),
        (" a , b/c, d\\e ,", ("a",)),
        ("x/y", ()),
    ],
)
def test_patterns_are_base_names(tmp_path: Path, text: str, names: tuple[str, ...]) -> None:
    env = {"BULLPEN_GC_ARTIFACT_PATTERNS": text}
    assert _load(tmp_path, env).gc_artifact_patterns == names


def test_keeping_every_directory_ends_the_clearing(tmp_path: Path) -> None:
    assert _load(tmp_path).gc_enabled
    assert not _load(tmp_path, {"BULLPEN_KEEP_ENV_AFTER_TASK": "1"}).gc_enabled
    assert not _load(tmp_path, {"BULLPEN_GC_ENABLED": "off"}).gc_enabled


def test_the_log_level_has_two_names(tmp_path: Path) -> None:
    assert _load(tmp_path, {"LOG_LEVEL": "WARN"}).log_level == "warning"
    env = {"LOG_LEVEL": "error", "BULLPEN_LOG_LEVEL": "debug"}
    assert _load(tmp_path, env).log_level == "debug"


def test_lists_and_words(tmp_path: Path) -> None:
    env = {
        "BULLPEN_AGENTS": " Claude, demo ,,",
        "BULLPEN_CLAUDE_ARGS": "--verbose --name 'a b'",
        "BULLPEN_CLAUDE_MODEL": "opus",
    }
    config = _load(tmp_path, env)
    assert config.agents == ("claude", "demo")
    assert config.extra_args == {"claude": ("--verbose", "--name", "a b")}
    assert config.models == {"claude": "opus"}


def test_what_is_reclaimed_is_the_users_setting(tmp_path: Path) -> None:
    config = _load(tmp_path)
    hour = 3600
    assert config.gc_enabled
    assert (config.gc_interval, config.gc_ttl, config.gc_orphan_ttl, config.gc_artifact_ttl) == (
        hour, 24 * hour, 72 * hour, 12 * hour
    )  # fmt: skip
    assert config.gc_artifact_patterns == ("node_modules", ".next", ".turbo")
    for text, enabled in (("false", False), ("0", False), ("FALSE", False), ("yes", True)):
        assert _load(tmp_path, {"BULLPEN_GC_ENABLED": text}).gc_enabled is enabled
    given = {"BULLPEN_GC_ARTIFACT_PATTERNS": " target, a/b ,c\\d,.git,..,, dist"}
    assert _load(tmp_path, given).gc_artifact_patterns == ("target", "dist")
    assert _load(tmp_path, {"BULLPEN_GC_ARTIFACT_PATTERNS": "a/b"}).gc_artifact_patterns == ()
    assert _load(tmp_path, {"BULLPEN_GC_ARTIFACT_TTL": "0"}).gc_artifact_ttl == 0


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("BULLPEN_DAEMON_POLL_INTERVAL", "0"),
        ("BULLPEN_DAEMON_POLL_INTERVAL", "30"),
        ("BULLPEN_DAEMON_HEARTBEAT_INTERVAL", "-1s"),
        ("BULLPEN_DAEMON_HEARTBEAT_INTERVAL", "2m"),
        ("BULLPEN_DAEMON_POLL_INTERVAL", "3h"),
        ("BULLPEN_DAEMON_SYNC_INTERVAL", "1d"),
        ("BULLPEN_DAEMON_SYNC_INTERVAL", "1ms"),
        ("BULLPEN_AGENT_TIMEOUT", "-1s"),
        ("BULLPEN_AGENT_IDLE_WATCHDOG", "5days"),
        ("BULLPEN_DAEMON_MAX_CONCURRENT_TASKS", "0"),
        ("BULLPEN_DAEMON_MAX_CONCURRENT_TASKS", "-3"),
        ("BULLPEN_DAEMON_MAX_CONCURRENT_TASKS", "many"),
        ("BULLPEN_DAEMON_PORT", "65536"),
        ("BULLPEN_DAEMON_ID", "box"),
        ("BULLPEN_SERVER_URL", "ftp://x"),
        ("BULLPEN_CLAUDE_ARGS", "'open"),
        ("BULLPEN_LOG_LEVEL", "loud"),
        ("BULLPEN_PARENT_PID", "x"),
        ("BULLPEN_GC_INTERVAL", "0"),
        ("BULLPEN_GC_TTL", "-1h"),
        ("BULLPEN_GC_ORPHAN_TTL", "soon"),
        ("BULLPEN_GC_ARTIFACT_TTL", "12"),
        ("BULLPEN_GC_ENABLED", "maybe"),
        ("BULLPEN_KEEP_ENV_AFTER_TASK", "2"),
        ("BULLPEN_DAEMON_AUTO_UPDATE", "sometimes"),
        ("BULLPEN_DAEMON_AUTO_UPDATE_INTERVAL", "0"),
        ("BULLPEN_CODEX_MEMORY", "x"),
        ("BULLPEN_CODEX_MULTI_AGENT", "x"),
        ("BULLPEN_DAEMON_TRIAL", "x"),
        ("LOG_LEVEL", "loud"),
    ],
)
def test_a_wrong_value_is_refused_by_name(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=name):
        _load(tmp_path, {name: text})


def test_without_a_token_there_is_no_start(tmp_path: Path) -> None:
    env = {"BULLPEN_HOME": str(tmp_path), "MULTICA_TOKEN": TOKEN, "BULLPEN_TOKEN": TOKEN}
    with pytest.raises(ConfigError, match="bullpen login"):
        load_config(env)
    with pytest.raises(ConfigError, match="bullpen login --profile work"):
        load_config(env, profile="work")


@pytest.mark.parametrize("text", ["{", "[]", '{"token": "x", "server_url": "nowhere"}'])
def test_a_bad_config_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json"):
        _load(tmp_path)


def test_command_overrides_with_blanks_are_ignored(tmp_path: Path) -> None:
    overrides = {" p1 ": " /opt/x ", "p2": " ", " ": "/y"}
    (tmp_path / "config.json").write_text(
        json.dumps({"token": TOKEN, "profile_command_overrides": overrides})
    )
    assert _load(tmp_path).profile_command_overrides == {"p1": "/opt/x"}


def test_the_daemon_id_is_pinned_or_persistent(tmp_path: Path) -> None:
    first = _load(tmp_path).daemon_id
    assert _load(tmp_path).daemon_id == first
    pinned = uid("pinned")
    assert _load(tmp_path, {"BULLPEN_DAEMON_ID": pinned.upper()}).daemon_id == pinned
