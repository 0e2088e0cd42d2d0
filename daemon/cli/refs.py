"""From what people type to ids: issues, tasks, agents, runtimes, workspaces, assignees.

Accepted are full ids, issue identifiers, hex prefixes of at least four characters, names, and
what gets pasted: `@name`, mention links, page addresses (spec 06 §20.2). A reference that fits
several things is an error that lists them; nothing is ever guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

import attrs

from daemon.cli.api import Api, segment
from daemon.cli.errors import ABSENT, CliError
from shared.ids import InvalidId, canonical_id, short_id

_MENTION: Final = re.compile(r"\[@?(.+?)\]\(mention://([a-z]+)/([0-9a-fA-F-]+)\)")
_IDENTIFIER: Final = re.compile(r"[A-Za-z][A-Za-z0-9]*-\d+")
_SHORT_NUMBER: Final = re.compile(r"#\d+|\d{1,3}")
_PREFIX: Final = re.compile(r"[0-9a-fA-F-]{4,36}")

_ALONE: Final = 8
_PAGE: Final = 50
_SHOWN: Final = 8
"""How many candidates an error lists."""


def try_id(text: str) -> str | None:
    """The canonical UUID, or None."""
    try:
        return canonical_id(text)
    except InvalidId:
        return None


def article(noun: str) -> str:
    return "an" if noun[:1] in "aeiou" else "a"


def need_id(text: str, what: str) -> str:
    """The canonical UUID. Raises CliError naming what it should have been."""
    found = try_id(text.strip())
    if found is None:
        raise CliError(f"{text!r} is not the full id of {article(what)} {what}")
    return found


def get_issue(api: Api, ref: str) -> dict[str, Any]:
    """The issue a reference names. Raises CliError."""
    ref = ref.strip()
    mention = _MENTION.fullmatch(ref)
    if mention:
        ref = mention[3]
    elif ref.startswith(("http://", "https://")):
        ref = urlsplit(ref).path.rstrip("/").rsplit("/", 1)[-1]
    known = try_id(ref)
    if known is None and not _IDENTIFIER.fullmatch(ref):
        if _SHORT_NUMBER.fullmatch(ref):
            ref = f"ISSUE-{int(ref.lstrip('#'))}"  # only the number counts (spec 06 §5)
        elif _PREFIX.fullmatch(ref):
            known = _issue_by_prefix(api, ref)
        else:
            raise CliError(f"{ref!r} names no issue: give its key (BUL-12) or id")
    issue: dict[str, Any] = api.get(f"/api/issues/{segment(known or ref)}")
    return issue


def issue_id(api: Api, ref: str) -> str:
    """The id of the issue a reference names. Raises CliError."""
    return str(get_issue(api, ref)["id"])


def _issue_by_prefix(api: Api, prefix: str) -> str:
    found: list[Mapping[str, Any]] = []
    offset = 0
    while True:
        page = api.get("/api/issues", limit=_PAGE, offset=offset, include_closed="true")
        issues = page.get("issues") or []
        found += [issue for issue in issues if _begins(issue["id"], prefix)]
        offset += len(issues)
        if len(issues) == 0 or offset >= page.get("total", 0):
            break
    return _only(found, f"issue id beginning with {prefix!r}", _say_issue)


def _say_issue(issue: Mapping[str, Any]) -> str:
    return f"{issue.get('identifier')} {issue.get('title')} ({issue['id']})"


def task_id(api: Api, ref: str, issue_ref: str | None) -> str:
    """The task a reference names: a full id, or with an issue a prefix of it. Raises CliError."""
    known = try_id(ref.strip())
    if known is not None:
        return known
    if not issue_ref or not _PREFIX.fullmatch(ref.strip()):
        raise CliError(f"{ref!r} is not a full run id; a shorter one needs --issue <issue>")
    runs = api.get(f"/api/issues/{issue_id(api, issue_ref)}/task-runs")
    fitting = [run for run in runs if _begins(run["id"], ref.strip())]
    return _only(fitting, f"run beginning with {ref!r}", lambda run: str(run["id"]))


def agent_id(api: Api, ref: str) -> str:
    """The agent a full id, prefix or name names, archived ones included. Raises CliError."""
    known = try_id(ref.strip())
    if known is not None:
        return known
    agents = api.get("/api/agents", include_archived="true")
    return match_name(
        [[Candidate(kind="agent", id=a["id"], name=a["name"]) for a in agents]], ref, "agent"
    ).id


def runtime_id(api: Api, ref: str) -> str:
    """The runtime a full id, prefix or name names. Raises CliError."""
    known = try_id(ref.strip())
    if known is not None:
        return known
    found = [
        Candidate(kind="runtime", id=row["id"], name=runtime_name(row), other_name=row["name"])
        for row in api.get("/api/runtimes")
    ]
    return match_name([found], ref, "runtime").id


def runtime_name(row: Mapping[str, Any]) -> str:
    """What a runtime is called: as its owner says, else as its machine does."""
    return str(row.get("custom_name") or row["name"])


def find_workspace(workspaces: Sequence[dict[str, Any]], ref: str) -> dict[str, Any]:
    """The workspace an id, slug, name or id prefix names. Raises CliError."""
    ref = ref.strip()
    wanted = try_id(ref) or ref
    for workspace in workspaces:
        if wanted in (workspace["id"], workspace.get("slug")):
            return workspace
    fitting = [
        w
        for w in workspaces
        if str(w.get("name", "")).lower() == ref.lower()
        or (_PREFIX.fullmatch(ref) and _begins(w["id"], ref))
    ]
    say: Callable[[Mapping[str, Any]], str] = lambda w: f"{w.get('slug')} ({w['id']})"  # noqa: E731
    chosen = _only(fitting, f"workspace {ref!r}", say)
    return next(w for w in workspaces if w["id"] == chosen)


@attrs.frozen(kw_only=True)
class Candidate:
    """Somebody an issue can be given to: `kind` is member, agent or squad.

    `other_name` finds it too, such as the name a runtime had before its owner gave it one.
    """

    kind: str
    id: str
    name: str
    other_name: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.kind}, {short_id(self.id)})"


def assignees(api: Api) -> list[list[Candidate]]:
    """Everybody an issue can be given to, one list a kind.

    A list that cannot be had is left out; when none can, the first failure is raised.
    """
    lists: list[list[Candidate]] = []
    failures: list[CliError] = []
    for kind, path, id_key in (
        ("member", f"/api/workspaces/{segment(api.workspace_id)}/members", "user_id"),
        ("agent", "/api/agents", "id"),
        ("squad", "/api/squads", "id"),
    ):
        try:
            rows = api.get(path)
        except CliError as failure:
            failures.append(failure)
            continue
        lists.append([Candidate(kind=kind, id=r[id_key], name=r.get("name") or "") for r in rows])
    if not lists:
        raise failures[0]
    return lists


def find_assignee(api: Api, text: str) -> Candidate:
    """The member, agent or squad a name names. Raises CliError."""
    return match_name(assignees(api), text, "member, agent or squad")


def assignee_by_id(api: Api, text: str) -> Candidate:
    """The member, agent or squad with exactly this id. Raises CliError."""
    wanted = need_id(text, "member, agent or squad")
    for candidate in (c for kind in assignees(api) for c in kind):
        if candidate.id == wanted:
            return candidate
    raise CliError(f"no member, agent or squad has the id {wanted}", ABSENT)


def match_name(lists: Iterable[Sequence[Candidate]], text: str, what: str) -> Candidate:
    """Find one candidate by id or prefix, else exact name, else part of a name.

    The first class with a hit decides; several hits in it are an error. Raises CliError.
    """
    wanted = text.strip()
    mention = _MENTION.fullmatch(wanted)
    wanted = mention[3] if mention else wanted.removeprefix("@").strip()
    if not wanted:
        raise CliError(f"the name of a {what} is missing")
    low = wanted.lower()
    everybody = [candidate for kind in lists for candidate in kind]
    classes: tuple[Callable[[Candidate], bool], ...] = (
        lambda c: c.id == low or (len(low) >= 8 and _begins(c.id, low)),
        lambda c: low in (c.name.lower(), c.other_name.lower()),
        lambda c: low in c.name.lower() or low in c.other_name.lower(),
    )
    for fits in classes:
        hits = [candidate for candidate in everybody if fits(candidate)]
        if len(hits) == 1:
            return hits[0]
        if hits:
            raise CliError(f"{text!r} fits several: {_listed(hits)}; give more of the name or id")
    known = f"; there are: {_listed(everybody)}" if everybody else "; there are none yet"
    raise CliError(f"no {what} is called {text!r}{known}", ABSENT)


def _begins(full: str, part: str) -> bool:
    """Tell whether an id begins with some digits, or ends with so many as are shown of it alone."""
    digits, part = full.replace("-", ""), part.lower().replace("-", "")
    return digits.startswith(part) or (len(part) >= _ALONE and digits.endswith(part))


def _listed(things: Sequence[object]) -> str:
    shown = ", ".join(str(thing) for thing in things[:_SHOWN])
    return shown + (f" and {len(things) - _SHOWN} more" if len(things) > _SHOWN else "")


def _only(
    found: Sequence[Mapping[str, Any]], what: str, say: Callable[[Mapping[str, Any]], str]
) -> str:
    if not found:
        raise CliError(f"there is no {what}", ABSENT)
    if len(found) > 1:
        raise CliError(f"more than one {what}: {_listed([say(row) for row in found])}")
    return str(found[0]["id"])
