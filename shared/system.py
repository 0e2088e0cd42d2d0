"""What the operating system refuses now and may grant the next moment. ◇"""

from __future__ import annotations

import errno
from typing import Final

EXHAUSTED: Final = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EBUSY, errno.EINTR}
)
"""The machine, or this process, has too much of something."""

FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
"""The disk has no room, or this user may not have more of it."""

REPLACED: Final = frozenset({errno.ENOENT, errno.ENOEXEC, errno.EACCES, errno.ETXTBSY})
"""A program is missing, empty, not executable or being written: so it is while it is installed."""
