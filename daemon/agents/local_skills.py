"""The skills people keep on this machine for their agent programs: listing and reading them.

Asked for by the server between tasks (`runtimes/actions.py`). It reads a few well-known directories
and nothing else, in a thread, since disks may be slow. A list leaves out what cannot be imported;
an import never substitutes a different skill of the same key (spec 03 §26).
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import attrs

from daemon.agents.frontmatter import described
from shared.codec import omitted

LARGEST_FILE: Final = 1024 * 1024
LARGEST_BUNDLE: Final = 8 * 1024 * 1024
MOST_FILES: Final = 128
DEEPEST: Final = 4
"""Directories below a root in which skills are looked for."""

_MAIN: Final = "SKILL.md"
_UNIVERSAL: Final = ".agents/skills"
_ROOTS: Final[Mapping[str, str]] = {
    "claude": ".claude/skills",
    "codebuddy": ".claude/skills",
    "codex": ".codex/skills",
    "copilot": ".copilot/skills",
    "opencode": ".config/opencode/skills",
    "openclaw": ".openclaw/skills",
    "pi": ".pi/agent/skills",
    "cursor": ".cursor/skills",
    "kiro": ".kiro/skills",
    "antigravity": ".gemini/antigravity-cli/skills",
}
_ABSENT: Final = frozenset({errno.ENOENT, errno.ENOTDIR})
_IGNORED: Final = frozenset({"license", "license.md", "license.txt"})


class SkillError(Exception):
    """The skills cannot be listed or the one asked for cannot be read; the text is for people."""


@attrs.frozen(kw_only=True)
class LocalSkill:
    """An entry of a list as it travels (spec 01 §3.18). `file_count` includes SKILL.md."""

    key: str
    name: str
    description: str = omitted("")
    source_path: str
    provider: str
    root: str
    file_count: int


@attrs.frozen(kw_only=True)
class ImportedFile:
    """A supporting file; `path` is relative to the skill, with slashes."""

    path: str
    content: str


@attrs.frozen(kw_only=True)
class ImportedSkill:
    """A skill whole, as it travels (spec 01 §3.19)."""

    name: str
    description: str = omitted("")
    content: str
    source_path: str
    provider: str
    files: list[ImportedFile] = omitted(factory=list)


@attrs.frozen
class _Root:
    kind: str
    path: Path


def list_skills(provider: str, *, home: Path, env: Mapping[str, str]) -> list[LocalSkill] | None:
    """Return a provider's skills, sorted by key; None if it keeps none. Raises SkillError.

    Of several skills of one key the first root's counts. What is unreadable or over a limit is
    left out.
    """
    roots = _roots(provider, home, env)
    if roots is None:
        return None
    found: dict[str, LocalSkill] = {}
    for root in roots:
        for key, folder in _find(root):
            if key in found:
                continue
            try:
                skill = _read(folder, provider, home)
            except (OSError, SkillError):
                continue
            found[key] = LocalSkill(
                key=key,
                name=skill.name,
                description=skill.description,
                source_path=skill.source_path,
                provider=provider,
                root=root.kind,
                file_count=len(skill.files) + 1,
            )
    return [found[key] for key in sorted(found)]


def import_skill(
    provider: str, skill_key: str, *, home: Path, env: Mapping[str, str]
) -> ImportedSkill:
    """Read one skill with its files. Raises SkillError."""
    key = _clean(skill_key)
    roots = _roots(provider, home, env)
    if roots is None:
        raise SkillError(f"skills of {provider} cannot be imported from a machine")
    for root in roots:
        folder = root.path / key
        try:
            if not stat.S_ISDIR(folder.stat().st_mode) or not (folder / _MAIN).stat():
                continue
            return _read(folder, provider, home)
        except OSError as error:
            if error.errno not in _ABSENT:
                raise SkillError(f"{_shown(folder, home)}: {error.strerror}") from error
    raise SkillError(f"there is no skill {key!r} on this machine any more")


def _roots(provider: str, home: Path, env: Mapping[str, str]) -> list[_Root] | None:
    """Where a provider's skills are, the most important place first."""
    if provider not in _ROOTS:
        return None
    own = home / _ROOTS[provider]
    codex_home = env.get("CODEX_HOME", "").strip()
    if provider == "codex" and codex_home:
        own = Path(codex_home) / "skills"
    return [_Root("provider", own), _Root("universal", home / _UNIVERSAL)]


