"""What an agent's process may see of this machine, and how that is enforced.

Everything is there but what an agent has no business with: the homes of Bullpen with their secrets,
journals and databases, other tasks' directories, other processes, the temporary directory of
everybody else, run-time directories with the sockets of services that would act for it outside, and
devices. Of what is hidden the run's own parts are put back. `plan` says so in steps, which
bubblewrap or the warden itself (`namespaces.py`) carries out. Which of the two works is found out
once, by trying, when the daemon starts; runs find the answer in `machine`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Final, Literal

import attrs

from daemon.agents import warden
from daemon.agents.namespaces import ROOT_KEEPS
from shared.home import Home, find_home

Backend = Literal["bubblewrap", "namespaces", "none"]
Setting = Literal["auto", "required", "off"]

SETTINGS: Final = ("auto", "required", "off")

TMP: Final = "/tmp"  # noqa: S108 - the agent's own
"""What an isolated agent has as its temporary directory: its task's own, under a short name."""

_RUN_KEPT: Final = (
    "/run/systemd/resolve",
    "/run/nscd",
    "/run/host",
    "/run/wrappers",
    "/run/current-system",
    "/run/booted-system",
    "/run/opengl-driver",
)
"""Of /run: names and system profiles. The rest is sockets of services that act outside."""

_DEVICES: Final = ("dri", "kfd", "kvm", "fuse")
_DEVICE_PREFIXES: Final = ("nvidia", "accel")

_PROC_READ_ONLY: Final = ("sys", "sysrq-trigger", "irq", "bus")
"""Of /proc, as root: a line written there is run by the kernel, outside."""


@attrs.frozen(kw_only=True)
class View:
    """What one run may see of what is hidden from all. Paths are absolute.

    `own` is the run's to change, `shared` too, though others have it as well; `read_only` is only
    there. `tmp` becomes the temporary directory.
    """

    own: tuple[Path, ...] = ()
    shared: tuple[Path, ...] = ()
    read_only: tuple[Path, ...] = ()
    tmp: Path | None = None


@attrs.frozen(kw_only=True)
class Isolation:
    """How this machine isolates agents. `problem` says in one sentence why it does not, or ""."""

    backend: Backend = "none"
    setting: Setting = "off"
    problem: str = ""
    bubblewrap: str = ""
    hidden: tuple[Path, ...] = ()
    paths: tuple[Path, ...] = ()
    """What the machine's owner lets agents see all the same."""

    @property
    def is_on(self) -> bool:
        return self.backend != "none"


machine: ContextVar[Isolation] = ContextVar("machine", default=Isolation())  # noqa: B039 - frozen
"""How agents are isolated here; set once, by `probing.py`, before anything is started."""


class NotIsolated(Exception):
    """Agents must be isolated and cannot be; the text says why and what to do."""


class Unsafe(Exception):
    """A path of a run leads into what is hidden; the text names it."""


def hidden_of(home: Home, workspaces: Path) -> tuple[Path, ...]:
    """The directories no agent sees: this home, the usual one, and where tasks' directories are.

    A home that is somebody's home directory, or above one, is hidden by its parts.
    """
    places: list[Path] = []
    for place in (home, find_home({})):
        base = Path(os.path.realpath(place.base))
        users = Path(os.path.realpath(Path.home()))
        if users.is_relative_to(base):
            places += [base / part.relative_to(place.base) for part in _parts(place)]
        else:
            places.append(base)
    places.append(Path(os.path.realpath(workspaces)))
    return tuple(dict.fromkeys(places))


def _parts(home: Home) -> list[Path]:
    own = [home.secrets, home.postgres, home.logs, home.journals, home.borrowed, home.workspaces]
    return [*own, home.base / "profiles", home.root / "attachments"]


def command(
    isolation: Isolation,
    view: View,
    *,
    argv: Sequence[str],
    cwd: Path,
    env: Mapping[str, str],
    keeper: int,
    stdin: int,
    stdout: int,
) -> tuple[list[str], bytes]:
    """Return the command that runs a program isolated, and what the warden is to be sent first.

    Raises Unsafe. Looks at the disk.
    """
    steps = plan(isolation, view, cwd=cwd, program=argv[0], env=env)
    told = {
        "mode": "inside" if isolation.backend == "bubblewrap" else "own",
        "stdin": stdin,
        "stdout": stdout,
        "cwd": os.path.realpath(cwd),
        "as_root": os.geteuid() == 0,
        "uid": os.geteuid(),
        "gid": os.getegid(),
    }
    start = [sys.executable, "-I", "-S", warden.__file__, f"{keeper}+", *argv]
    if isolation.backend == "namespaces":
        text = json.dumps({**told, "steps": steps}).encode()
    else:
        text = json.dumps(told).encode()
        start = [*_bubblewrap(isolation, steps), "--", *start]
    return start, b"%08d" % len(text) + text


