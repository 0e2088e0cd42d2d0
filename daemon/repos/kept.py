"""Work that was kept of agents: what there is, whose it is, how to get it back, and when it goes.

Refs below `refs/bullpen` keep it in the clones, bundle files beside them keep what was in
repositories of the agents' own. A note beside the refs says of which task and issue each one is, so
that the issue's next agent is told of it and people find it. What is old enough goes when the
reclaim asks for that; nothing here decides when.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import attrs
import structlog

from daemon.repos.git import Git, GitError
from daemon.repos.mirror import Mirror
from daemon.repos.names import SAVED, clone_name
from shared.ids import short_id

log = structlog.get_logger(__name__)

NOTES: Final = "bullpen"
"""The folder of the notes in a clone; a note is called after its ref."""

BUNDLE: Final = ".bundle"
BUNDLE_WITHIN: Final = 240.0
"""Seconds for writing a bundle."""

_STAMP: Final = re.compile(r"/(\d{8}T\d{6})\d*Z-[0-9a-f]+$")
_PLAIN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+@-]*")
_FORMAT: Final = "%(refname)%00%(objectname)%00%(committerdate:unix)%00%(parent)%00%(subject)"
_OURS: Final = "Kept by Bullpen from "
_HEADER: Final = 64 * 1024


@attrs.frozen(kw_only=True)
class Owner:
    """Whose work it was; "" for what is not known."""

    task_id: str = ""
    issue_id: str = ""


@attrs.frozen(kw_only=True)
class Kept:
    """Work that is nowhere else. `place` is a clone, or a bundle, which has no `ref`.

    `kind` is `files` (in the shape of a stash), `commits`, or `bundle`. `at` is when it was kept or
    committed, whichever is later.
    """

    place: Path
    kind: str
    at: datetime
    ref: str = ""
    commit: str = ""
    branch: str = ""
    subject: str = ""
    owner: Owner = Owner()

    @property
    def way_back(self) -> str:
        """A command that brings it back, in a checkout of the repository."""
        place, ref = shlex.quote(str(self.place)), shlex.quote(self.ref)
        if self.kind == "bundle":
            if _needs_others(self.place):
                return f"git fetch {place} '+refs/*:refs/kept/*'"
            return f"git clone {place} {shlex.quote(self.place.name.removesuffix(BUNDLE))}"
        if self.kind == "files":
            return f"git fetch {place} {ref} && git stash apply FETCH_HEAD"
        return f"git fetch {place} {ref}:kept-{self.commit[:8]}"


def note(clone: Path, ref: str, owner: Owner) -> None:
    """Write down whose work a ref keeps, unless it was kept before; failing only warns."""
    path = _note(clone, ref)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(json.dumps(attrs.asdict(owner)) + "\n")
    except FileExistsError:
        return
    except OSError as error:
        log.warning("owner of kept work not noted", ref=ref, error=str(error))


async def list_kept(git: Git, clone: Path) -> list[Kept]:
    """Everything a clone has that its server has not, but for what a worktree has checked out.

    Branches and stashes count too, unless a ref of ours keeps them. Raises GitError.
    """
    found = []
    places = (SAVED, "refs/heads", "refs/stash")
    listed = await git.clone(clone, "for-each-ref", f"--format={_FORMAT}", *places)
    used = await _checked_out(git, clone)
    for line in listed.splitlines():
        ref, commit, seconds, parents, subject = line.split("\0", 4)
        ours = ref.startswith(f"{SAVED}/")
        if not ours and (ref in used or not await _is_ahead(git, clone, commit)):
            continue
        is_stash = ref == "refs/stash" or (subject.startswith(_OURS) and " " in parents)
        found.append(
            Kept(
                place=clone,
                kind="files" if is_stash else "commits",
                at=max(_stamp_of(ref), datetime.fromtimestamp(int(seconds or 0), UTC)),
                ref=ref,
                commit=commit,
                branch=_branch_of(ref),
                subject=subject,
                owner=_owner(clone, ref),
            )
        )
    return found


def bundles(folder: Path) -> list[Kept]:
    """The bundles among a workspace's clones."""
    found = []
    for path in sorted(folder.glob(f"*{BUNDLE}")):
        with suppress(OSError):
            at = datetime.fromtimestamp(path.stat().st_mtime, UTC)
            found.append(Kept(place=path, kind="bundle", at=at, owner=_read(_beside(path))))
    return found


async def bundle(mirror: Mirror, folder: Path, owner: Owner) -> Path:
    """Put a repository's own commits and refs into a file, less what its servers have.

    Raises GitError.
    """
    path = _free(folder, f"{short_id(owner.task_id)}-{mirror.place.name}")
    new = path.with_name(f".{path.name}.new")
    try:
        _make(folder)
        words = ("bundle", "create", "-q", str(new), "--all", "--not", "--remotes")
        await mirror.run(*words, deadline=BUNDLE_WITHIN)
        new.rename(path)
        _beside(path).write_text(json.dumps(attrs.asdict(owner)) + "\n", encoding="utf-8")
    except OSError as error:
        raise GitError(f"cannot write {path}: {error}") from error
    finally:
        with suppress(OSError):
            new.unlink(missing_ok=True)
    return path


