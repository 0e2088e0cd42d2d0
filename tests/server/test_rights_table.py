"""The table of rights itself: what holds for every row, and that the page printed from it is true."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.errors import Forbidden, NotFound
from server.rights import (
    TABLE,
    WIDER,
    Agents,
    Caller,
    People,
    Thing,
    audience,
    can_ever,
    check,
    may,
    refusal,
)
from server.rights_doc import page

PAGE = Path(__file__).parents[2] / "docs" / "security.md"

pytestmark = pytest.mark.fast

KINDS = ("", "private", "chat")
ROLES = ("owner", "admin", "member")


def names() -> list[tuple[str, str]]:
    """Every right with the kind of thing its row is about."""
    found = []
    for rule in TABLE:
        kind = next((k for k in KINDS[1:] if rule.object.startswith(f"{k} ")), "")
        found.append((f"{rule.object.removeprefix(f'{kind} ')}.{rule.action}", kind))
    return found


def test_the_page_is_printed_from_the_table() -> None:
    text = PAGE.read_text()
    assert text == page(text), "run python -m server.rights_doc docs/security.md"


@pytest.mark.parametrize("role", ROLES)
def test_an_agent_never_has_more_than_a_member_whose_things_they_are(role: str) -> None:
    for right, kind in names():
        thing = Thing(kind=kind, people=("u",), agents=("a",), mine=True)
        agent = Caller(user_id="u", role=role, agent_id="a", agents_may=WIDER)
        owner = Caller(user_id="u", role="member")
        rule_is_agents = right == "run.evaluate"
        if may(agent, right, thing) and not rule_is_agents:
            assert may(owner, right, thing), right


def test_an_agents_rights_do_not_depend_on_its_owners_role() -> None:
    for right, kind in names():
        for mine in (True, False):
            for wider in (frozenset[str](), WIDER):
                thing = Thing(kind=kind, people=("u",), mine=mine)
                answers = {
                    may(
                        Caller(user_id="u", role=role, agent_id="a", agents_may=wider), right, thing
                    )
                    for role in ROLES
                }
                assert len(answers) == 1, right


def test_an_agent_whose_owner_has_left_has_nothing_in_the_workspace() -> None:
    gone = Caller(user_id="u", role=None, agent_id="a", agents_may=WIDER)
    thing = Thing(people=("u",), agents=("a",), mine=True)
    left = {right for right, kind in names() if not kind and may(gone, right, thing)}
    assert {right.partition(".")[0] for right in left} <= {
        *("server", "session", "account", "credential", "webhook")
    }


def test_more_of_a_role_is_never_less() -> None:
    for right, kind in names():
        for whose in ("u", "other"):
            thing = Thing(kind=kind, people=(whose,))
            member, admin, owner = (
                may(Caller(user_id="u", role=role), right, thing)
                for role in ("member", "admin", "owner")
            )
            assert member <= admin <= owner, right


def test_an_entrance_refuses_nobody_who_may() -> None:
    callers = [Caller(user_id="u", role=role) for role in (*ROLES, None)]
    callers += [Caller(user_id="u", role=role, agent_id="a") for role in ROLES]
    callers.append(Caller(daemon_id="d"))
    for right, kind in names():
        for caller in (*callers, None):
            for mine in (True, False):
                thing = Thing(kind=kind, people=("u",), mine=mine, daemon_id="d")
                if may(caller, right, thing):
                    assert can_ever(caller, right), right


def test_a_machine_has_its_own_and_no_other() -> None:
    for right in ("machine.act", "machine.report"):
        assert may(Caller(daemon_id="d"), right, Thing(daemon_id="d"))
        assert not may(Caller(daemon_id="d"), right, Thing(daemon_id="e"))
        assert not may(Caller(daemon_id="d"), right, Thing())
        assert may(Caller(user_id="u", role="member"), right, Thing(people=("u",)))
        for role in ROLES:
            assert not may(Caller(user_id="x", role=role), right, Thing(people=("u",)))
        assert not may(Caller(user_id="u", role=None), right, Thing(people=("u",)))
    with pytest.raises(NotFound, match="runtime not found"):
        check(Caller(user_id="x", role="owner"), "machine.act", Thing(people=("u",)))


def test_what_can_be_widened_stays_a_members() -> None:
    wide = Caller(user_id="u", role="owner", agent_id="a", agents_may=WIDER)
    for right, kind in names():
        rule = next(r for r in TABLE if (f"{kind} {right}".strip()) == f"{r.object}.{r.action}")
        if rule.agents is Agents.NEVER:
            assert not may(wide, right, Thing(kind=kind, people=("u",), agents=("a",), mine=True))


def test_an_audience_is_who_may() -> None:
    for right, kind in names():
        heard = audience(right, Thing(kind=kind, people=("u",)))
        for role in ROLES:
            for user in ("u", "x"):
                caller = Caller(user_id=user, role=role)
                hears = (
                    heard.members
                    or (heard.admins and role in {"owner", "admin"})
                    or (heard.owners and role == "owner")
                    or user in heard.users
                )
                assert hears == may(caller, right, Thing(kind=kind, people=("u",))), right


def test_every_refusal_has_its_words() -> None:
    for right, kind in names():
        for caller in (None, Caller(user_id="u"), Caller(user_id="u", agent_id="a")):
            error = refusal(caller, right, Thing(kind=kind))
            assert isinstance(error, Forbidden | NotFound)
            assert "{" not in error.text
    assert all(rule.people in People for rule in TABLE)
