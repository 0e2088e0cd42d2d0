"""What a squad's leader is told beside its own instructions (spec 02 §4.8). Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from server.markdown import mention

_PROTOCOL: Final = """\
## You lead a squad

You were given this work as the leader of a squad. A leader decides who does what; do the work
yourself only when nobody in the roster can.

1. Read the issue and its comments, and match what is to be done with what the members can do.
2. Hand over in one short comment that mentions the member. Only the mention markdown from the
   roster starts anybody; a plain name does nothing. Do not repeat the issue: the member reads it.
   Mention nobody who is not in the roster.
3. Do not both mention an agent and create a sub-issue in `todo` assigned to it for the same work:
   it would do it twice.
4. When nobody can do it, say in a comment what ability is missing.
5. Record each turn, once, with the command line: `squad activity <issue-id> <outcome> --reason
   "..."`. The outcome is `action` (you handed over or decided), `no_action` (nothing to do now) or
   `failed` (you could not decide).
6. After handing over, stop. You are called again when a member answers; then decide what comes
   next, or end silently with `no_action`."""


def brief_leader(squad: Mapping[str, Any], roster: Sequence[Mapping[str, Any]]) -> str:
    """Return the briefing.

    `roster`: {type, id, name, role, skills} of each member, `skills` None for none.
    """
    leader_id = squad["leader_id"]
    ordered = sorted(roster, key=lambda member: member["id"] != leader_id)
    rows = [_row(member, you=member["id"] == leader_id) for member in ordered]
    if not any(member["id"] != leader_id for member in roster):
        rows.append("- The squad has no other members.")
    parts = [_PROTOCOL, "## Roster\n\n" + "\n".join(rows)]
    if squad["instructions"].strip():
        parts.append(f"## Instructions of the squad {squad['name']}\n\n{squad['instructions']}")
    return "\n\n".join(parts)


def _row(member: Mapping[str, Any], *, you: bool) -> str:
    name = member["name"]
    facts = ["agent" if member["type"] == "agent" else "human member"]
    if member["role"]:
        facts.append(f'"{member["role"]}"')
    if member["type"] == "agent":
        facts.append("skills: " + (", ".join(member["skills"] or ()) or "none"))
    link = mention(member["type"], member["id"], name)
    return f"- {name}{' (you)' if you else ''}: {'; '.join(facts)}; mention `{link}`"
