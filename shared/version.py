"""What a daemon of a given version can do. Pure.

Daemons of the reference tell their version, and features need a least one (spec 01 §3.1); builds
between two of its releases count as new. Our own count from another beginning, and have everything
the server of their release asks for.
"""

from __future__ import annotations

import re
from typing import Final

from shared import __version__

PROTOCOL_VERSION: Final = "0.3.28"
"""The reference's version whose protocol our daemon speaks. Servers of the protocol switch features
off for daemons that say less, so this is what ours says there; its own version stands beside it."""

HANDOFF_NOTES: Final = (0, 3, 28)
QUICK_CREATE: Final = (0, 2, 21)

_VERSION: Final = re.compile(r"v?(\d+)\.(\d+)\.(\d+)")
_DEV_BUILD: Final = re.compile(r"v?\d+\.\d+\.\d+-\d+-g[0-9a-fA-F]+")


def supports(cli_version: str, least: tuple[int, int, int]) -> bool:
    """Tell whether a daemon of this version has what came with `least`."""
    if cli_version == __version__ or _DEV_BUILD.fullmatch(cli_version):
        return True
    match = _VERSION.match(cli_version)
    return match is not None and tuple(int(part) for part in match.groups()) >= least
