"""Git repositories for tests, made on disk: a bare one that stands for a server, and its history."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import attrs

_ENV = {
    **{key: value for key, value in os.environ.items() if not key.startswith("GIT_")},
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "Test",
    "GIT_AUTHOR_EMAIL": "test@example.test",
    "GIT_COMMITTER_NAME": "Test",
    "GIT_COMMITTER_EMAIL": "test@example.test",
    "LC_ALL": "C",
}


def git(where: Path, *args: str, check: bool = True) -> str:
    """Run git as a person or an agent would; returns its output without the last newline."""
    done = subprocess.run(
        ["git", *args], cwd=where, env=_ENV, capture_output=True, text=True, check=False, timeout=30
    )
    assert not check or done.returncode == 0, f"git {args}: {done.stderr}"
    return done.stdout.rstrip("\n")


def commit(tree: Path, name: str, text: str, message: str = "") -> str:
    """Write a file and commit it; returns the commit."""
    path = tree / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    git(tree, "add", "-A")
    git(tree, "commit", "-q", "-m", message or f"Change {name}")
    return git(tree, "rev-parse", "HEAD")


def remove(path: Path) -> None:
    """Remove a directory and all in it."""
    shutil.rmtree(path)


def copy(path: Path, to: Path) -> Path:
    """Copy a directory with all in it; returns where to."""
    return shutil.copytree(path, to, symlinks=True)


def unpack(repository: Path) -> None:
    """Give every object of a bare repository a file of its own."""
    for pack in (repository / "objects" / "pack").glob("*.pack"):
        moved = pack.rename(repository / "moved.pack")
        with moved.open("rb") as file:
            subprocess.run(["git", "unpack-objects", "-q"], cwd=repository, stdin=file, check=True)
        moved.unlink()
        for rest in pack.parent.iterdir():
            rest.unlink()


@attrs.frozen
class Remote:
    """A bare repository at `path`; `seed` is a clone of it that pushes."""

    path: Path
    seed: Path

    @property
    def url(self) -> str:
        return f"file://{self.path}"

    def push(self, name: str, text: str, branch: str = "main") -> str:
        """Commit a file to a branch and push it; returns the commit."""
        if git(self.seed, "symbolic-ref", "--short", "HEAD") != branch:
            git(self.seed, "checkout", "-q", "-B", branch)
        made = commit(self.seed, name, text)
        git(self.seed, "push", "-q", "origin", branch)
        return made

    def branches(self) -> list[str]:
        return git(self.path, "for-each-ref", "--format=%(refname:short)", "refs/heads").split()


def make_remote(folder: Path, name: str = "app") -> Remote:
    """Make a remote with one commit on `main`: README and .gitignore."""
    folder.mkdir(parents=True, exist_ok=True)
    path, seed = folder / f"{name}.git", folder / f"{name}-seed"
    git(folder, "init", "-q", "--bare", "-b", "main", str(path))
    git(folder, "init", "-q", "-b", "main", str(seed))
    git(seed, "remote", "add", "origin", str(path))
    (seed / ".gitignore").write_text("ignored.txt\nnode_modules/\n")
    remote = Remote(path, seed)
    remote.push("README", "one\n")
    return remote
