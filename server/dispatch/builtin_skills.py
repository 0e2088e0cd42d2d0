"""The skills every agent has: how to work here, told by the server it works for (spec 05 §4).

Read once from `server/skills/`, one folder per skill: its `SKILL.md` is the text, everything else a
supporting file. Their names begin with `bullpen-`, so that they hardly clash with a workspace's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import attrs

from shared.skillbundle import BUILTIN, make_bundle, ref_of
from shared.wire.task import Skill, SkillBundle, SkillFile, SkillRef

FOLDER: Final = Path(__file__).parents[1] / "skills"


def _bundle(folder: Path) -> SkillBundle:
    texts = {
        path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8")
        for path in folder.rglob("*.md")
    }
    return make_bundle(
        skill_id=f"{BUILTIN}:{folder.name}",
        name=folder.name,
        description="",  # stands in the text; the protocol leaves it empty here
        content=texts.pop("SKILL.md"),
        files=texts,
        source=BUILTIN,
    )


def _whole(bundle: SkillBundle) -> Skill:
    files = [SkillFile(path=file.path, content=file.content) for file in bundle.files]
    return Skill(name=bundle.name, content=bundle.content, files=files)


BUNDLES: Final = {
    bundle.id: bundle
    for bundle in (_bundle(folder) for folder in sorted(FOLDER.iterdir()) if folder.is_dir())
}
"""By id. Unchanging values, as the two below."""

REFS: Final[tuple[SkillRef, ...]] = tuple(ref_of(bundle) for bundle in BUNDLES.values())
"""For daemons that keep skills by their hash."""

WHOLE: Final[tuple[Skill, ...]] = tuple(
    attrs.evolve(_whole(bundle), id="") for bundle in BUNDLES.values()
)
"""For daemons that do not; without an id (spec 01 §3.5)."""
