"""A user's directory is borrowed: what we put into it comes out again, to the byte.

Before anything in it is touched, one record says everything that is about to be done: files and
directories that will be made, the file the brief is merged into with its bytes and its times, and
the lines in git's exclude file. `give_back` undoes a record, at the end of the run or, when the
daemon was killed, at its next start. It may find any state in between, and the user's own edits:
what is not ours stays, and what somebody changed in a file of ours is moved to the task's own
directory (`kept/`) rather than lost. Records lie in Bullpen's home, out of the agent's way. All calls
are small and synchronous.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

import attrs
import structlog

from daemon.workdir.brief import block_of, without_block, written_brief
from daemon.workdir.local import Excludes
from daemon.workdir.sidecars import Sidecars, deepest_first, new_file
from shared import codec
from shared.home import write_private

log = structlog.get_logger(__name__)

SUFFIX: Final = ".json"

PATIENCE: Final = 30 * 86400.0
"""Seconds a record waits for a directory that is not there: perhaps a disk that is not mounted."""

_BEGIN: Final = b"# BEGIN MULTICA-RUNTIME (auto-managed; do not edit) "
_END: Final = b"# END MULTICA-RUNTIME "
_ANY_BLOCK: Final = re.compile(
    rb"\n" + re.escape(_BEGIN) + rb"(\S+)( alone)?\n(?:.*\n)*?" + re.escape(_END) + rb"\1\n"
)


@attrs.frozen(kw_only=True)
class MadeFile:
    path: str
    size: int
    sha256: str


@attrs.frozen(kw_only=True)
class Edit:
    """A file whose content is changed in place. Bytes are kept as latin-1; None is "no file".

    `states` are all contents it may have had by our doing, the last one being written now.
    """

    path: str
    before: str | None = None
    states: list[str] = attrs.field(factory=list)
    accessed: int = 0
    modified: int = 0


@attrs.frozen(kw_only=True)
class ExcludeEdit:
    """Our lines in git's exclude file. `alone`: but for lines of ours there is no such file."""

    path: str
    block: str
    alone: bool = False
    made_dir: bool = False
    before_sha256: str = ""
    accessed: int = 0
    modified: int = 0


@attrs.frozen(kw_only=True)
class Record:
    """Everything done to one directory for one task. Times are nanoseconds, `at` is seconds."""

    task_id: str
    root: str
    env_root: str
    at: float = 0.0
    identity: list[int] = attrs.field(factory=list)
    files: list[MadeFile] = attrs.field(factory=list)
    dirs: list[str] = attrs.field(factory=list)
    skills: list[str] = attrs.field(factory=list)
    brief: Edit | None = None
    exclude: ExcludeEdit | None = None


