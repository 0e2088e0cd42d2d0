"""Enter namespaces in which only what a plan names is there: the file system, processes, memory.

Loaded by the warden (`daemon.agents.warden`) where no bubblewrap does the same. A plan is a list of
steps, [kind, source or mode, destination], that build a new root from the old one; every path in it
is real and absolute (`daemon.agents.isolation` makes it). The new root replaces the old one by
pivot_root, so nothing lies below the mounts that hide: as root, capabilities that could undo it are
gone for good; as an ordinary user the mounts belong to one user namespace and the program lives in
another below it. A program may make user namespaces of its own, as agents' sandboxes do: the kernel
hands them these mounts locked together.

Only the standard library, as for the warden.
"""

from __future__ import annotations

import ctypes
import os
import stat

CLONE_NEWNS = 0x00020000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000

_MS_RDONLY = 0x1
_MS_NOSUID = 0x2
_MS_NODEV = 0x4
_MS_NOEXEC = 0x8
_MS_REMOUNT = 0x20
_MS_BIND = 0x1000
_MS_REC = 0x4000
_MS_PRIVATE = 0x40000
_MS_SLAVE = 0x80000
_MNT_DETACH = 2

_SYS_MOUNT_SETATTR = 442  # these numbers are the same on every architecture
_SYS_LANDLOCK_CREATE_RULESET = 444
_SYS_LANDLOCK_RESTRICT_SELF = 446
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41, "i686": 217, "armv7l": 218}
_AT_RECURSIVE = 0x8000
_MOUNT_ATTR_RDONLY = 0x1
_MOUNT_ATTR_NODEV = 0x4
_LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET = 1

_PR_SET_DUMPABLE = 4
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_LAST_CAPABILITY = 63

ROOT_KEEPS = ("chown", "dac_override", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap",
              "net_bind_service", "sys_chroot", "audit_write", "setfcap")  # fmt: skip
"""What root may still do inside: all that packages need to install, nothing that reaches out.

No raw sockets either: through them the loopback's traffic, with its tokens, can be read.
"""

_NUMBERS = {"chown": 0, "dac_override": 1, "fowner": 3, "fsetid": 4, "kill": 5, "setgid": 6,
            "setuid": 7, "setpcap": 8, "net_bind_service": 10, "sys_chroot": 18,
            "audit_write": 29, "setfcap": 31}  # fmt: skip

_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")

_libc = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):
    """The system does not allow it; the text says what it refused."""


def leave(plan: dict[str, object]) -> None:
    """Leave the caller's namespaces for new ones; its next child is process 1 in them.

    As root without a user namespace; for others two of them, one below the other, see `settle`.
    Raises Refused.
    """
    uid, gid = os.geteuid(), os.getegid()
    flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC
    if plan["as_root"]:
        _call("unshare", _libc.unshare(flags))
        return
    _call("user namespace", _libc.unshare(flags | CLONE_NEWUSER))
    _map_ids(0, uid, 0, gid)  # a terminal of its own needs somebody to be its root


