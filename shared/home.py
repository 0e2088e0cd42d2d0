"""Where Bullpen keeps its files: one directory, moved as a whole by `BULLPEN_HOME` or `--home`.

Without either it is the platform's user data directory. A CLI profile has its own directory below
`profiles/`; only the machine's daemon id is shared by all profiles (spec 03 §1).
"""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import attrs
import platformdirs

OURS: Final = "x-bullpen"
"""The header by which our own commands ask a daemon how it is (`daemon/control.py`)."""


@attrs.frozen
class Home:
    """The paths below one home directory; nothing is created by naming it."""

    base: Path
    profile: str = ""

    @property
    def root(self) -> Path:
        return self.base / "profiles" / self.profile if self.profile else self.base

    @property
    def config_file(self) -> Path:
        """The command line's settings and the daemon's sign-in: server_url, token, workspace_id."""
        return self.root / "config.json"

    @property
    def up_file(self) -> Path:
        """What `bullpen up` says of its processes while it runs."""
        return self.root / "up.json"

    @property
    def daemon_file(self) -> Path:
        """The running daemon's pid, control port and secret."""
        return self.root / "daemon.json"

    @property
    def daemon_id_file(self) -> Path:
        return self.base / "daemon.id"

    @property
    def machine_key_file(self) -> Path:
        """What proves to servers that this is the machine that registered before."""
        return self.root / "secrets" / "machine.key"

    @property
    def directories_file(self) -> Path:
        """The directories of the user's that tasks may work in."""
        return self.root / "secrets" / "directories.json"

    @property
    def postgres(self) -> Path:
        """The embedded Postgres' data directory."""
        return self.root / "postgres"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def journals(self) -> Path:
        """One journal a task, kept until the server has confirmed everything in it."""
        return self.root / "journals"

    @property
    def borrowed(self) -> Path:
        """One record a directory of the user's that a task works in now (or did in a crash)."""
        return self.root / "borrowed"

    @property
    def workspaces(self) -> Path:
        """Where tasks get their work directories."""
        return self.root / "workspaces"


def find_home(
    env: Mapping[str, str] = os.environ, *, home: str | Path | None = None, profile: str = ""
) -> Home:
    """Resolve the home directory: the argument, then `BULLPEN_HOME`, then the platform's place."""
    chosen = home or env.get("BULLPEN_HOME", "").strip()
    base = Path(chosen).expanduser() if chosen else platformdirs.user_data_path("bullpen")
    return Home(base.absolute(), profile)


def write_private(path: Path, text: str) -> None:
    """Replace a file atomically with one only its owner can read, on disk before the rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def private_secret(path: Path) -> str:
    """Return the secret kept in a file, minting it on first use."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        text = ""
    if not text:
        text = secrets.token_urlsafe(32)
        write_private(path, text + "\n")
    return text
