"""The root of the command line: persistent options, lazy groups, and how errors become exit codes.

A group's module is imported when one of its commands runs, so that an agent's `bullpen issue get`
does not pay for what `bullpen up` needs. Nothing that goes wrong prints a traceback, unless
`--debug` asks for it.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Final

import click

from daemon.cli.errors import USAGE, CliError
from daemon.cli.settings import Settings

_INTERRUPTED: Final = 130

_OUTPUT_LOST: Final = frozenset(
    {errno.EBADF, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC, errno.EPIPE}
)
"""What a write to standard output may fail with; anything else is about something else."""

COMMANDS: Final[Mapping[str, tuple[str, str]]] = {
    # name: (where it is, what it does)
    "up": ("daemon.cli.up:up", "Start Bullpen on this machine: server, pages and daemon."),
    "link": ("daemon.cli.account:link", "Print a fresh sign-in link for the browser."),
    "issue": ("daemon.cli.issue_group:issue", "Work with issues and their runs."),
    "watch": ("daemon.cli.watch:watch", "Follow an issue's run live."),
    "agent": ("daemon.cli.agent_group:agent", "Work with agents."),
    "squad": ("daemon.cli.squad_group:squad", "Work with squads and their members."),
    "skill": ("daemon.cli.skill_group:skill", "Work with skills: what agents are taught."),
    "project": ("daemon.cli.project_group:project", "Work with projects and their resources."),
    "repo": ("daemon.cli.repo_group:repo", "Check out repositories; find kept work."),
    "label": ("daemon.cli.label_group:label", "Work with labels."),
    "autopilot": ("daemon.cli.autopilot_group:autopilot", "Work with what starts by itself."),
    "attachment": ("daemon.cli.attachment_group:attachment", "Work with attached files."),
    "inbox": ("daemon.cli.inbox_group:inbox", "Read what concerns you."),
    "chat": ("daemon.cli.chat_group:chat", "Talk with an agent in private."),
    "workspace": ("daemon.cli.workspace_group:workspace", "Work with workspaces."),
    "runtime": ("daemon.cli.runtime_group:runtime", "Work with runtimes."),
    "daemon": ("daemon.cli.daemon_group:daemon", "Run this machine's daemon."),
    "update": ("daemon.cli.update:update", "Bring Bullpen to its newest version."),
    "login": ("daemon.cli.account:login", "Sign in, through the browser or with a token."),
    "auth": ("daemon.cli.account:auth", "Show who is signed in, or sign out."),
    "user": ("daemon.cli.account:user", "Show your own profile."),
    "config": ("daemon.cli.config_group:config", "Show or change the settings file."),
    "version": ("daemon.cli.account:version_command", "Print the version."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """As click's, from the table: listing the commands imports none."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, told) for name, (_, told) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = self._elsewhere(ctx, args[0]) or get_close_matches(args[0], COMMANDS, 1)
            hint = "; did you mean " + " or ".join(f"`bullpen {n}`" for n in near) + "?"
            hint = hint if near else ""
            ctx.fail(f"There is no command {args[0]!r}{hint}")
        return super().resolve_command(ctx, args)

    def _elsewhere(self, ctx: click.Context, name: str) -> list[str]:
        """The command of that name in other groups, unless it is a word that many have."""
        groups = ((group, self.get_command(ctx, group)) for group in COMMANDS)
        found = [
            f"{group} {name}"
            for group, command in groups
            if isinstance(command, click.Group) and name in command.commands
        ]
        return found if len(found) < 3 else []


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from daemon.cli.account import show_version

        show_version("text")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--server-url", metavar="URL", help="The server [env BULLPEN_SERVER_URL].")
