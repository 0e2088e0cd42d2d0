"""Prints the table of rights into `docs/security.md`, between its two marks.

Run by hand after a change of the table (`python -m server.rights_doc docs/security.md`); a test
compares, so that the page cannot go stale. What stands before the first mark is written by hand.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from server.rights import TABLE, Agents, Caller, Machines, Rule, Thing, may

BEGIN: Final = "<!-- rights: printed by python -m server.rights_doc; do not edit -->"
END: Final = "<!-- /rights -->"

_MINE: Final = "whose"
_COLUMNS: Final = (
    ("owner", Caller(user_id="o", role="owner")),
    ("admin", Caller(user_id="a", role="admin")),
    ("whose it is", Caller(user_id=_MINE, role="member")),
    ("other member", Caller(user_id="p", role="member")),
    ("outsider", Caller(user_id="s")),
    ("nobody", None),
)

_AGENTS: Final = {
    Agents.ALL: "yes",
    Agents.WORK: "own work",
    Agents.CIRCLE: "circle",
    Agents.SETTING: "setting",
    Agents.NEVER: "-",
}

_MACHINES: Final = {Machines.OWN: "its own", Machines.HERE: "yes", Machines.NEVER: "-"}


def page(text: str) -> str:
    """The page with the table as it is now. Raises ValueError for a page without the marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError("the page has not the two marks of the table of rights")
    return f"{before}{BEGIN}\n\n{table()}\n{END}{after}"


def table() -> str:
    """The table of rights in Markdown."""
    head = ["right", *(name for name, _ in _COLUMNS), "agent", "machine", "note"]
    lines = [head, ["---"] * len(head), *(_row(rule) for rule in TABLE)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _row(rule: Rule) -> list[str]:
    kind = next((kind for kind in ("private", "chat") if rule.object.startswith(f"{kind} ")), "")
    name = rule.object.removeprefix(f"{kind} ") if kind else rule.object
    thing = Thing(kind=kind, people=(_MINE,))
    people = [
        "yes" if may(caller, f"{name}.{rule.action}", thing) else "-" for _, caller in _COLUMNS
    ]
    machine = _MACHINES[rule.machines]
    note = f"{rule.note}; others: 404 `{rule.hidden}`" if rule.note and rule.hidden else rule.note
    if rule.hidden and not rule.note:
        note = f"others: 404 `{rule.hidden}`"
    return [f"{rule.object}: {rule.action}", *people, _AGENTS[rule.agents], machine, note]


if __name__ == "__main__":
    for name in sys.argv[1:]:
        path = Path(name)
        path.write_text(page(path.read_text()))
