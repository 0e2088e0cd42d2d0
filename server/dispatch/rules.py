"""Who is set to work by what happens on an issue (spec 02 §3.3, §3.4, §3.6; 06 §5.3, §7.4). Pure.

The endpoints that write and the ones that preview come to the same functions: first `targets` of
the event, then, with what the database knows of them (`Candidate`), the choice.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Final

import attrs

from server.markdown import Mention, mentions_in

SUMMARY_LENGTH: Final = 200

NOWHERE: Final = "00000000-0000-0000-0000-000000000000"
"""An issue that does not exist yet."""

_BLANK: Final = re.compile(r"[\n\r\t]")


@attrs.frozen(kw_only=True)
class IssueFacts:
    """What the rules need to know of an issue, as it is after the change."""

    id: str
    workspace_id: str
    status: str
    priority: str = "none"
    assignee_type: str | None = None
    assignee_id: str | None = None
    identifier: str = ""

    @property
    def agent_id(self) -> str | None:
        """The agent it is assigned to."""
        return self.assignee_id if self.assignee_type == "agent" else None

    @property
    def squad_id(self) -> str | None:
        """The squad it is assigned to."""
        return self.assignee_id if self.assignee_type == "squad" else None

    @property
    def target(self) -> Target | None:
        """The agent or squad it is assigned to."""
        if self.assignee_id is None or self.assignee_type not in ("agent", "squad"):
            return None
        return Target(self.assignee_type, self.assignee_id)


@attrs.frozen
class Target:
    """Somebody who can be set to work: an agent, or a squad, which is to say its leader."""

    kind: str
    id: str


@attrs.frozen(kw_only=True)
class Candidate:
    """The agent a target stands for, as it is with respect to one issue and one actor."""

    target: Target
    agent_id: str
    name: str = ""
    avatar_url: str | None = None
    archived: bool = False
    online: bool = True
    open: bool = True
    """The actor may use it: it is not private, or theirs."""
    pending: bool = False
    led_last: bool = False
    """Its latest task on the issue was in the role of a squad's leader."""
    cli_version: str = ""

    @property
    def leads(self) -> bool:
        """Whether it would work as a squad's leader."""
        return self.target.kind == "squad"

    @property
    def bound(self) -> bool:
        """Whether it can take work at all. Every agent has a runtime."""
        return not self.archived

    @property
    def ready(self) -> bool:
        """Whether it can take work now."""
        return self.bound and self.online


@attrs.frozen(kw_only=True)
class Choice:
    """An agent that gets a task. `source` is the protocol's word, `reason` ours for people."""

    agent_id: str
    source: str
    reason: str = ""
    leads: bool = False
    name: str = ""
    avatar_url: str | None = None
    cli_version: str = ""


@attrs.frozen(kw_only=True)
class Remark:
    """A comment as the rules see it; the parent's fields are "" and False without a parent."""

    content: str
    by_member: bool
    author_id: str = ""
    parent_by_member: bool = False
    parent_content: str = ""
    assignee_answered: bool = False
    """The assigned agent has answered directly below the same parent."""


def is_note(content: str) -> bool:
    """Tell whether the comment is for people only: its first word is `/note`."""
    words = content.split(None, 1)
    return bool(words) and words[0].lower() == "/note"


def summarise(content: str) -> str:
    """The first 200 characters on one line, for showing beside a task."""
    line = _BLANK.sub(" ", content).strip()
    return line if len(line) <= SUMMARY_LENGTH else line[:SUMMARY_LENGTH] + "…"


def addressees(remark: Remark) -> list[Mention]:
    """Whom a comment mentions, issues left out.

    A member's reply that names nobody and nothing passes on what its member-written parent named;
    agents never do that.
    """
    mentions = mentions_in(remark.content)
    if remark.by_member and remark.parent_by_member and not mentions:
        mentions = mentions_in(remark.parent_content)
    return [mention for mention in mentions if mention.kind != "issue"]


def targets(issue: IssueFacts, remark: Remark) -> list[Target]:
    """All whom a comment could set to work, each once."""
    found = [] if issue.target is None else [issue.target]
    found += [
        Target(mention.kind, mention.id)
        for mention in addressees(remark)
        if mention.kind in ("agent", "squad")
    ]
    return list(dict.fromkeys(found))