def _bubblewrap(isolation: Isolation, steps: Iterable[Sequence[str]]) -> list[str]:
    words = [isolation.bubblewrap, "--unshare-ipc", "--unshare-pid", "--as-pid-1"]
    if os.geteuid() == 0:
        words += ["--cap-drop", "ALL"]
        for name in ROOT_KEEPS:
            words += ["--cap-add", f"CAP_{name.upper()}"]
    else:
        words += ["--unshare-user"]
    names = {"bind": "--bind-try", "ro": "--ro-bind-try", "dev": "--dev-bind-try"}
    for kind, source, place in steps:
        match kind:
            case "bind" | "ro" | "dev":
                words += [names[kind], source, place]
            case "tmpfs":
                words += ["--perms", f"0{source or '755'}", "--tmpfs", place]
            case "symlink":
                words += ["--symlink", source, place]
            case _:
                words += [{"proc": "--proc", "devfs": "--dev"}[kind], place]
    return words


def plan(
    isolation: Isolation, view: View, *, cwd: Path, program: str, env: Mapping[str, str]
) -> list[list[str]]:
    """Return the steps, [kind, source or mode, place], in order. Raises Unsafe.

    What is put back later wins: first everything, then without what is everybody's, then what of
    that the user has there, then without Bullpen's own, and last the run's parts of that.
    """
    mounts = _mounts()
    hidden = _with_aliases(isolation.hidden, mounts)
    steps = [["bind", "/", "/"], ["devfs", "", "/dev"]]
    steps += [["dev", device, device] for device in _devices()]
    steps += [["proc", "", "/proc"]]
    if os.geteuid() == 0:
        steps += [["ro", f"/proc/{name}", f"/proc/{name}"] for name in _PROC_READ_ONLY]
    steps += [["tmpfs", "", where] for where in _other_procs(mounts)]
    steps += [["ro", "/sys", "/sys"], ["tmpfs", "755", "/run"]]
    steps += [["ro", path, path] for path in _kept_of_run()]
    if runtime := _runtime_directory():
        steps.append(["tmpfs", "700", runtime])
    cleared = ["/run", TMP, "/var/tmp", "/dev"]  # noqa: S108
    steps += _tmp_steps(view)

    installation = _installation()
    back = [(path, "ro") for path in (*installation, *_program_directories(program, env))]
    back += [(path, "bind") for path in _users_places(cwd, env)]
    for path, kind in back:
        real = os.path.realpath(path)
        if _is_below(real, cleared) and real not in cleared:
            steps.append([kind, real, real])
    writable = [os.path.realpath(path) for path in (cwd, *view.own, *view.shared)]
    for path in installation:  # what the daemon itself runs
        real = os.path.realpath(path)
        if not any(_is_below(each, [real]) or _is_below(real, [each]) for each in writable):
            steps.append(["ro", real, real])
    for allowed in isolation.paths:
        real = os.path.realpath(allowed)
        if not any(_is_below(real, [each]) or _is_below(each, [real]) for each in hidden):
            steps.append(["dev" if real.startswith("/dev/") else "bind", real, real])

    # As large as what is above them first: a tmpfs would cover what is put back below it.
    for where in sorted(hidden):
        if os.path.isdir(where):
            steps.append(["tmpfs", "755", where])
        elif os.path.exists(where):
            steps.append(["ro", "/dev/null", where])
    for path in installation:
        real = os.path.realpath(path)
        if _is_below(real, hidden):
            steps.append(["ro", real, real])
    for kind, paths in (("ro", view.read_only), ("bind", view.shared), ("bind", view.own)):
        steps += [[kind, *_own_place(path, hidden)] for path in paths]
    return steps


def _own_place(path: Path, hidden: Sequence[str]) -> tuple[str, str]:
    """A run's own directory, which no link may lead away from. Raises Unsafe."""
    parent = os.path.realpath(path.parent)
    real = os.path.join(parent, path.name)
    if os.path.realpath(real) != real:
        raise Unsafe(f"{path} is a link: agents get no directory that leads elsewhere")
    if real in hidden or any(_is_below(each, [real]) for each in hidden):
        raise Unsafe(f"{path} holds what agents may not see")
    return real, real


