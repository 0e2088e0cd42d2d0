"""How a command ends badly: one line for the person, one exit code for the script (spec 06 §20.2)."""

from __future__ import annotations

from typing import Final

USAGE: Final = 1
UNREACHABLE: Final = 2
REFUSED: Final = 3
ABSENT: Final = 4
INVALID: Final = 5


class CliError(Exception):
    """What to tell the caller, and the exit code. `detail` is shown only with --debug."""

    def __init__(self, text: str, code: int = USAGE, *, detail: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.code = code
        self.detail = detail
