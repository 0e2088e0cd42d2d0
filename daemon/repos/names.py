"""What clones, worktrees, branches and kept work are called (spec 05 §15). ◇

Two repositories never share a clone's name, whatever their hosts, ports and paths: what could be
taken for a separator is escaped.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final
from urllib.parse import quote

from shared.ids import short_id

SAVED: Final = "refs/bullpen"
"""Where work is kept that was in a worktree and nowhere else."""

TASK_BRANCHES: Final = "refs/heads/agent/"

_LONGEST: Final = 200
"""Bytes of a clone's name; file systems take 255, and temporary names are longer."""

_SLUG: Final = 30
_USERINFO = re.compile(r"(?<=://)[^/@\s]+@")


def clone_name(url: str) -> str:
    """The directory of a repository's bare clone, e.g. `github.com+org+repo.git`."""
    host, path = _parts(url.strip().rstrip("/"))
    segments = [quote(host.lower(), safe="")] if host else []
    segments += [quote(segment, safe="~ @") for segment in path.split("/") if segment]
    name = "+".join(segments).removesuffix(".git") or "repo"
    if len(name) > _LONGEST:
        digest = hashlib.sha256(name.encode()).hexdigest()[:16]
        name = f"{name[: _LONGEST - 17]}-{digest}"
    return name + ".git"


def repo_name(url: str) -> str:
    """The directory a repository is checked out into: the last part of its address."""
    _, path = _parts(url.strip().rstrip("/"))
    name = path.rstrip("/").rpartition("/")[2].removesuffix(".git")
    return "repo" if name in ("", ".", "..") or "\0" in name else name


def branch_name(agent_name: str, task_id: str) -> str:
    """A task's own branch, `agent/<agent>/<last eight digits of the task>`."""
    slug = re.sub(r"[^a-z0-9]+", "-", agent_name.lower()).strip("-")[:_SLUG].rstrip("-")
    return f"agent/{slug or 'agent'}/{short_id(task_id)}"


def saved_name(branch: str, stamp: str, commit: str) -> str:
    """The ref that keeps work done on a branch ("" for none); `stamp` has digits, `T` and `Z`."""
    return f"{SAVED}/{branch or 'detached'}/{stamp}-{commit[:8]}"


def without_credentials(text: str) -> str:
    """Take user names and passwords out of the addresses in a text."""
    return _USERINFO.sub("", text)


def _parts(url: str) -> tuple[str, str]:
    """Host, without user, and path; no host for what is neither an address nor `host:path`."""
    scheme, separator, rest = url.partition("://")
    if separator and "/" not in scheme:
        authority, _, path = rest.partition("/")
        return authority.rpartition("@")[2], path
    host, colon, path = url.partition(":")
    if colon and "/" not in host:
        return host.rpartition("@")[2], path
    return "", url
