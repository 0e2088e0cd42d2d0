"""Who this daemon is: one id for the machine, and the names it may have had before.

The id outlives restarts, upgrades and CLI profiles, because the server keys runtimes by it
(spec 03 §4). The legacy ids let the server fold rows of earlier identities into this one.
"""

from __future__ import annotations

import secrets
import time
import uuid
from contextlib import suppress
from pathlib import Path

from shared.home import Home, write_private
from shared.ids import InvalidId, canonical_id


class IdentityError(Exception):
    """The id file exists and cannot be read; minting another id would orphan every runtime."""


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
    promoted = _try_read(home.root / "daemon.id") if home.profile else None
    chosen = promoted or new_daemon_id()
    write_private(home.daemon_id_file, chosen + "\n")
    return chosen


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


def _try_read(path: Path) -> str | None:
    try:
        return canonical_id(path.read_text(encoding="utf-8").strip())
    except (FileNotFoundError, InvalidId, UnicodeDecodeError):
        return None
    except OSError as error:
        raise IdentityError(f"cannot read the daemon id in {path}: {error}") from error
