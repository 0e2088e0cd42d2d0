"""`bullpen config …`: the settings file (spec 06 §20.4)."""

from __future__ import annotations

import json
from typing import Any

import click

from daemon.cli.errors import CliError
from daemon.cli.groups import Group
from daemon.cli.output import notice, output_option, print_fields, print_json
from daemon.cli.settings import CONFIG_KEYS, Settings
from shared.ids import TOKEN_PREFIX_LENGTH


@click.group(cls=Group)
def config() -> None:
    """Show or change the settings file."""


@config.command()
@output_option("table")
@click.pass_obj
def show(settings: Settings, output: str) -> None:
    """Show what the settings file says; of the token only its beginning."""
    if settings.agent_context:
        raise CliError("inside a task the owner's settings are not read")
    told: dict[str, Any] = dict(settings.config)
    if isinstance(told.get("token"), str):
        told["token"] = told["token"][:TOKEN_PREFIX_LENGTH] + "…"
    notice(f"file: {settings.home.config_file}")
    if output == "json":
        print_json(told)
    else:
        daemon = told.pop("settings", None)
        rows = sorted((key, _text(value)) for key, value in told.items())
        if isinstance(daemon, dict):
            rows += sorted((key, _text(value)) for key, value in daemon.items())
        print_fields(rows)


@config.command()
@click.argument("key")
@click.pass_obj
def get(settings: Settings, key: str) -> None:
    """Print what the settings file says of one setting; exits 1 if nothing."""
    if settings.agent_context:
        raise CliError("inside a task the owner's settings are not read")
    if not key.startswith("BULLPEN_") and key not in CONFIG_KEYS:
        raise CliError(_unknown(key))
    daemon = settings.config.get("settings")
    found = (daemon if isinstance(daemon, dict) else {}).get(key, settings.config.get(key))
    if found is None:
        raise CliError(f"{key} is not set in {settings.home.config_file}")
    click.echo(_text(found))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _unknown(key: str) -> str:
    known = ", ".join(CONFIG_KEYS)
    return f"{key!r} is not a setting: use one of {known}, or a variable of the daemon"


@config.command("set")
@click.argument("key")
@click.argument("value")
@click.pass_obj
def set_(settings: Settings, key: str, value: str) -> None:
    """Change one setting, or a BULLPEN_… variable of the daemon; an empty value removes it.

    A running daemon takes it over within seconds, or says in its log that it needs a restart.
    """
    if key.startswith("BULLPEN_"):
        _set_for_the_daemon(settings, key, value.strip())
    elif key in CONFIG_KEYS:
        settings.save(**{key: value.strip()})
    else:
        raise CliError(_unknown(key))
    notice(f"{key} {'set' if value.strip() else 'removed'}")


def _set_for_the_daemon(settings: Settings, name: str, value: str) -> None:
    """Save a variable the daemon reads from the file, unless it would not start with it."""
    from daemon.config import ConfigError, check_config_file

    if settings.agent_context:
        raise CliError("inside a task the owner's settings cannot be changed")
    now = settings.config.get("settings")
    kept = {
        key: text for key, text in (now if isinstance(now, dict) else {}).items() if key != name
    }
    if value:
        kept[name] = value
    try:
        check_config_file(settings.home, {**settings.config, "settings": kept})
    except ConfigError as error:
        raise CliError(str(error)) from error
    settings.save(settings=kept)