def _find(root: _Root) -> Iterator[tuple[str, Path]]:
    """Every directory with a SKILL.md below a root, as (key, directory); links are followed.

    Raises SkillError if the root is there and cannot be read. A directory is entered once,
    whatever leads to it, so that links that lead back end.
    """
    try:
        names = _names(root.path)
    except OSError as error:
        if error.errno in _ABSENT:
            return
        raise SkillError(f"{root.path}: {error.strerror}") from error
    entered = {os.path.realpath(root.path)}
    todo = [(root.path / name, name, 1) for name in reversed(names)]
    while todo:
        folder, key, depth = todo.pop()
        real = os.path.realpath(folder)
        if real in entered:
            continue
        try:
            names = _names(folder)
        except OSError:
            continue  # a file, or a directory that is not for us
        entered.add(real)
        if _MAIN in names:
            yield key, folder
        elif depth < DEEPEST:
            todo += [(folder / name, f"{key}/{name}", depth + 1) for name in reversed(names)]


def _names(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if not _is_ignored(name))  # noqa: PTH208


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name.lower() in _IGNORED


def _clean(skill_key: str) -> str:
    """Return the key in its plain form. Raises SkillError if it leads out of the root."""
    given = skill_key.strip().replace("\\", "/")
    key = posixpath.normpath(given) if given else ""
    if key in ("", ".", "..") or key.startswith(("/", "../")) or "\0" in key:
        raise SkillError(f"{skill_key!r} is no key of a skill")
    return key


def _read(folder: Path, provider: str, home: Path) -> ImportedSkill:
    """Read a skill and its files. Raises OSError, or SkillError for what is over a limit."""
    content = _text(folder / _MAIN)
    if content is None:
        raise SkillError(f"{_shown(folder / _MAIN, home)} is larger than {LARGEST_FILE} bytes")
    total = len(content.encode())
    files: list[ImportedFile] = []
    for path, place in _supporting(folder):
        text = _text(place)
        if text is None:
            continue
        files.append(ImportedFile(path=path, content=text))
        total += len(text.encode())
        if len(files) > MOST_FILES:
            raise SkillError(f"{_shown(folder, home)} has more than {MOST_FILES} files")
        if total > LARGEST_BUNDLE:
            raise SkillError(f"{_shown(folder, home)} is larger than {LARGEST_BUNDLE} bytes")
    name, description = described(content)
    return ImportedSkill(
        name=name or folder.name,
        description=description,
        content=content,
        source_path=_shown(folder, home),
        provider=provider,
        files=sorted(files, key=lambda file: file.path),
    )


def _supporting(folder: Path) -> Iterator[tuple[str, Path]]:
    """The files beside SKILL.md, (path, place); links and ignored names are left out."""
    todo = [(folder, "")]
    while todo:
        here, prefix = todo.pop()
        with os.scandir(here) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if _is_ignored(entry.name):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    todo.append((Path(entry.path), f"{prefix}{entry.name}/"))
                elif entry.is_file(follow_symlinks=False) and entry.name.lower() != _MAIN.lower():
                    yield f"{prefix}{entry.name}", Path(entry.path)


def _text(path: Path) -> str | None:
    """Read a file as text; None if it is too large, by what was read and not what it claims."""
    flags = os.O_RDONLY | os.O_NONBLOCK  # a named pipe must not hold us for ever
    with os.fdopen(os.open(path, flags), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        data = file.read(LARGEST_FILE + 1)
    return None if len(data) > LARGEST_FILE else data.decode("utf-8", "replace")


def _shown(path: Path, home: Path) -> str:
    """The path with the home directory as `~`; links stay as they are."""
    try:
        return (Path("~") / path.relative_to(home)).as_posix()
    except ValueError:
        return path.as_posix()