@click.option("--workspace-id", metavar="ID", help="The workspace [env BULLPEN_WORKSPACE_ID].")
@click.option("--profile", metavar="NAME", default="", help="A separate set of settings.")
@click.option("--home", metavar="DIR", help="Where Bullpen keeps its files [env BULLPEN_HOME].")
@click.option("--debug", is_flag=True, help="Say more when something goes wrong.")
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version.",
)
@click.pass_context
def root(
    ctx: click.Context,
    *,
    server_url: str | None,
    workspace_id: str | None,
    profile: str,
    home: str | None,
    debug: bool,
) -> None:
    """Hand issues to coding agents that run on your own machines, and watch them work.

    Start with `bullpen up`.
    """
    settings = ctx.ensure_object(Settings)
    settings.flag_server_url = server_url
    settings.flag_workspace_id = workspace_id
    settings.profile = profile
    settings.flag_home = home
    settings.flag_debug = debug


_PERSISTENT: Final = {
    "--server-url": True,
    "--workspace-id": True,
    "--profile": True,
    "--home": True,
    "--debug": False,
}
"""Persistent options and whether they take a value; they may stand anywhere on the line."""


def _hoist(args: Sequence[str]) -> list[str]:
    """Bring persistent options to the front, wherever they stand before a `--`.

    A value that merely looks like one (`--title --debug`) cannot be told apart; people who need
    that write `--title=--debug`.
    """
    front: list[str] = []
    rest: list[str] = []
    left = list(args)
    while left:
        word = left.pop(0)
        if word == "--":
            return [*front, *rest, word, *left]
        name, equals, _ = word.partition("=")
        if name not in _PERSISTENT:
            rest.append(word)
            continue
        front.append(word)
        if _PERSISTENT[name] and not equals and left:
            front.append(left.pop(0))
    return front + rest


def run(args: Sequence[str] | None = None, settings: Settings | None = None) -> int:
    """Run one command line and return its exit code; `settings` is a test's."""
    settings = settings or Settings()
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who called: nobody reads
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123
    given = list(sys.argv[1:] if args is None else args)
    if given[:1] == ["help"]:
        given = [*given[1:], "--help"]
    try:
        result = root.main(_hoist(given), prog_name="bullpen", standalone_mode=False, obj=settings)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return USAGE if given else 0
    except click.UsageError as error:
        return _explain_usage(error)
    except click.ClickException as error:
        _say(error.format_message())
        return USAGE
    except CliError as error:
        if _wants_debug(settings):
            _explain_at_length(error)
        _say(error.text)
        return error.code
    except (click.Abort, KeyboardInterrupt):
        click.echo(err=True)
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader has gone (`| head`): nothing to tell; keep the interpreter's own flush quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return USAGE
    except OSError as error:
        if _wants_debug(settings):
            _explain_at_length(error)
        why = error.strerror or str(error)
        if error.filename:
            _say(f"cannot use {error.filename}: {why}")
        elif error.errno in _OUTPUT_LOST:
            _say(f"cannot use what the command prints: {why}")
        else:
            _say(f"the system refused what was asked of it: {why} (--debug shows where)")
        return USAGE
    except Exception as error:  # noqa: BLE001 - the last line of defence: a defect is one line, too
        if _wants_debug(settings):
            _explain_at_length(error)
        _say(f"a defect in bullpen: {type(error).__name__}: {error} (--debug shows where)")
        return USAGE
    return result if isinstance(result, int) else 0


def _wants_debug(settings: Settings) -> bool:
    try:
        return settings.debug
    except CliError:
        return False


def _explain_at_length(error: Exception) -> None:
    import traceback

    from shared.redact import redact

    click.echo(redact("".join(traceback.format_exception(error))), err=True)
    detail = getattr(error, "detail", "")
    if detail:
        click.echo(redact(detail), err=True)


def _explain_usage(error: click.UsageError) -> int:
    _say(error.format_message())
    if error.ctx is not None:
        click.echo(error.ctx.get_usage(), err=True)
        click.echo(f"`{error.ctx.command_path} -h` says more.", err=True)
    return USAGE


def _say(text: str) -> None:
    from daemon.cli.output import plain

    label = click.style("error:", fg="red", bold=True) if sys.stderr.isatty() else "error:"
    click.echo(f"{label} {plain(text, keep_lines=True)}", err=True)
