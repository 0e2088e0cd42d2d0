"""Who this daemon is: one id for the machine, and the names it may have had before.

The id outlives restarts, upgrades and CLI profiles, because the server keys runtimes by it
(spec 03 §4). The legacy ids let the server fold rows of earlier identities into this one.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
import uuid
from contextlib import suppress
from pathlib import Path

from shared.home import Home, private_secret, write_private
from shared.ids import InvalidId, canonical_id


class IdentityError(Exception):
    """A file of this identity exists and cannot be read; a new one would orphan every runtime."""


def new_daemon_id() -> str:
    """Mint a UUIDv7: sorts by time of creation, so the oldest identity of a machine shows."""
    millis = time.time_ns() // 1_000_000
    value = (millis << 80) | (0x7 << 76) | (secrets.randbits(12) << 64)
    value |= (0b10 << 62) | secrets.randbits(62)
    return str(uuid.UUID(int=value))


def load_daemon_id(home: Home) -> str:
    """Read the machine's daemon id; take over a profile's own old one, or mint one.

    Raises IdentityError if the file is there but unreadable. Unparsable content is replaced.
    """
    known = _try_read(home.daemon_id_file)
    if known is not None:
        return known
    chosen = find_daemon_id(home) or new_daemon_id()
    write_private(home.daemon_id_file, chosen + "\n")
    return chosen


def find_daemon_id(home: Home) -> str:
    """The machine's daemon id, or an old one of the profile's; "" before there is any.

    Raises IdentityError.
    """
    old = home.root / "daemon.id" if home.profile else home.daemon_id_file
    return _try_read(home.daemon_id_file) or _try_read(old) or ""


def legacy_daemon_ids(home: Home, *, hostname: str, daemon_id: str) -> tuple[str, ...]:
    """List ids this machine may be registered under from before (spec 03 §4), never `daemon_id`."""
    host = hostname.removesuffix(".local")
    names = [host, f"{host}.local"] if host else []
    if home.profile:
        names += [f"{name}-{home.profile}" for name in names]
    for path in sorted((home.base / "profiles").glob("*/daemon.id")):
        with suppress(IdentityError):
            known = _try_read(path)
            if known is not None:
                names.append(known)
    return tuple(name for name in dict.fromkeys(names) if name != daemon_id)


def load_machine_key(home: Home) -> str:
    """Read the secret by which servers know this machine again, making it on first use.

    It is the profile's own: two accounts on one machine do not take it from each other. Raises
    IdentityError.
    """
    try:
        return private_secret(home.machine_key_file)
    except (OSError, UnicodeDecodeError) as error:
        raise IdentityError(f"cannot read the machine's key: {error}") from error


def machine_proof(key: str, *, server_url: str, workspace_id: str) -> str:
    """What this machine shows one server for one workspace: worth nothing anywhere else. Pure.

    A server keeps only a hash of it, so neither another server nor a reader of its tables can pass
    for the machine; on the wire it is as safe as the token beside it.
    """
    what = f"bullpen machine\n{server_url}\n{workspace_id}".encode()
    return hmac.new(key.encode(), what, hashlib.sha256).hexdigest()


def _try_read(path: Path) -> str | None:
    try:
        return canonical_id(path.read_text(encoding="utf-8").strip())
    except (FileNotFoundError, InvalidId, UnicodeDecodeError):
        return None
    except OSError as error:
        raise IdentityError(f"cannot read the daemon id in {path}: {error}") from error