def commented(
    issue: IssueFacts,
    remark: Remark,
    candidates: Iterable[Candidate],
    *,
    suppressed: Collection[str] = (),
) -> list[Choice]:
    """The agents a comment sets to work, each once, in the order of the rules."""
    if is_note(remark.content):
        return []
    known = {candidate.target: candidate for candidate in candidates}
    chosen: dict[str, Choice] = {}

    def choose(candidate: Candidate | None, source: str, reason: str) -> None:
        if candidate is None or not (candidate.bound and candidate.open) or candidate.pending:
            return
        if candidate.agent_id not in chosen and candidate.agent_id not in suppressed:
            chosen[candidate.agent_id] = _choice(candidate, source, reason)

    assigned = None if issue.target is None else known.get(issue.target)
    if assigned is not None and not assigned.leads and _for_assignee(remark, assigned.agent_id):
        choose(assigned, "issue_assignee", "assigned to this issue")
    if assigned is not None and assigned.leads and _for_leader(remark, assigned):
        choose(assigned, "issue_assignee", "leads the squad that this issue is assigned to")
    for mention in addressees(remark):
        candidate = known.get(Target(mention.kind, mention.id))
        if mention.kind == "agent":
            choose(candidate, "mention_agent", "mentioned")
        elif mention.kind == "squad" and candidate and not _talks_to_itself(remark, candidate):
            choose(candidate, "mention_squad_leader", "leads a squad that is mentioned")
    return list(chosen.values())


def assigned(issue: IssueFacts, candidate: Candidate | None) -> Choice | None:
    """Who starts when an issue gets this assignee, with this status.

    A squad's leader must be there now; an agent's task may wait for its machine.
    """
    if candidate is None or issue.status == "backlog" or not candidate.open:
        return None
    able = candidate.ready and not candidate.pending if candidate.leads else candidate.bound
    return _choice(candidate, "assign", "assigned to this issue") if able else None


def released(issue: IssueFacts, previous_status: str, candidate: Candidate | None) -> Choice | None:
    """Who starts when an issue leaves the backlog. The caller is not at work on it itself."""
    leaves = previous_status == "backlog" and issue.status not in ("backlog", "done", "cancelled")
    if candidate is None or not leaves or not candidate.open or candidate.pending:
        return None
    able = candidate.ready if candidate.leads else candidate.bound
    return _choice(candidate, "status", "the issue has left the backlog") if able else None


def child_closed(
    parent: IssueFacts, child: IssueFacts, candidate: Candidate | None, child_agent: str | None
) -> Choice | None:
    """Who goes on with the parent; `child_agent` did the child, or led the squad that did.

    A squad is not told of what it did itself.
    """
    if candidate is None or not candidate.bound or candidate.pending:
        return None
    if candidate.leads:
        own_work = child.target == parent.target or child_agent == candidate.agent_id
        if own_work or not candidate.open:
            return None
    return _choice(candidate, "child", "a child issue is finished")


def _choice(candidate: Candidate, source: str, reason: str) -> Choice:
    return Choice(
        agent_id=candidate.agent_id,
        source=source,
        reason=reason,
        leads=candidate.leads,
        name=candidate.name,
        avatar_url=candidate.avatar_url,
        cli_version=candidate.cli_version,
    )


def _for_assignee(remark: Remark, agent_id: str) -> bool:
    """Rule 1: a member's comment, unless it is for others or part of a talk between people."""
    if not remark.by_member:
        return False
    me = Mention("agent", agent_id)
    mentions = _people(mentions_in(remark.content))
    if any(mention.kind == "all" for mention in mentions):
        return False
    if mentions and me not in mentions:
        return False
    named = me in mentions or me in mentions_in(remark.parent_content)
    return not remark.parent_by_member or named or remark.assignee_answered


def _for_leader(remark: Remark, leader: Candidate) -> bool:
    """Rule 2: any comment that is not addressed to somebody, and not the leader's own."""
    if remark.by_member:
        return not _people(mentions_in(remark.content))
    return not _talks_to_itself(remark, leader)


def _talks_to_itself(remark: Remark, leader: Candidate) -> bool:
    """Whether the author is the leader, who said this as the leader."""
    return not remark.by_member and remark.author_id == leader.agent_id and leader.led_last


def _people(mentions: Sequence[Mention]) -> list[Mention]:
    return [mention for mention in mentions if mention.kind != "issue"]
