"""Addresses of repositories as members send them: checked, and taken apart at the entrance. ◇"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

from server.errors import Invalid
from shared.addresses import split_address

_REF: Final = re.compile(r"[^-+^\x00-\x20\x7f:~?*\[\\][^\x00-\x20\x7f:~^?*\[\\]*")
_LONGEST: Final = 250


def split(url: str) -> tuple[str, str]:
    """The address that is shown, and what stood before its host (user and password) or "".

    Raises Invalid for a password where git would not use it.
    """
    shown, userinfo = split_address(url.strip())
    if "://" in shown and not userinfo:
        try:
            has_password = urlsplit(shown).password is not None
        except ValueError:
            has_password = False
        if has_password:
            raise Invalid("only http and https addresses may hold a password")
    return shown, userinfo


def ref_of(text: str) -> str:
    """A branch, tag or commit to start from; "" for none. Raises Invalid."""
    ref = text.strip()
    if ref and (len(ref) > _LONGEST or ".." in ref or not _REF.fullmatch(ref)):
        raise Invalid("ref must be a branch, a tag or a commit")
    return ref