class Borrowed:
    """One task's loan. Only that task uses it; everybody else sees the record."""

    def __init__(self, folder: Path, task_id: str, root: Path, env_root: Path) -> None:
        self.path = folder / f"{task_id}{SUFFIX}"
        self._root = root
        self._tracked: frozenset[Path] = frozenset()
        self._record = Record(
            task_id=task_id, root=str(root), env_root=str(env_root), at=time.time()
        )

    def put(self, sidecars: Sidecars, brief_name: str | None, excludes: Excludes | None) -> None:
        """Make the planned files, hidden from git for as long as they are there. Raises OSError.

        The brief's file is hidden too, also where it is the user's: with the brief in it, it is not
        what they would have committed. One that git tracks cannot be hidden, and gets no brief.
        """
        hidden = [f"{folder}/" for folder in sidecars.skills]
        hidden += [
            str(path)
            for path in sidecars.files
            if not any(path.is_relative_to(folder) for folder in sidecars.skills)
        ]
        self._tracked = excludes.tracked if excludes is not None else frozenset()
        if brief_name is not None:
            brief = _place_in(self._root, self._root / brief_name)
            if brief is not None and brief not in self._tracked:
                hidden.append(str(brief))
        status = self._root.stat()
        self._save(
            attrs.evolve(
                self._record,
                identity=[status.st_dev, status.st_ino],
                files=[
                    MadeFile(path=str(path), size=len(data), sha256=_sha256(data))
                    for path, data in sidecars.files.items()
                ],
                dirs=[str(path) for path in sidecars.dirs],
                skills=[str(path) for path in sidecars.skills],
            )
        )
        if excludes is not None:
            try:
                self._hide(excludes, hidden)
            except OSError as error:
                log.warning("not hidden from git", path=str(excludes.file), error=str(error))
        sidecars.create()

    def write_brief(self, name: str, brief: str) -> bool:
        """Put the brief into its file, around what else it holds; False if that cannot be.

        A link that leads out of the directory is not followed: what is there is not lent to us. What
        git tracks stays as it is: it would be in the agent's commits, stashes and other branches.
        """
        path = _place_in(self._root, self._root / name)
        if path is None or path in self._tracked:
            return False
        try:
            with _opened(path) as held:
                now = held.read() if held is not None else None
                after = written_brief(now, brief)
                edit = _next_edit(self._record.brief, str(path), now, held)
                edit = attrs.evolve(edit, states=[*edit.states, after.decode("latin-1")])
                self._save(attrs.evolve(self._record, brief=edit))
                if held is not None:
                    held.write(now or b"", after)
            if now is None:
                new_file(path, after)
        except OSError as error:
            log.warning("brief not written", path=str(path), error=str(error))
            return False
        return True

    def _hide(self, excludes: Excludes, paths: list[str]) -> None:
        """Add anchored patterns to git's exclude file, in a block that names the task.

        Every working tree of the repository reads the same file, so there may be others' blocks.
        """
        lines = [_pattern(excludes.prefix, self._root, path) for path in paths]
        name = self._record.task_id.encode()
        file = excludes.file
        with _opened(file) as held:
            before = held.read() if held is not None else b""
            others = _ANY_BLOCK.match(before)
            alone = held is None or bool(
                others and others[2] and _ANY_BLOCK.sub(b"", before) == b""
            )
            block = b"\n" + _BEGIN + name + (b" alone" if alone else b"") + b"\n"
            block += b"".join(lines) + _END + name + b"\n"
            edit = ExcludeEdit(
                path=str(file),
                block=block.decode("latin-1"),
                alone=alone,
                made_dir=not file.parent.exists(),
                before_sha256=_sha256(before),
                accessed=held.accessed if held is not None else 0,
                modified=held.modified if held is not None else 0,
            )
            self._save(attrs.evolve(self._record, exclude=edit))
            if held is not None:
                held.write(before, before + block)
                return
        file.parent.mkdir(exist_ok=True)
        new_file(file, block)

    def _save(self, record: Record) -> None:
        """On disk before what it tells of is done."""
        self._record = record
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(self.path, json.dumps(attrs.asdict(record)) + "\n")
        _sync_folder(self.path.parent)


def give_back(path: Path) -> bool:
    """Undo what the record says, as far as it was done, and remove the record; True if all worked.

    Never raises: what cannot be undone now is logged, and its record stays for the next time.
    """
    record = _read(path)
    if record is None:
        return not path.exists()
    root = Path(record.root)
    same, away = _look_at(root, record)
    steps: list[tuple[str, Callable[[], None]]] = []
    if record.exclude is not None:
        steps.append((record.exclude.path, partial(_undo_exclude, record)))
    if record.brief is not None and not away:
        steps.append((record.brief.path, partial(_undo_brief, record)))
    if not away:
        steps += [
            (made.path, partial(_undo_file, record, made, same=same)) for made in record.files
        ]
        steps += [(skill, partial(_undo_skill, record, skill)) for skill in record.skills if same]
        dirs = deepest_first(map(Path, record.dirs))
        steps += [(str(each), partial(_undo_dir, root, each)) for each in dirs]
    ok = not away
    for what, step in steps:
        try:
            step()
        except OSError as error:
            ok = False
            log.error("not given back", path=what, task_id=record.task_id, error=str(error))  # noqa: TRY400
    if ok:
        path.unlink(missing_ok=True)
    return ok


def _look_at(root: Path, record: Record) -> tuple[bool, bool]:
    """Whether it is the directory that was borrowed, and whether it may yet come back."""
    try:
        status = root.stat()
    except OSError:
        away = not root.parent.exists() and time.time() - record.at < PATIENCE
        if away:
            log.warning("borrowed directory is away; its record waits", path=record.root)
        return False, away
    return [status.st_dev, status.st_ino] == record.identity, False


