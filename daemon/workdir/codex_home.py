"""A home of its own for each codex task, beside its working directory (spec 05 §11).

Codex keeps sign-in, settings, sessions and skills in one directory. The task's has the user's
sign-in and sessions as links, a copy of the settings made safe for unattended work, and the user's
skills besides the agent's. Everything but the directory itself is best effort: codex says better
than we could what it misses. All calls are small and synchronous.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog
import tomlkit

from daemon.workdir.sidecars import Sidecars, remove_link_out
from daemon.workdir.skills import plan_skills, slug
from shared.wire.task import Skill

log = structlog.get_logger(__name__)

COPIED: Final = ("config.json", "instructions.md")

SKILL_FILES: Final = 512
SKILL_BYTES: Final = 16 * 1024 * 1024
"""What a skill of the user's may have to be copied for each task."""


class _TooBig(OSError):
    """A skill nobody would call one."""


def shared_home(env: Mapping[str, str]) -> Path:
    """Return the user's own codex home."""
    named = env.get("CODEX_HOME", "").strip()
    if named:
        return Path(named).expanduser().absolute()
    return Path(env.get("HOME") or "~").expanduser().absolute() / ".codex"


def make_codex_home(home: Path, skills: Sequence[Skill], env: Mapping[str, str]) -> None:
    """Create or refresh a task's codex home. Raises OSError, SkillError."""
    shared = shared_home(env)
    remove_link_out(home, home.parent)
    home.mkdir(mode=0o755, parents=True, exist_ok=True)
    steps: list[tuple[str, Callable[[], None]]] = [
        ("sessions", partial(_link_sessions, home / "sessions", shared / "sessions")),
        ("auth.json", partial(_link_file, home / "auth.json", shared / "auth.json")),
        ("plugins", partial(_link_folder, home / "plugins/cache", shared / "plugins/cache")),
        ("config.toml", partial(_copy_config, home / "config.toml", shared / "config.toml", env)),
    ]
    steps += [(name, partial(_copy, home / name, shared / name)) for name in COPIED]
    for what, step in steps:
        try:
            step()
        except OSError as error:
            log.warning("codex home incomplete", what=what, error=str(error))
    target = home / "skills"
    _remove(target)
    target.mkdir()
    _copy_user_skills(target, shared / "skills", {slug(skill.name) for skill in skills})
    planned = Sidecars(home)
    plan_skills(target, skills, planned)
    planned.create()


def safe_config(
    config: Mapping[str, Any], env: Mapping[str, str], platform: str = sys.platform
) -> dict[str, Any]:
    """Return codex settings for unattended work, with everything else as the user has it.

    The sandbox lets it write its directory and reach the network; on macOS it cannot do both, so
    there is none there. Subagents and memories outlive or leak between tasks: off unless asked for.
    """
    safe = dict(config)
    if isinstance(safe.get("skills"), Mapping):
        skills = {key: value for key, value in safe["skills"].items() if key != "config"}
        safe["skills"] = skills
        if not skills:
            del safe["skills"]
    sandbox = safe.pop("sandbox_workspace_write", None)
    if platform == "darwin":
        safe["sandbox_mode"] = "danger-full-access"
    else:
        safe["sandbox_mode"] = "workspace-write"
        kept = sandbox if isinstance(sandbox, Mapping) else {}
        safe["sandbox_workspace_write"] = {**kept, "network_access": True}
    if not env.get("BULLPEN_CODEX_MULTI_AGENT", "").strip():
        _set(safe, "features", multi_agent=False)
    if not env.get("BULLPEN_CODEX_MEMORY", "").strip():
        _set(safe, "features", memories=False)
        _set(safe, "memories", generate_memories=False, use_memories=False)
    return safe


def _set(config: dict[str, Any], table: str, **values: bool) -> None:
    known = config.get(table)
    config[table] = {**(known if isinstance(known, Mapping) else {}), **values}


def _copy_config(path: Path, source: Path, env: Mapping[str, str]) -> None:
    try:
        text = source.read_text(encoding="utf-8")
        config = tomllib.loads(text)
    except FileNotFoundError:
        config = {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        log.warning("codex settings are no TOML; left out", path=str(source), error=str(error))
        config = {}
    _remove(path)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)  # settings hold secrets
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(tomlkit.dumps(safe_config(config, env)))
    if sys.platform == "darwin":
        log.warning("codex runs without a sandbox on macOS", path=str(path))


def _copy(path: Path, source: Path) -> None:
    _remove(path)
    if source.is_file():
        shutil.copyfile(source, path)
        path.chmod(stat.S_IMODE(source.stat().st_mode) & 0o755 | stat.S_IRUSR)


def _link_file(path: Path, source: Path) -> None:
    if not source.exists():
        _remove(path)
        log.info("codex is not signed in by a file", path=str(source))
        return
    if not (path.is_symlink() and path.readlink() == source):
        _remove(path)
        path.symlink_to(source)


def _link_sessions(path: Path, source: Path) -> None:
    """A real directory stays: it has sessions of its own."""
    if path.is_dir() and not path.is_symlink():
        return
    _link_folder(path, source)


def _link_folder(path: Path, source: Path) -> None:
    source.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(exist_ok=True)
    _link_file(path, source)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _copy_user_skills(target: Path, source: Path, taken: set[str]) -> None:
    try:
        folders = sorted(source.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return
    for folder in folders:
        if folder.name.startswith(".") or slug(folder.name) in taken or not folder.is_dir():
            continue
        copy = target / folder.name
        try:
            _copy_skill(copy, folder.resolve())
        except OSError as error:
            log.warning("skill of the user's not copied", path=str(folder), error=str(error))
            shutil.rmtree(copy, ignore_errors=True)


def _copy_skill(copy: Path, source: Path) -> None:
    """Copy regular files, their permission to run included; links inside are left out."""
    count, size = 0, 0
    for at, folders, files in os.walk(source):
        here = copy / Path(at).relative_to(source)
        here.mkdir(parents=True)
        folders[:] = [name for name in folders if not Path(at, name).is_symlink()]
        for name in files:
            path = Path(at, name)
            status = path.lstat()
            if not stat.S_ISREG(status.st_mode):
                continue
            count, size = count + 1, size + status.st_size
            if count > SKILL_FILES or size > SKILL_BYTES:
                raise _TooBig(f"more than {SKILL_FILES} files or {SKILL_BYTES} bytes")
            shutil.copyfile(path, here / name)
            (here / name).chmod(0o755 if status.st_mode & 0o111 else 0o644)
