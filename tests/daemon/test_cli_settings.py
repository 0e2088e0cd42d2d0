"""Where a command's server, workspace and token come from, outside and inside a task."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from daemon.cli.errors import CliError
from daemon.cli.settings import Settings, clean_url

pytestmark = pytest.mark.fast

OWNER = "mul_" + "0" * 40
TASK = "mat_" + "1" * 40
INSIDE = {"MULTICA_AGENT_ID": "a", "MULTICA_TASK_ID": "t"}


def settings(tmp_path: Path, config: dict[str, Any] | None = None, /, **values: Any) -> Settings:
    env = values.pop("env", {})
    if config is not None:
        (tmp_path / "secrets").mkdir(exist_ok=True)
        (tmp_path / "secrets" / "config.json").write_text(json.dumps(config))
    return Settings(env={"BULLPEN_HOME": str(tmp_path), **env}, **values)


CONFIG = {"server_url": "http://config:1", "token": OWNER, "workspace_id": "config-workspace"}


def test_flag_beats_environment_beats_config(tmp_path: Path) -> None:
    env = {"BULLPEN_SERVER_URL": "http://env:1", "BULLPEN_WORKSPACE_ID": "env-workspace"}
    plain = settings(tmp_path, CONFIG)
    assert (plain.server_url(), plain.workspace_id()) == ("http://config:1", "config-workspace")
    with_env = settings(tmp_path, env=env | {"BULLPEN_TOKEN": " mul_env "})
    assert (with_env.server_url(), with_env.workspace_id()) == ("http://env:1", "env-workspace")
    assert with_env.token() == "mul_env"
    flags = settings(tmp_path, env=env, flag_server_url="http://flag:1", flag_workspace_id="flag")
    assert (flags.server_url(), flags.workspace_id()) == ("http://flag:1", "flag")


def test_an_empty_flag_hides_the_environment_but_not_the_config(tmp_path: Path) -> None:
    found = settings(
        tmp_path, CONFIG, env={"BULLPEN_SERVER_URL": "http://env:1"}, flag_server_url=""
    )
    assert found.server_url() == "http://config:1"


def test_nothing_known_says_what_to_do(tmp_path: Path) -> None:
    nothing = settings(tmp_path)
    with pytest.raises(CliError, match="bullpen up") as no_server:
        nothing.server_url()
    assert no_server.value.code == 1
    with pytest.raises(CliError, match="workspace switch"):
        nothing.workspace_id()
    with pytest.raises(CliError, match="not signed in") as no_token:
        nothing.token()
    assert no_token.value.code == 3


def test_inside_a_task_the_owners_config_is_never_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("the owner's config was read inside a task")

    monkeypatch.setattr("daemon.cli.settings.read_config", refuse)
    monkeypatch.setattr("daemon.cli.settings.save_config", refuse)
    inside = settings(tmp_path, CONFIG, env={**INSIDE, "MULTICA_TOKEN": TASK})
    assert inside.token() == TASK
    for ask in (inside.server_url, inside.workspace_id):
        with pytest.raises(CliError, match="MULTICA_"):
            ask()
    with pytest.raises(CliError, match="inside a task"):
        inside.save(token="mul_other")


@pytest.mark.parametrize("token", ["", OWNER, "mdt_x", "eyJhbGciOi"])
def test_inside_a_task_only_a_task_token_is_used(tmp_path: Path, token: str) -> None:
    inside = settings(tmp_path, CONFIG, env={**INSIDE, "MULTICA_TOKEN": token})
    with pytest.raises(CliError, match="mat_") as refused:
        inside.token()
    assert refused.value.code == 1
    assert OWNER not in refused.value.text


def test_one_variable_is_enough_to_be_inside_a_task(tmp_path: Path) -> None:
    for name in INSIDE:
        env = {name: "x", "BULLPEN_TOKEN": OWNER, "BULLPEN_SERVER_URL": "http://owner"}
        inside = settings(tmp_path, env=env)
        assert inside.agent_context
        with pytest.raises(CliError, match="mat_"):
            inside.token()
        with pytest.raises(CliError, match="MULTICA_SERVER_URL"):
            inside.server_url()


def test_saving_keeps_unknown_keys_and_makes_the_file_private(tmp_path: Path) -> None:
    unknown = {"backends": {"openclaw": {"binary_path": "/x"}}, "later": [1]}
    found = settings(tmp_path, {**CONFIG, **unknown})
    found.save(token=None, server_url="http://new:1")
    written = (tmp_path / "secrets" / "config.json").read_text()
    expected = {**CONFIG, **unknown, "server_url": "http://new:1"}
    del expected["token"]
    assert json.loads(written) == expected
    assert written.endswith("}\n")
    assert '\n  "later"' in written
    assert stat.S_IMODE((tmp_path / "secrets" / "config.json").stat().st_mode) == 0o600
    assert found.config == expected


@pytest.mark.parametrize("content", ["{", "[1]", '"text"', "\xff"])
def test_a_broken_config_is_one_clear_error_and_is_not_overwritten(
    tmp_path: Path, content: str
) -> None:
    path = tmp_path / "secrets" / "config.json"
    path.parent.mkdir()
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(CliError, match=r"config\.json"):
        settings(tmp_path).save(server_url="http://x:1")
    assert path.read_bytes() == content.encode("latin-1")


def test_profiles_have_a_place_of_their_own_and_cannot_leave_it(tmp_path: Path) -> None:
    settings(tmp_path, profile="work").save(server_url="http://x:1")
    assert (tmp_path / "profiles" / "work" / "secrets" / "config.json").exists()
    for name in ("../x", "a/b", ".", ".hidden"):
        with pytest.raises(CliError, match="profile"):
            _ = settings(tmp_path, profile=name).home


@pytest.mark.parametrize(
    ("given", "clean"),
    [
        ("ws://h:8080/ws", "http://h:8080"),
        ("wss://h/ws/", "https://h"),
        ("http://h/sub/?q=1#f", "http://h/sub"),
        (" http://[::1]:80/ ", "http://[::1]:80"),
    ],
)
def test_server_urls_are_cleaned(given: str, clean: str) -> None:
    assert clean_url(given) == clean


@pytest.mark.parametrize("given", ["h:8080", "ftp://h", "http://", "http://h:x", "http://h:99999"])
def test_what_is_no_server_url_is_refused(given: str) -> None:
    with pytest.raises(CliError, match="not a server URL"):
        clean_url(given)


@pytest.mark.parametrize(
    ("given", "seconds"), [("", 30), ("45s", 45), ("7", 7), ("500ms", 0.5), ("2m", 120)]
)
def test_timeouts(tmp_path: Path, given: str, seconds: float) -> None:
    assert settings(tmp_path, env={"BULLPEN_HTTP_TIMEOUT": given}).timeout == seconds


@pytest.mark.parametrize("given", ["0", "-1", "fast", "1d"])
def test_a_malformed_timeout_names_its_variable(tmp_path: Path, given: str) -> None:
    with pytest.raises(CliError, match="BULLPEN_HTTP_TIMEOUT"):
        _ = settings(tmp_path, env={"BULLPEN_HTTP_TIMEOUT": given}).timeout


@pytest.mark.parametrize(("given", "on"), [("", False), ("0", False), ("No", False), ("1", True)])
def test_debug_from_the_environment(tmp_path: Path, given: str, on: bool) -> None:
    assert settings(tmp_path, env={"BULLPEN_DEBUG": given}).debug is on


def test_the_place_of_a_profiles_program(tmp_path: Path) -> None:
    from daemon.cli.root import run

    def call(*words: str, **env: str) -> int:
        return run(["runtime", "profile", *words], settings(tmp_path, env=env))

    one, other = (f"00000000-0000-4000-8000-00000000000{n}" for n in (1, 2))
    file = tmp_path / "secrets" / "config.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"kept": 1}))
    assert call("set-path", one.upper(), "--path", "/opt/agent") == 0
    assert call("set-path", other, "--path", "/opt/other") == 0
    assert json.loads(file.read_text()) == {
        "kept": 1,
        "profile_command_overrides": {one: "/opt/agent", other: "/opt/other"},
    }
    assert call("set-path", one, "--path", "agent") == 1
    assert call("set-path", "mine", "--path", "/opt/agent") == 1
    assert call("unset-path", one, **INSIDE) == 1
    assert call("unset-path", one) == 0
    assert call("unset-path", other) == 0
    assert json.loads(file.read_text()) == {"kept": 1}
