"""Who is calling: `login`, `auth`, `user`, `link`, and `version` (spec 06 §2.6, §20.4)."""

from __future__ import annotations

import platform
import sys
from typing import Any, Final

import click

from daemon.cli.api import Api, open_api
from daemon.cli.errors import REFUSED, CliError
from daemon.cli.output import notice, output_option, print_fields, print_json
from daemon.cli.settings import Settings
from shared import __version__
from shared.ids import PERSONAL_TOKEN, TOKEN_PREFIX_LENGTH


@click.command()
@click.option(
    "--token",
    is_flag=False,
    flag_value="",
    default=None,
    metavar="TOKEN",
    help="A personal access token (mul_…); without a value it is asked for.",
)
@click.pass_obj
def login(settings: Settings, token: str | None) -> None:
    """Sign in with a personal access token and remember it."""
    if settings.agent_context:
        raise CliError("inside a task the owner's settings cannot be changed")
    if token is None:
        raise CliError("give a token: `bullpen login --token mul_…`; `bullpen up` signs in itself")
    given = token.strip() or click.prompt("Token", hide_input=True, err=True).strip()
    if not given.startswith(PERSONAL_TOKEN):
        raise CliError(f"that is not a personal access token: it starts with {PERSONAL_TOKEN}")
    server_url = settings.server_url()
    with _bare_api(settings, server_url, given) as api:
        me = api.get("/api/me")
        workspaces = api.get("/api/workspaces")
    chosen = workspaces[0] if workspaces else None
    settings.save(server_url=server_url, token=given, workspace_id=chosen["id"] if chosen else None)
    notice(f"signed in to {server_url} as {me['name']} <{me['email']}>")
    if chosen:
        notice(f"workspace: {chosen['name']} ({chosen['slug']})")
    else:
        notice("there is no workspace yet; make one in the web pages, then `workspace switch`")


def _bare_api(settings: Settings, server_url: str, token: str) -> Api:
    return Api(server_url, token, timeout=settings.timeout, transport=settings.transport)


@click.group()
def auth() -> None:
    """Show who is signed in, or sign out."""


@auth.command()
@click.pass_obj
def status(settings: Settings) -> None:
    """Show the server, the user and the token in use."""
    token = settings.try_token()
    if not token:
        notice("not signed in")
        return
    server_url = settings.server_url()
    try:
        with _bare_api(settings, server_url, token) as api:
            me = api.get("/api/me")
    except CliError as error:
        if error.code != REFUSED:
            raise
        notice(f"server: {server_url}")
        notice("the token is no longer valid: sign in again")
        return
    notice(f"server: {server_url}")
    notice(f"user:   {me['name']} <{me['email']}>")
    notice(f"token:  {token[:TOKEN_PREFIX_LENGTH]}…")


@auth.command()
@click.pass_obj
def logout(settings: Settings) -> None:
    """Forget the token on this machine; it stays valid on the server."""
    settings.save(token=None)
    notice("signed out")


@click.group()
def user() -> None:
    """Show your own profile."""


@user.group()
def profile() -> None:
    """What agents are told about you."""


@profile.command()
@output_option("table")
@click.pass_obj
def get(settings: Settings, output: str) -> None:
    """Show your profile."""
    with open_api(settings, workspace=False) as api:
        me: dict[str, Any] = api.get("/api/me")
    if output == "json":
        print_json(me)
        return
    print_fields(
        [
            ("Name", me.get("name")),
            ("Email", me.get("email")),
            ("Time zone", me.get("timezone")),
            ("Id", me.get("id")),
            ("Profile", me.get("profile_description")),
        ]
    )


@click.command()
@click.pass_obj
def link(settings: Settings) -> None:
    """Print a link that signs a browser in: it works once, for ten minutes."""
    with open_api(settings, workspace=False) as api:
        made = api.post("/auth/link", {})
    click.echo(made["url"])
    if sys.stdout.isatty():
        notice(f"works once, until {made['expires_at']}")


_OS: Final = {"Darwin": "macos"}


def show_version(output: str) -> None:
    """Print the version in the asked form (spec 06 §20.4)."""
    told = {
        "version": __version__,
        "commit": "",
        "date": "",
        "python": platform.python_version(),
        "os": _OS.get(platform.system(), platform.system().lower()),
        "arch": platform.machine(),
    }
    if output == "json":
        print_json(told)
    else:
        click.echo(f"bullpen {told['version']} (Python {told['python']}, {told['os']})")


@click.command("version")
@click.option("--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def version_command(output: str) -> None:
    """Print the version."""
    show_version(output)
