"""The kind of command group there is below the root: its help tells what each command does, whole."""

from __future__ import annotations

import click


class Group(click.Group):
    """A group whose help breaks long sentences into lines, where click would cut them off."""

    group_class = type  # groups in it are of its kind

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each command with the first sentence of its help."""
        found = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [
            (name, command.get_short_help_str(1000))
            for name, command in found
            if command is not None and not command.hidden
        ]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)
