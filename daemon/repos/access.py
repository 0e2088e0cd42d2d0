"""A password for a repository's server, and how git gets it: by a helper, from its environment.

It stands in no address, no command line and no file. The helper answers for one host only, so that
neither a redirect nor a submodule elsewhere is given it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import unquote, urlsplit

import attrs

_USER: Final = "BULLPEN_REPOSITORY_USER"
_PASSWORD: Final = "BULLPEN_REPOSITORY_PASSWORD"
_HELPER: Final = f'!f() {{ test "$1" = get && printf \'username=%s\\npassword=%s\\n\' "${_USER}" "${_PASSWORD}"; }}; f'


@attrs.frozen(kw_only=True)
class Access:
    """User and password for the server of a repository; `server` is e.g. `https://host:8443`."""

    server: str
    user: str
    password: str = attrs.field(repr=False)

    @property
    def settings(self) -> tuple[tuple[str, str], ...]:
        """Git's settings; the empty helper puts away those of the user's."""
        name = f"credential.{self.server}.helper"
        return (name, ""), (name, _HELPER)

    @property
    def variables(self) -> Mapping[str, str]:
        return {_USER: self.user, _PASSWORD: self.password}


def access_to(url: str, userinfo: str) -> Access | None:
    """The access to an address by what stood before its host; None if nothing did."""
    parts = urlsplit(url)
    if not userinfo or parts.scheme.lower() not in ("http", "https"):
        return None
    user, _, password = userinfo.partition(":")
    server = f"{parts.scheme.lower()}://{parts.netloc.rpartition('@')[2].lower()}"
    return Access(server=server, user=_plain(user), password=_plain(password))


def _plain(text: str) -> str:
    """Text without what would be a line of its own to git."""
    return "".join(letter for letter in unquote(text) if ord(letter) >= 32)