def sweep(folder: Path) -> int:
    """Give back what an earlier daemon had borrowed; return how many directories that were."""
    for torn in folder.glob(f".*{SUFFIX}.*"):  # killed before it became a record: nothing was done
        torn.unlink(missing_ok=True)
    paths = sorted(folder.glob(f"[!.]*{SUFFIX}"))
    for path in paths:
        log.info("giving back a borrowed directory", record=path.name)
        give_back(path)
    return len(paths)


def give_back_left(folder: Path, root: Path) -> None:
    """Give back what is left over from earlier tasks in a directory nobody else may be in now."""
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        record = _read(path)
        if record is not None and _overlap(Path(record.root), root):
            give_back(path)


def _overlap(one: Path, other: Path) -> bool:
    return one.is_relative_to(other) or other.is_relative_to(one)


def _read(path: Path) -> Record | None:
    try:
        return codec.structure(json.loads(path.read_text(encoding="utf-8")), Record)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, codec.DecodeError) as error:
        log.error("record of a borrowed directory unreadable", path=str(path), error=str(error))  # noqa: TRY400
        return None


# -- undoing, each step safe to repeat


def _undo_brief(record: Record) -> None:
    edit = record.brief
    assert edit is not None
    path = Path(edit.path)
    before = edit.before.encode("latin-1") if edit.before is not None else None
    states = [state.encode("latin-1") for state in edit.states]
    if path.is_symlink():
        return  # somebody put a link there since: not what we wrote into
    with _opened(path) as held:
        if held is None:
            return
        now = held.read()
        after = before if _is_ours(now, [before or b"", *states]) else _without_brief(now, before)
        if after is not None:
            held.write(now, after)
            if after == before and edit.modified:
                held.set_times(edit.accessed, edit.modified)
            return
    path.unlink()


def _next_edit(edit: Edit | None, path: str, now: bytes | None, held: _Held | None) -> Edit:
    """What is to be restored after a further write; edits made since the last one are the user's."""
    if edit is None or held is None or now is None:
        times = (held.accessed, held.modified) if held is not None else (0, 0)
        return Edit(path=path, before=_kept(now), accessed=times[0], modified=times[1])
    if now.decode("latin-1") == edit.states[-1]:
        return edit
    before = edit.before.encode("latin-1") if edit.before is not None else None
    theirs = _kept(_without_brief(now, before))
    return Edit(path=path, before=theirs, states=[now.decode("latin-1")])


def _is_ours(now: bytes, states: list[bytes]) -> bool:
    """Whether a content is one we wrote, or what a kill left between two of them."""
    if now in states:
        return True
    for old, new in itertools.pairwise([*states, states[0]]):
        shared = _shared(now, new)
        if now[shared:] == old[shared:]:
            return True
    return False


def _without_brief(now: bytes, before: bytes | None) -> bytes | None:
    """Take our block out of a file edited meanwhile, and put back a block it had before us."""
    old = block_of(before) if before is not None else b""
    if old:
        mine = block_of(now)
        return now.replace(mine, old, 1) if mine else now
    after = without_block(now)
    return b"" if after is None and before is not None else after


def _undo_file(record: Record, made: MadeFile, *, same: bool) -> None:
    path = Path(made.path)
    try:
        if not stat.S_ISREG(path.lstat().st_mode) or _leads_out(record, path):
            return
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return
    if len(data) == made.size and _sha256(data) == made.sha256:
        path.unlink()
    elif same:
        _keep(record, path)


def _undo_skill(record: Record, skill: str) -> None:
    """What a skill's own run left in its directory goes with it, but is not lost."""
    path = Path(skill)
    if path.is_symlink() or not path.is_dir() or _leads_out(record, path):
        return
    if any(not each.is_dir() or each.is_symlink() for each in path.rglob("*")):
        _keep(record, path)
    else:
        shutil.rmtree(path)


def _undo_dir(root: Path, path: Path) -> None:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if not path.is_symlink() and path.is_relative_to(root) and not any(path.iterdir()):
            path.rmdir()


