"""Writes docs/protocol.md: what of the protocol is implemented, tested, and different here.

Three sources, none written twice: `endpoints.txt` says what the protocol has, the application's own
route table what is implemented, and the `spec` marks of the tests what is shown and what differs.
The marks are read from the source, so nothing needs to run: `python -m
tests.server.conformance.table`.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import attrs
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute

from server.web import routes

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "protocol.md"
CATALOGUE = Path(__file__).with_name("endpoints.txt")

HEAD = """# What of the protocol is here

Made by `python -m tests.server.conformance.table` from the tests; do not edit. One row per endpoint
of the protocol: whether this server has it, how many conformance tests name it, and where we differ
on purpose. The reasons for the differences that are wider than one endpoint are in
[differences.md](differences.md).

"""


@attrs.frozen(kw_only=True)
class Mark:
    """One `spec` mark: what a test says it shows."""

    section: str
    endpoint: str
    differs: str
    place: str


@attrs.frozen(kw_only=True)
class Endpoint:
    """One line of the catalogue."""

    group: str
    section: str
    name: str


def key(endpoint: str) -> str:
    """An endpoint's name with its parameters' names taken out: they count by their place."""
    return re.sub(r"{[^}]*}", "{}", endpoint)


def catalogue() -> Iterator[Endpoint]:
    """What the protocol has, in the order of the catalogue."""
    group = ""
    for line in CATALOGUE.read_text().split("\n\n", 1)[1].splitlines():
        if line.startswith("# "):
            group = line[2:]
        elif line:
            document, section, method, path = line.split()
            yield Endpoint(group=group, section=f"{document} {section}", name=f"{method} {path}")


def implemented(found: list[BaseRoute] | None = None, prefix: str = "") -> Iterator[str]:
    """Every endpoint of the application, as "METHOD path"."""
    for route in routes._table() if found is None else found:
        if isinstance(route, Route):
            for method in (route.methods or set()) - {"HEAD"}:
                yield f"{method} {prefix}{route.path}"
        elif isinstance(route, WebSocketRoute):
            yield f"WS {prefix}{route.path}"
        elif isinstance(route, Mount) and route.routes:
            yield from implemented(list(route.routes), prefix + route.path)


def marks() -> Iterator[Mark]:
    """Every `pytest.mark.spec(...)` of the tests; its arguments must be literals."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if node.func.attr == "spec" and ast.unparse(node.func) == "pytest.mark.spec":
                given = [ast.literal_eval(argument) for argument in node.args]
                named = {word.arg: ast.literal_eval(word.value) for word in node.keywords}
                yield Mark(
                    section=given[0],
                    endpoint=given[1] if len(given) > 1 else named.get("endpoint", ""),
                    differs=named.get("differs", ""),
                    place=f"{path.relative_to(ROOT)}:{node.lineno}",
                )


def page() -> str:
    """The whole text of docs/protocol.md."""
    here = {key(name) for name in implemented()}
    shown: dict[str, list[Mark]] = defaultdict(list)
    for mark in marks():
        shown[key(mark.endpoint)].append(mark)
    parts = [HEAD]
    group = None
    rows = list(catalogue())
    counts = [0, 0]
    for row in rows:
        if row.group != group:
            group = row.group
            parts.append(
                f"\n## {group}\n\n| spec | endpoint | here | tests | differs |\n|---|---|---|---|---|\n"
            )
        found = shown.get(key(row.name), [])
        differs = "; ".join(dict.fromkeys(mark.differs for mark in found if mark.differs))
        is_here = key(row.name) in here
        counts[0] += is_here
        counts[1] += bool(found)
        parts.append(
            f"| {row.section} | `{row.name}` | {'yes' if is_here else 'no'} |"
            f" {len(found)} | {differs} |\n"
        )
    known = {key(row.name) for row in rows}
    ours = sorted(
        name
        for name in implemented()
        if key(name) not in known and re.search(r" /(api|auth|ws)", name)
    )
    parts.append(
        "\n## Ours\n\nEndpoints the protocol does not have; stock clients never call them.\n\n"
    )
    parts.extend(f"- `{name}`\n" for name in ours)
    parts.insert(
        1,
        f"{counts[0]} of {len(rows)} endpoints are implemented; {counts[1]} have a test of their own.\n",
    )
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