def _tmp_steps(view: View) -> list[list[str]]:
    """A temporary directory of its own, on disk if the run has one, and nobody else's."""
    if view.tmp is None:
        return [["tmpfs", "1777", TMP], ["tmpfs", "1777", "/var/tmp"]]  # noqa: S108
    real, _ = _own_place(view.tmp, ())
    return [["bind", real, TMP], ["bind", real, "/var/tmp"]]  # noqa: S108


def _kept_of_run() -> list[str]:
    kept = [path for path in _RUN_KEPT if os.path.lexists(path)]
    resolver = os.path.realpath("/etc/resolv.conf")
    if resolver.startswith("/run/") and not _is_below(resolver, kept):
        kept.append(resolver)
    return [os.path.realpath(path) for path in kept]


def _runtime_directory() -> str:
    """The user's /run/user/…: empty inside, since its sockets start programs outside."""
    path = f"/run/user/{os.geteuid()}"
    return path if os.path.isdir(path) else ""


def _devices() -> list[str]:
    try:
        names = sorted(os.listdir("/dev"))
    except OSError:
        return []
    return [
        f"/dev/{name}" for name in names if name in _DEVICES or name.startswith(_DEVICE_PREFIXES)
    ]


def _installation() -> list[str]:
    """Where Bullpen's own packages and its interpreter are, unless that is the system's."""
    source = str(Path(__file__).resolve().parents[2])
    found = dict.fromkeys([sys.base_prefix, sys.prefix, source])
    return [path for path in found if path not in ("/", "/usr", "/usr/local")]


def _program_directories(program: str, env: Mapping[str, str]) -> list[str]:
    found = shutil.which(program, path=env.get("PATH", os.defpath)) or program
    return [os.path.dirname(os.path.abspath(found)), os.path.dirname(os.path.realpath(found))]


def _users_places(cwd: Path, env: Mapping[str, str]) -> list[str]:
    """Where the run works, the user's home, and the agent that holds their ssh keys."""
    names = (env.get("HOME", ""), env.get("SSH_AUTH_SOCK", ""))
    return [*(name for name in names if name.startswith("/")), str(cwd)]


def _is_below(path: str, places: Iterable[str]) -> bool:
    """Whether a path is one of the places or below one."""
    return any(path == place or path.startswith(place.rstrip("/") + "/") for place in places)


@attrs.frozen
class _Mount:
    device: str
    root: str
    place: str
    kind: str


def _mounts() -> list[_Mount]:
    try:
        text = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return []
    found = []
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        words = before.split()
        root, place = (_unescaped(word) for word in words[3:5])
        found.append(_Mount(words[2], root, place, after.split()[0]))
    return found


def _unescaped(word: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        word = word.replace(code, character)
    return word


def _with_aliases(paths: Iterable[Path], mounts: Sequence[_Mount]) -> list[str]:
    """The paths, and every other one by which the same directories can be reached."""
    found: dict[str, None] = {}
    for path in paths:
        text = str(path)
        found[text] = None
        above = [each for each in mounts if _is_below(text, [each.place])]
        if not above:
            continue
        home = max(enumerate(above), key=lambda pair: (len(pair[1].place), pair[0]))[1]
        inside = _below(home.root, os.path.relpath(text, home.place))
        for other in mounts:
            if other.device != home.device or other is home:
                continue
            if _is_below(inside, [other.root]):
                alias = _below(other.place, os.path.relpath(inside, other.root))
                if os.path.isdir(alias) and os.path.samestat(*_stats(alias, text)):
                    found[alias] = None
            elif _is_below(other.root, [inside]) and not _is_below(other.place, [text]):
                found[other.place] = None
    return list(found)


def _below(place: str, rest: str) -> str:
    return os.path.normpath(os.path.join(place, rest))


def _stats(one: str, other: str) -> tuple[os.stat_result, os.stat_result]:
    try:
        return os.stat(one), os.stat(other)
    except OSError:
        return os.stat("/"), os.stat("/proc")


def _other_procs(mounts: Iterable[_Mount]) -> list[str]:
    """Process file systems besides /proc, as for a chroot: they show everybody."""
    return [
        each.place
        for each in mounts
        if each.kind == "proc" and not _is_below(each.place, ["/proc"])
    ]


def private_directory(view: View) -> Path:
    """Where the daemon puts files for one run alone."""
    return view.tmp or Path(tempfile.gettempdir())
