"""Run this tree's Python as an ordinary user, also where only root can read it.

As root the tree, the interpreter and its packages are bound, in a mount namespace of the command's
own, to places that everybody can reach. Not as root the command runs as it is.
"""

from __future__ import annotations

import os
import shlex
import shutil
import site
import sys
import sysconfig
from pathlib import Path

from tests.support.scripted_agent import ROOT

UID = 54321
"""Nobody's on any machine; no account is needed."""

_PLACE = Path("/opt/bullpen-as-user")


def is_possible() -> bool:
    """Whether this process can run something as an ordinary user."""
    return os.geteuid() != 0 or all(shutil.which(name) for name in ("unshare", "setpriv"))


def command(words: list[str], home: Path, *owned: Path) -> list[str]:
    """The command that runs Python with these words as an ordinary user at home in `home`.

    The user gets the directories in `owned` too.
    """
    if os.geteuid() != 0:
        return [sys.executable, *words]
    for place in (home, *owned):
        os.chown(place, UID, UID)
    for place in (home, *home.parents):  # pytest's own directories are root's alone
        if place != Path("/") and place.stat().st_mode & 0o011 != 0o011:
            place.chmod(place.stat().st_mode | 0o011)
    packages = site.getsitepackages()[0]
    inside = Path("python") / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    bound = {"python": sys.base_prefix, "source": str(ROOT), str(inside): packages}
    lines = ["set -e"]
    for name, source in bound.items():
        lines.append(f"mkdir -p {_PLACE / name}")
        lines.append(f"mount --bind {shlex.quote(source)} {_PLACE / name}")
    people = home / "passwd"  # Postgres asks for the user's name
    entry = f"bullpen-test:x:{UID}:{UID}::{home}:/bin/sh"
    people.write_text(f"{Path('/etc/passwd').read_text()}{entry}\n")
    people.chmod(0o644)
    lines.append(f"mount --bind {shlex.quote(str(people))} /etc/passwd")
    env = {
        "HOME": str(home),
        "LD_LIBRARY_PATH": f"{_PLACE}/python/lib",
        "PYTHONPATH": f"{_PLACE}/source",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    lines += [f"export {name}={shlex.quote(value)}" for name, value in env.items()]
    user = f"setpriv --reuid {UID} --regid {UID} --clear-groups"
    lines.append(f"cd {shlex.quote(str(home))}")
    lines.append(f'exec {user} {_PLACE}/python/bin/python3 "$@"')
    return ["unshare", "-m", "sh", "-c", "\n".join(lines), "sh", *words]