def _undo_exclude(record: Record) -> None:
    edit = record.exclude
    assert edit is not None
    path, block = Path(edit.path), edit.block.encode("latin-1")
    with _opened(path) as held:
        if held is None:
            _remove_info(edit)
            return
        now = held.read()
        after = _without_lines(now, block, record.task_id.encode())
        if after or not edit.alone:
            held.write(now, after)
            if _sha256(after) == edit.before_sha256 and edit.modified:
                held.set_times(edit.accessed, edit.modified)
            return
    path.unlink()
    _remove_info(edit)


def _remove_info(edit: ExcludeEdit) -> None:
    if edit.made_dir:
        with contextlib.suppress(OSError):  # gone, or somebody else's by now
            Path(edit.path).parent.rmdir()


def _without_lines(now: bytes, block: bytes, name: bytes) -> bytes:
    """Take a task's lines out, whole, edited or torn; everything else stays."""
    if block in now:
        return now.replace(block, b"", 1)
    begin, end = _BEGIN + name, _END + name
    start = now.find(begin)
    if start < 0:
        return now
    stop = now.find(end, start)
    rest = now[stop + len(end) :] if stop >= 0 else b""
    if stop < 0 and not block[1:].startswith(now[start:]):
        return now  # cut by somebody: what follows may be theirs
    return now[:start].removesuffix(b"\n") + rest.removeprefix(b"\r").removeprefix(b"\n")


def _keep(record: Record, path: Path) -> None:
    """Move what somebody changed out of the user's directory, to where nothing of it is lost."""
    target = Path(record.env_root) / "kept" / path.relative_to(record.root)
    target.parent.mkdir(parents=True, exist_ok=True)
    while os.path.lexists(target):
        target = target.with_name(target.name + "~")
    shutil.move(path, target)
    log.info("changed meanwhile, so kept", path=str(path), kept=str(target))


def _leads_out(record: Record, path: Path) -> bool:
    """Whether a directory on the way is a link by now, and the path not the one we made."""
    return not path.parent.resolve().is_relative_to(Path(record.root).resolve())


# -- files in place


class _Held:
    """An open file that is changed in place: its inode, owner, mode and links stay what they are."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        status = os.fstat(handle)
        self.accessed, self.modified = status.st_atime_ns, status.st_mtime_ns

    def read(self) -> bytes:
        parts, offset = [], 0
        while part := os.pread(self._handle, 1 << 20, offset):
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    def write(self, old: bytes, new: bytes) -> None:
        """Change `old` into `new`, writing only what differs, so that a kill tears little."""
        offset = _shared(old, new)
        while offset < len(new):
            offset += os.pwrite(self._handle, new[offset:], offset)
        if len(new) < len(old):
            os.ftruncate(self._handle, len(new))

    def set_times(self, accessed: int, modified: int) -> None:
        os.utime(self._handle, ns=(accessed, modified))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[_Held | None]:
    """Open a file to read and change, None if there is none; a read-only one is lent meanwhile."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        handle = os.open(path, flags)
    except FileNotFoundError:
        yield None
        return
    except PermissionError:
        mode = stat.S_IMODE(path.lstat().st_mode)
        path.chmod(mode | stat.S_IWUSR | stat.S_IRUSR)
        try:
            handle = os.open(path, flags)
        finally:
            path.chmod(mode)
    try:  # a pipe left under this name would be read for ever
        yield _Held(handle) if stat.S_ISREG(os.fstat(handle).st_mode) else None
    finally:
        os.close(handle)


def _place_in(root: Path, path: Path) -> Path | None:
    """Where a file's bytes are, if that is in the directory; None for anything but a file."""
    if not os.path.lexists(path):
        return path
    real = Path(os.path.realpath(path))
    return real if real.is_file() and real.is_relative_to(root) else None


def _pattern(prefix: str, root: Path, path: str) -> bytes:
    """A line that excludes exactly one path; b"" if none can."""
    text = prefix + os.path.relpath(path, root) + ("/" if path.endswith("/") else "")
    if "\n" in text:
        return b""
    escaped = re.sub(r"([\\*?\[])", r"\\\1", text)
    return b"/" + os.fsencode(re.sub(r" (?= *$)", r"\\ ", escaped)) + b"\n"


def _shared(one: bytes, other: bytes) -> int:
    """How many bytes two contents begin with together."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _kept(data: bytes | None) -> str | None:
    return data.decode("latin-1") if data is not None else None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every file system can
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
