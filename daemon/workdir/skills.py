"""Skills as files an agent program finds (spec 05 §4).

Names become directory names, existing directories are never touched, and every path a skill brings
is checked, wherever the skill came from. Only the writing touches the disk.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from daemon.agents.frontmatter import with_frontmatter
from daemon.workdir.sidecars import Sidecars
from shared.skillbundle import clash, path_fault
from shared.wire.task import Skill

FOLDERS: Final = {
    "claude": ".claude/skills",
    "codebuddy": ".claude/skills",
    "copilot": ".github/skills",
    "opencode": ".opencode/skills",
    "openclaw": "skills",
    "pi": ".pi/skills",
    "cursor": ".cursor/skills",
    "kimi": ".kimi/skills",
    "kiro": ".kiro/skills",
    "qoder": ".qoder/skills",
    "antigravity": ".agents/skills",
}
"""Where each provider discovers skills by itself, below the working directory."""

FALLBACK: Final = ".agent_context/skills"
"""Where the others' skills are put; the brief says so."""

SLUG_LIMIT: Final = 200
"""File systems take names of 255 bytes; some room is for the suffix of a second one."""

_ATTEMPTS: Final = 64


class SkillError(Exception):
    """A skill cannot be written: its files clash or leave its directory."""


def folder_for(provider: str) -> str:
    return FOLDERS.get(provider, FALLBACK)


def plan_skills(parent: Path, skills: Sequence[Skill], sidecars: Sidecars) -> None:
    """Plan a directory of its own for each skill. Raises SkillError."""
    if skills and not sidecars.reaches(parent):
        raise SkillError(f"skills cannot be put into {parent}")
    for skill in skills:
        if fault := clash(posixpath.normpath(file.path) for file in skill.files):
            raise SkillError(f"skill {skill.name!r} cannot be written: {fault}")
        folder = _free_folder(parent, slug(skill.name), sidecars)
        sidecars.make_skill(folder)
        text = with_frontmatter(skill.content, name=folder.name, description=skill.description)
        sidecars.write(folder / "SKILL.md", text)
        for file in skill.files:
            path = check_path(skill.name, file.path)
            if path.lower() == "skill.md":
                continue  # reserved: the skill's own content is that file
            if not sidecars.write(folder / path, file.content):
                raise SkillError(f"skill {skill.name!r} has two files at {path!r}")


def slug(name: str) -> str:
    """Return the directory name a skill's name stands for, at most SLUG_LIMIT characters."""
    whole = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return whole[:SLUG_LIMIT].strip("-") or "skill"


def check_path(skill: str, path: str) -> str:
    """Return the clean relative path of a supporting file. Raises SkillError if it is not one."""
    clean = posixpath.normpath(path)
    if (
        not path
        or "\0" in path
        or "\\" in path
        or clean == "."
        or clean.startswith(("/", "../"))
        or clean == ".."
        or re.match(r"[A-Za-z]:", clean)
    ):
        raise SkillError(f"skill {skill!r} has a file outside its directory: {path!r}")
    if fault := path_fault(clean):
        raise SkillError(f"skill {skill!r} cannot be written: {fault}")
    return clean


def _free_folder(parent: Path, name: str, sidecars: Sidecars) -> Path:
    for attempt in range(_ATTEMPTS):
        suffix = "" if attempt == 0 else "-multica" if attempt == 1 else f"-multica-{attempt}"
        folder = parent / (name + suffix)
        if not sidecars.is_taken(folder):
            return folder
    raise SkillError(f"no free directory for skill {name!r} in {parent}")