def build(steps: list[list[str]]) -> None:
    """Make the new root and step into it; called by process 1. Raises Refused."""
    _mount(None, "/", None, _MS_SLAVE | _MS_REC)
    _mount("tmpfs", "/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV)  # noqa: S108 - any directory will do
    os.mkdir("/tmp/new", 0o755)  # noqa: S108 - no pathlib here
    os.mkdir("/tmp/old", 0o755)  # noqa: S108
    _mount("/tmp/new", "/tmp/new", None, _MS_BIND | _MS_REC)  # noqa: S108
    _pivot("/tmp", "/tmp/old")  # noqa: S108
    os.chdir("/")
    for kind, source, place in steps:
        _take(kind, source, place)
    _mount(None, "/old", None, _MS_PRIVATE | _MS_REC)
    _call("umount", _libc.umount2(b"/old", _MNT_DETACH))
    base = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    os.chdir("/new")
    _pivot(".", ".")
    os.fchdir(base)
    _call("umount", _libc.umount2(b".", _MNT_DETACH))
    os.close(base)
    os.chdir("/")


def settle(plan: dict[str, object]) -> None:
    """As an ordinary user, step into a user namespace that does not own what `build` has made."""
    if not plan["as_root"]:
        uid, gid = int(str(plan["uid"])), int(str(plan["gid"]))
        _call("user namespace", _libc.unshare(CLONE_NEWUSER))
        _map_ids(uid, 0, gid, 0)


def give_up(plan: dict[str, object]) -> None:
    """Give up for good what could undo the plan; bubblewrap leaves as root what is not in use."""
    _drop_capabilities(ROOT_KEEPS if plan["as_root"] else ())
    _call("no_new_privs", _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def shut() -> None:
    """Close what namespaces leave open: this process's inside, and sockets without a path.

    Abstract sockets belong to the network, which is shared; Landlock keeps them apart from 6.12 on.
    """
    _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    rules = (ctypes.c_uint64 * 3)(0, 0, _LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET)
    handle = _libc.syscall(_SYS_LANDLOCK_CREATE_RULESET, rules, ctypes.c_size_t(24), 0)
    if handle >= 0:
        _libc.syscall(_SYS_LANDLOCK_RESTRICT_SELF, handle, 0)
        os.close(handle)


def _take(kind: str, source: str, place: str) -> None:
    new = f"/new{place}" if place != "/" else "/new"
    if kind in ("bind", "ro", "dev"):
        old = f"/old{source}" if source != "/" else "/old"
        try:
            is_directory = stat.S_ISDIR(os.lstat(old).st_mode)
        except OSError:
            return  # gone since the plan was made
        _make_place(new, is_directory)
        _mount(old, new, None, _MS_BIND | _MS_REC)
        _restrict(new, kind)
    elif kind == "tmpfs":
        _make_place(new, True)
        _mount("tmpfs", new, "tmpfs", _MS_NOSUID | _MS_NODEV, f"mode=0{source or '755'}")
    elif kind == "proc":
        _mount("proc", new, "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    elif kind == "devfs":
        _make_devices(new)
    elif kind == "symlink":
        os.symlink(source, new)
    else:
        raise Refused(f"a step of an unknown kind, {kind}")


def _make_devices(new: str) -> None:
    _mount("tmpfs", new, "tmpfs", _MS_NOSUID, "mode=0755")
    for name in _DEVICES:
        _make_place(f"{new}/{name}", False)
        _mount(f"/old/dev/{name}", f"{new}/{name}", None, _MS_BIND)
    for name, target in (("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"),
                         ("stdout", "/proc/self/fd/1"), ("stderr", "/proc/self/fd/2"),
                         ("ptmx", "pts/ptmx"), ("core", "/proc/kcore")):  # fmt: skip
        os.symlink(target, f"{new}/{name}")
    os.mkdir(f"{new}/shm", 0o1777)
    os.chmod(f"{new}/shm", 0o1777)  # noqa: S103 - the umask had its say
    os.mkdir(f"{new}/pts", 0o755)
    options = "newinstance,ptmxmode=0666,mode=620"
    _mount("devpts", f"{new}/pts", "devpts", _MS_NOSUID | _MS_NOEXEC, options)


def _make_place(path: str, is_directory: bool) -> None:
    if os.path.lexists(path):
        return
    parent = os.path.dirname(path)
    os.makedirs(parent, 0o755, exist_ok=True)
    if is_directory:
        os.mkdir(path, 0o755)
    else:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))


def _restrict(place: str, kind: str) -> None:
    """Take away writing or devices, in what is mounted below as well."""
    flags = {"bind": _MOUNT_ATTR_NODEV, "ro": _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NODEV, "dev": 0}[
        kind
    ]
    if not flags:
        return
    attributes = (ctypes.c_uint64 * 4)(flags, 0, 0, 0)
    size = ctypes.c_size_t(32)
    done = _libc.syscall(
        _SYS_MOUNT_SETATTR, -100, os.fsencode(place), _AT_RECURSIVE, attributes, size
    )
    if done == 0:
        return
    kept = os.statvfs(place).f_flag & (_MS_NOSUID | _MS_NODEV | _MS_NOEXEC | 0x1C00)
    wanted = _MS_NODEV | (_MS_RDONLY if kind == "ro" else 0)
    _mount(None, place, None, _MS_BIND | _MS_REMOUNT | kept | wanted)  # before Linux 5.12


def _drop_capabilities(kept: tuple[str, ...]) -> None:
    numbers = {_NUMBERS[name] for name in kept}
    for number in range(_LAST_CAPABILITY + 1):
        if number not in numbers and _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0) != 0:
            break  # the kernel knows no more
    _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    low = sum(1 << number for number in numbers)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)(low, low, 0, 0, 0, 0)  # effective, permitted, inheritable
    _call("capabilities", _libc.capset(header, data))


def _map_ids(uid: int, outer_uid: int, gid: int, outer_gid: int) -> None:
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {outer_uid} 1"),
        ("gid_map", f"{gid} {outer_gid} 1"),
    ):
        try:
            handle = os.open(f"/proc/self/{name}", os.O_WRONLY | os.O_CLOEXEC)
            os.write(handle, text.encode())
            os.close(handle)
        except OSError as error:
            raise Refused(f"{name}: {error.strerror}") from error


def _mount(
    source: str | None, place: str, kind: str | None, flags: int, options: str | None = None
) -> None:
    words = [None if word is None else os.fsencode(word) for word in (source, place, kind, options)]
    done = _libc.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3])
    _call(f"mount {kind or 'bind'} at {place.removeprefix('/new') or '/'}", done)


def _pivot(new: str, old: str) -> None:
    number = _SYS_PIVOT_ROOT.get(os.uname().machine)
    if number is None:
        raise Refused(f"pivot_root on {os.uname().machine}")
    _call("pivot_root", _libc.syscall(number, os.fsencode(new), os.fsencode(old)))


def _call(what: str, result: int) -> None:
    if result != 0:
        raise Refused(f"{what}: {os.strerror(ctypes.get_errno())}")
