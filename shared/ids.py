"""Identifiers and secrets: minting, canonical forms and hashes. Pure.

Ids on the wire are lower-case hyphenated UUIDs (spec 01 §0). Tokens are a kind prefix and
forty hex digits; only their SHA-256 is ever stored (spec 01 §2.1).
"""

from __future__ import annotations

import hashlib
import secrets
import uuid
from collections.abc import Iterable
from typing import Final

PERSONAL_TOKEN: Final = "mul_"
DAEMON_TOKEN: Final = "mdt_"
TASK_TOKEN: Final = "mat_"

TOKEN_PREFIX_LENGTH: Final = 12
"""How much of a personal token may be shown to recognise it by."""


class InvalidId(ValueError):
    """The text is not a UUID."""


def new_id() -> str:
    """Mint a random (version 4) UUID in canonical form."""
    return str(uuid.uuid4())


def new_request_id() -> str:
    """Mint an id for an update, model-list or skill request: 32 hex digits (spec 01 §0)."""
    return secrets.token_hex(16)


def canonical_id(text: str) -> str:
    """Return the canonical form of a UUID given in any form Postgres accepts.

    Raises InvalidId for anything else.
    """
    try:
        return str(uuid.UUID(text))
    except (ValueError, AttributeError, TypeError) as error:
        raise InvalidId(text) from error


def is_id(text: str) -> bool:
    """Tell whether the text is a UUID in any accepted form."""
    try:
        canonical_id(text)
    except InvalidId:
        return False
    return True


def short_id(full: str) -> str:
    """Return the last eight hex digits, for showing to people; never a key.

    Of ids that begin with the time, all those of a minute have the same beginning.
    """
    return full.replace("-", "")[-8:]


def short_ids(full: Iterable[str]) -> dict[str, str]:
    """Return for each id its beginning of eight characters, or of as many as tell all apart."""
    known = set(full)
    length = next((n for n in range(8, 36) if len({one[:n] for one in known}) == len(known)), 36)
    return {one: one[:length].rstrip("-") for one in known}


def machine_key(daemon_id: str) -> str:
    """Return by what a daemon's id is compared: neither case nor blanks around count.

    The database's function of the same name says the same.
    """
    return daemon_id.strip().lower()


def mint_token(prefix: str) -> str:
    """Mint a secret of the given kind: the prefix and 40 hex digits."""
    return prefix + secrets.token_hex(20)


def hash_token(token: str) -> str:
    """Return the form in which a token is stored: hex SHA-256 of the whole string."""
    return hashlib.sha256(token.encode()).hexdigest()
