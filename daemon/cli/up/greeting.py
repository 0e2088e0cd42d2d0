"""What `bullpen up` tells the person once everything runs: where it is and how to go on."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape

from daemon.cli.up.plan import Plan
from daemon.cli.up.voice import Voice
from shared.home import find_home


def greet(
    voice: Voice, plan: Plan, *, url: str, link: str, made: Sequence[str], agents: Sequence[str]
) -> None:
    """Print the sign-in link, the agents, the logs and what to try next."""
    say, command = voice.say, plan.invoked_as
    if plan.env.get("BULLPEN_HOME", "").strip() == "" and plan.home.base != find_home({}).base:
        command += f" --home {plan.home.base}"
    if plan.home.profile:
        command += f" --profile {plan.home.profile}"
    command = escape(command)
    say()
    say(f"[bold green]Bullpen is running[/] at {url}")
    say()
    say(f"  Sign in   [bold]{link}[/]")
    say(f"            [dim]works once, for 10 minutes; `{command} link` prints another[/]")
    if agents:
        new = f" [dim](new: {escape(', '.join(made))})[/]" if made else ""
        say(f"  Agents    {escape(', '.join(agents))}{new}")
    else:
        say("  Agents    none: no agent program was found on this machine")
    say(f"  Logs      {escape(str(plan.home.logs))}")
    if agents:
        example = f'issue create --title "Say hello" --assignee {escape(agents[-1])}'
        say()
        say(f"  Try       {command} {example}")
        say(f"            {command} watch {'1' if made else 'KEY'}")
    if list(agents) == ["demo"]:
        say()
        say(
            "  [dim]`demo` only shows how Bullpen works. Install Claude Code (`claude`) and start[/]"
        )
        say("  [dim]again to have an agent that does real work.[/]")
    if not plan.listens_on.startswith("127.") and plan.listens_on not in ("localhost", "::1"):
        say()
        voice.warn(f"listening on {plan.listens_on}: whoever reaches that address reaches Bullpen")
    say()
    say("  Stop with Ctrl-C; everything is kept for the next time.")
