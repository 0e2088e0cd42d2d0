"""Skills as bundles: how one is hashed and when a received one is the one that was meant (01 §3.7).

Server and daemon must agree byte for byte: the daemon keeps bundles on disk by their hash and asks
only for those it does not have. Pure.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterable, Mapping
from typing import Final

import attrs

from shared.wire.task import SkillBundle, SkillFile, SkillRef

WORKSPACE: Final = "workspace"
"""The source of skills that people wrote."""

BUILTIN: Final = "builtin"
"""The source of skills that come with the server."""

LONGEST_PART: Final = 255
"""Bytes of a file's or a directory's name, as file systems take them."""

LONGEST_PATH: Final = 512
"""Bytes of a file's path within its skill; the smallest limit for a whole path is 1024."""

_SHOWN: Final = 80


class InvalidBundle(ValueError):
    """A bundle that is not what its reference says."""


def sha256_of(content: str) -> str:
    """Return "sha256:" and the hex digest of a text."""
    return "sha256:" + hashlib.sha256(content.encode()).hexdigest()


def make_bundle(
    *,
    skill_id: str,
    name: str,
    description: str,
    content: str,
    files: Mapping[str, str],
    source: str = WORKSPACE,
) -> SkillBundle:
    """Build the bundle of a skill; files by path."""
    listed = [
        SkillFile(
            path=path,
            content=files[path],
            sha256=sha256_of(files[path]),
            size_bytes=len(files[path].encode()),
        )
        for path in sorted(files, key=str.encode)
    ]
    bundle = SkillBundle(
        id=skill_id,
        source=source,
        name=name,
        description=description,
        content=content,
        files=listed,
        size_bytes=_size(content, listed),
    )
    return attrs.evolve(bundle, hash=hash_of(bundle))


def ref_of(bundle: SkillBundle) -> SkillRef:
    """Return the reference a claim carries in place of the bundle."""
    return SkillRef(
        id=bundle.id,
        source=bundle.source,
        name=bundle.name,
        description=bundle.description,
        hash=bundle.hash,
        size_bytes=bundle.size_bytes,
        file_count=len(bundle.files),
        files=[
            SkillFile(path=file.path, sha256=file.sha256, size_bytes=file.size_bytes)
            for file in bundle.files
        ],
    )


def hash_of(bundle: SkillBundle) -> str:
    """Return the hash that a bundle's content has; its own `hash` does not count."""
    digest = hashlib.sha256()
    head = (bundle.source, bundle.id, bundle.name, bundle.description, bundle.content)
    for part in _parts(("v1", *head)):
        digest.update(part)
    for file in sorted(bundle.files, key=lambda file: file.path.encode()):
        for part in _parts((file.path, sha256_of(file.content), file.content)):
            digest.update(part)
    return "sha256:" + digest.hexdigest()


def check(bundle: SkillBundle, ref: SkillRef) -> None:
    """Raise InvalidBundle unless the bundle is whole and is what the reference means.

    The skill may have changed since the claim: then the bundle has a newer hash, which is its own.
    """
    if (bundle.source, bundle.id) != (ref.source, ref.id):
        raise InvalidBundle(f"got skill {bundle.source}/{bundle.id} for {ref.source}/{ref.id}")
    if hash_of(bundle) != bundle.hash:
        raise InvalidBundle(f"skill {bundle.name!r}: its content does not match its hash")
    if bundle.size_bytes and bundle.size_bytes != _size(bundle.content, bundle.files):
        raise InvalidBundle(f"skill {bundle.name!r}: its content does not have its size")
    faults = [path_fault(file.path) for file in bundle.files]
    faults.append(clash(file.path for file in bundle.files))
    if fault := next(filter(None, faults), ""):
        raise InvalidBundle(f"skill {bundle.name!r}: {fault}")


def is_inside(path: str) -> bool:
    """Tell whether a file of a skill lies in the skill's directory: relative, clean, not above."""
    return (
        bool(path)
        and not path.startswith(("/", "../"))
        and "\\" not in path
        and "\0" not in path
        and posixpath.normpath(path) == path
        and path not in {".", ".."}
    )


def path_fault(path: str) -> str:
    """Say what keeps a file of a skill from being written there; "" for nothing.

    It must be inside, and no longer than file systems take.
    """
    if not is_inside(path):
        return f"invalid file path {_shown(path)}: it must be relative, without '..'"
    if any(len(part.encode("utf-8", "replace")) > LONGEST_PART for part in path.split("/")):
        return f"file name too long in {_shown(path)}: at most {LONGEST_PART} bytes a name"
    if len(path.encode("utf-8", "replace")) > LONGEST_PATH:
        return f"file path too long: {_shown(path)} (at most {LONGEST_PATH} bytes)"
    return ""


def clash(paths: Iterable[str]) -> str:
    """Say which of a skill's files keep each other from being written; "" for none."""
    known = set(paths)
    for path in sorted(known):
        folder = posixpath.dirname(path)
        while folder.strip("/"):
            if folder in known:
                return f"{_shown(folder)} is a file, and a directory of {_shown(path)}"
            folder = posixpath.dirname(folder)
    return ""


def is_safe_path(path: str) -> bool:
    """Tell whether a file of a skill may be written there."""
    return not path_fault(path)


def _shown(path: str) -> str:
    return repr(path if len(path) <= _SHOWN else path[:_SHOWN] + "…")


def _size(content: str, files: Iterable[SkillFile]) -> int:
    return len(content.encode()) + sum(len(file.content.encode()) for file in files)


def _parts(texts: Iterable[str]) -> Iterable[bytes]:
    for text in texts:
        data = text.encode()
        yield b"%d:%s\n" % (len(data), data)
