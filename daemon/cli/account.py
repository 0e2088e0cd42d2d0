"""Who is calling: `login`, `auth`, `user`, `link`, and `version` (spec 06 §2.6, §20.4)."""

from __future__ import annotations

import platform
import sys
from contextlib import suppress
from typing import Any, Final
from urllib.parse import quote

import click

from daemon.cli.api import Api, open_api
from daemon.cli.errors import REFUSED, CliError
from daemon.cli.groups import Group
from daemon.cli.output import ago, notice, output_option, print_fields, print_json, print_table
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
    help="A personal access token (mul_…) instead; without a value it is asked for.",
)
@click.option("--no-browser", is_flag=True, help="Do not open the browser, only print the link.")
@click.pass_obj
def login(settings: Settings, token: str | None, no_browser: bool) -> None:
    """Sign in through the browser, or with a personal access token, and remember it."""
    if settings.agent_context:
        raise CliError("inside a task the owner's settings cannot be changed")
    server_url = settings.server_url()
    if token is None:
        given = _token_by_browser(settings, server_url, opens=not no_browser)
    else:
        given = token.strip() or click.prompt("Token", hide_input=True, err=True).strip()
    if not given.startswith(PERSONAL_TOKEN):
        raise CliError(f"that is not a personal access token: it starts with {PERSONAL_TOKEN}")
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


_TOKEN_DAYS: Final = 90
"""How long a token made by `login` is valid; the daemon renews it (spec 06 §2.6)."""


def _token_by_browser(settings: Settings, server_url: str, *, opens: bool) -> str:
    """A new personal token, made with the session that the sign-in page hands over."""
    from daemon.cli.browser import PATIENCE, browser_opener, open_detached, open_sign_in

    opener = browser_opener(settings.env) if opens else None
    if opener is None and not sys.stderr.isatty():
        raise CliError("there is no browser here; give a token: `bullpen login --token mul_…`")
    try:
        with open_sign_in() as sign_in:
            link = sign_in.url(settings.app_url())
            notice(f"open this in a browser on this machine:\n\n  {link}\n")
            if opener is not None:
                open_detached([opener, link])
            session = sign_in.try_session()
    except OSError as error:
        raise CliError(f"cannot wait for the browser: {error}") from error
    if session is None:
        raise CliError(f"nobody signed in within {PATIENCE / 60:g} minutes")
    body = {"name": f"CLI ({platform.node() or 'unknown'})", "expires_in_days": _TOKEN_DAYS}
    with _bare_api(settings, server_url, session) as api:
        token = str(api.post("/api/tokens", body)["token"])
        with suppress(CliError):  # the session has served its purpose
            api.post("/auth/logout", {})
    return token


def _bare_api(settings: Settings, server_url: str, token: str) -> Api:
    return Api(server_url, token, timeout=settings.timeout, transport=settings.transport)


@click.group(cls=Group)
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
@click.option(
    "--everywhere",
    is_flag=True,
    help="End your sessions in all browsers and command lines instead; tokens stay valid.",
)
@click.pass_obj
def logout(settings: Settings, everywhere: bool) -> None:
    """Forget the token on this machine; it stays valid on the server."""
    if everywhere:
        with open_api(settings, workspace=False) as api:
            ended = api.delete("/api/sessions")["ended"]
        notice(f"ended {ended} session{'' if ended == 1 else 's'}; personal access tokens stay")
        return
    settings.save(token=None)
    notice("signed out")


_KINDS: Final = {"link": "browser (link)", "code": "browser (code)", "command_line": "command line"}


@auth.command()
@output_option("table")
@click.option("--end", "session_id", metavar="ID", help="End this session instead.")
@click.pass_obj
def sessions(settings: Settings, output: str, session_id: str | None) -> None:
    """List where you are signed in, or end one session.

    All at once end by `bullpen auth logout --everywhere`.
    """
    with open_api(settings, workspace=False) as api:
        if session_id is not None:
            api.delete(f"/api/sessions/{quote(session_id, safe='')}")
            notice("ended the session")
            return
        told = api.get("/api/sessions")["sessions"]
    if output == "json":
        print_json(told)
        return
    if not told:
        click.echo("No session is open: tokens sign in without one.")
        return
    print_table(
        ("ID", "KIND", "LAST USED", "EXPIRES", "PROGRAM"),
        [
            (
                each["id"],
                _KINDS.get(each["kind"], each["kind"]) + (", this one" if each["current"] else ""),
                ago(each["last_used_at"]),
                each["expires_at"][:10],
                each["user_agent"],
            )
            for each in told
        ],
    )


@click.group(cls=Group)
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