def _make(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)


def _free(folder: Path, name: str) -> Path:
    numbered = (f"{name}-{number}" if number > 1 else name for number in itertools.count(1))
    places = (folder / f"{each}{BUNDLE}" for each in numbered)
    return next(path for path in places if not path.exists())


async def drop(git: Git, kept: Kept) -> None:
    """Let kept work go, unless its ref has moved meanwhile. Raises GitError, OSError."""
    if kept.kind == "bundle":
        kept.place.unlink(missing_ok=True)
        _beside(kept.place).unlink(missing_ok=True)
        return
    await git.clone(kept.place, "update-ref", "-d", kept.ref, kept.commit)
    path = _note(kept.place, kept.ref)
    path.unlink(missing_ok=True)
    for folder in path.parents:
        if folder == kept.place / NOTES:
            break
        try:
            folder.rmdir()
        except OSError:  # others' notes
            break


async def local_work(git: Git, clone: Path) -> bool:
    """Whether a clone has a commit that its server has not. Raises GitError."""
    words = ("--branches", "--glob=refs/bullpen", "--glob=refs/stash")
    return bool(await git.clone(clone, "rev-list", "-1", *words, "--not", "--remotes"))


def saved_refs(clone: Path) -> set[str]:
    """The names of a clone's refs that keep work, as its files tell them."""
    prefix = f"{SAVED}/"
    found = {
        str(path.relative_to(clone))
        for path in (clone / prefix).rglob("*")
        if path.is_file() and not path.name.endswith(".lock")
    }
    try:
        packed = (clone / "packed-refs").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return found
    names = (line.partition(" ")[2] for line in packed.splitlines())
    return found | {name for name in names if name.startswith(prefix)}


def kept_for_issue(folder: Path, issue_id: str, urls: Iterable[str]) -> list[tuple[str, str]]:
    """Address and ref of what is kept of an issue's earlier tasks, newest last.

    `folder` has the workspace's clones, `urls` are the addresses its agents know them by. Agents can
    write into clones, so that only what can be nothing but a ref is named.
    """
    known = {clone_name(url): url for url in urls}
    found = []
    for clone in sorted(folder.glob("*.git")):
        url = known.get(clone.name)
        notes = [ref for ref in _notes(clone) if _owner(clone, ref).issue_id == issue_id]
        if url and notes:
            there = saved_refs(clone)
            found += [(ref.rpartition("/")[2], url, ref) for ref in notes if ref in there]
    return [(url, ref) for _, url, ref in sorted(found)]


def issue_refs(clone: Path, issue_id: str) -> list[str]:
    """The refs of a clone that keep work of an issue's tasks."""
    if not issue_id:
        return []
    there = saved_refs(clone)
    refs = (ref for ref in _notes(clone) if ref in there)
    return [ref for ref in refs if _owner(clone, ref).issue_id == issue_id]


def _notes(clone: Path) -> Iterator[str]:
    for place, _, names in os.walk(clone / NOTES):
        for name in names:
            path = (Path(place) / name).relative_to(clone / NOTES)
            ref = f"{SAVED}/{str(path).removesuffix('.json')}"
            if _PLAIN.fullmatch(ref):
                yield ref


def _note(clone: Path, ref: str) -> Path:
    return clone / NOTES / f"{ref.removeprefix(f'{SAVED}/')}.json"


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _owner(clone: Path, ref: str) -> Owner:
    found = _read(_note(clone, ref))
    if not found.task_id and (branch := _branch_of(ref)).startswith("agent/"):
        return attrs.evolve(found, task_id=branch.rpartition("/")[2])
    return found


def _read(path: Path) -> Owner:
    try:
        told: Any = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return Owner()
    fields = told if isinstance(told, dict) else {}
    ids = {key: str(fields.get(key) or "") for key in ("task_id", "issue_id")}
    return Owner(**ids)


def _branch_of(ref: str) -> str:
    if ref.startswith(f"{SAVED}/"):
        return ref.removeprefix(f"{SAVED}/").rpartition("/")[0]
    return ref.removeprefix("refs/heads/")


def _stamp_of(ref: str) -> datetime:
    match = _STAMP.search(ref)
    if match is None:
        return datetime.fromtimestamp(0, UTC)
    try:
        return datetime.strptime(match[1], "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        return datetime.fromtimestamp(0, UTC)


async def _checked_out(git: Git, clone: Path) -> set[str]:
    listed = await git.clone(clone, "worktree", "list", "--porcelain")
    lines = listed.splitlines()
    return {line.removeprefix("branch ") for line in lines if line.startswith("branch ")}


async def _is_ahead(git: Git, clone: Path, commit: str) -> bool:
    words = ("rev-list", "-1", commit, "--not", "--remotes", f"--glob={SAVED}")
    return bool(await git.clone(clone, *words))


def _needs_others(path: Path) -> bool:
    """Whether a bundle has only what a server has not, and so needs the rest from there."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEADER).partition(b"\n\n")[0]
    except OSError:
        return False
    return any(line.startswith(b"-") for line in head.splitlines())
