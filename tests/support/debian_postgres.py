"""Run a command against Debian's own PostgreSQL, the oldest version Bullpen supports.

`python -m tests.support.debian_postgres COMMAND…` makes a throw-away cluster in a temporary
directory, runs the command with `BULLPEN_TEST_DATABASE_URL` naming it, stops it and exits as the
command did. As root on a machine with apt it installs the package first; where there is none and
that cannot be, it exits with NONE.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

NONE = 77
"""Exit status for "no such server here", as test suites use it for "skipped"."""

_PACKAGE = "postgresql-15"
_BIN = Path("/usr/lib/postgresql/15/bin")
_USER = "postgres"
_NO_CLUSTER = Path("/etc/postgresql-common/createcluster.conf")
_SETTINGS = (
    "-c fsync=off -c synchronous_commit=off -c full_page_writes=off "
    "-c max_connections=150 -c listen_addresses='' -c shared_buffers=64MB"
)


def main(command: list[str]) -> int:
    if not (_BIN / "initdb").exists() and not _install():
        print(f"no {_PACKAGE} on this machine, and it cannot be installed", file=sys.stderr)
        return NONE
    root = Path(tempfile.mkdtemp(prefix="bullpen-debian-"))
    try:
        if os.geteuid() == 0:
            owner = pwd.getpwnam(_USER)
            os.chown(root, owner.pw_uid, owner.pw_gid)
        data = root / "data"
        _run("initdb", "-D", data, "-U", _USER, "--auth=trust", "--encoding=UTF8", "--no-sync")
        settings = f"{_SETTINGS} -k {root}"
        _run("pg_ctl", "-D", data, "-w", "-l", root / "log", "-o", settings, "start")
        try:
            url = f"postgresql://{_USER}@/postgres?host={root}"
            env = os.environ | {"BULLPEN_TEST_DATABASE_URL": url}
            return subprocess.run(command, env=env, check=False).returncode
        finally:
            _run("pg_ctl", "-D", data, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _run(program: str, *words: object) -> None:
    as_user = ["runuser", "-u", _USER, "--"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*as_user, str(_BIN / program), *map(str, words)],
        stdout=subprocess.DEVNULL,
        check=False,
        timeout=120,
    )
    if done.returncode:
        sys.exit(f"{program} failed")


def _install() -> bool:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return False
    if not _NO_CLUSTER.exists():  # the package would start a server of its own
        _NO_CLUSTER.parent.mkdir(parents=True, exist_ok=True)
        _NO_CLUSTER.write_text("create_main_cluster = false\n")
    quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    apt = ["apt-get", "-q", "-y", "-o", "Dpkg::Use-Pty=0"]
    for words in (["update"], ["install", "--no-install-recommends", _PACKAGE]):
        if subprocess.run([*apt, *words], env=quiet, check=False).returncode:
            return False
    return (_BIN / "initdb").exists()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
