"""Who hears what on the live feed: every type of event, of every kind of thing, on real sockets.

What is expected is computed from the rows of the table, as in test_rights_walk. That the server
announces no type without an entry is seen twice: by reading its source here, and in every other
test, since the hub logs an error for such an event and an error fails the test that caused it.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import attrs
import pytest
import trio
from trio_websocket import WebSocketConnection

import server
from server.rights import TABLE, People
from server.rights_map import EVENTS
from server.store.queries import Connection
from shared.ids import hash_token, mint_token
from shared.wire.event import Event
from tests.server.test_rights_walk import row_of
from tests.server.test_sockets import Rig, open_rig, sign_in, take
from tests.support.rows import insert, make_task, make_token, make_user

pytestmark = pytest.mark.postgres

KINDS: Final = ("", "private", "chat")

_HEARS: Final = {
    People.EVERYONE: {"owner", "admin", "maker", "peer"},
    People.USERS: {"owner", "admin", "maker", "peer"},
    People.MEMBERS: {"owner", "admin", "maker", "peer"},
    People.MANAGERS: {"owner", "admin", "maker"},
    People.ADMINS: {"owner", "admin"},
    People.OWNERS: {"owner"},
    People.SELF: {"maker"},
    People.HOLDER: {"maker"},
    People.NOBODY: set[str](),
}

PAYLOAD: Final = {"status": "completed", "source": "manual", "task_id": "t", "member": {}}
"""What those who count events look at."""

ELSEWHERE: Final = {"invitation.answer", "inbox.read"}
"""Told to a user wherever their page is open: the maker's page in another workspace hears them."""

CLOSE: Final = ("member:removed",)
"""Events after which somebody's socket is closed; test_sockets."""


def literals() -> Iterator[tuple[str, str]]:
    """Every type of event that the server's source names, and where."""
    for path in sorted(Path(server.__file__).parent.rglob("*.py")):
        if path.name == "rights_map.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") != "startswith":
                values = [*node.args, *(word.value for word in node.keywords)]
                for value in values:
                    if isinstance(value, ast.Constant) and isinstance(value.value, str):
                        yield value.value, path.name


def test_every_type_of_event_has_its_right() -> None:
    kinds = {kind.partition(":")[0] for kind in EVENTS}
    named = {
        (name, where)
        for name, where in literals()
        if re.fullmatch(r"[a-z_]+:[a-z_-]+", name) and name.partition(":")[0] in kinds
    }
    assert len(named) > 40, "the source was not read"
    assert {one for one in named if one[0] not in EVENTS} == set()
    rows = {f"{rule.object}.{rule.action}" for rule in TABLE}
    assert {EVENTS[kind] for kind in EVENTS} <= rows


@attrs.frozen
class Ears:
    rig: Rig
    ids: dict[str, str]
    pages: dict[str, WebSocketConnection]
    """By who looks; `maker elsewhere`: the maker's page in another workspace."""

    async def heard(self, events: list[Event]) -> list[set[str]]:
        """Announce events one by one; who heard each."""
        found: list[set[str]] = []
        hub = self.rig.server.services.hub
        for number, one in enumerate(events):
            hub.announce([attrs.evolve(one, payload=one.payload | {"mark": number})])
            hearers = set[str]()
            for who, page in self.pages.items():
                await page.send_message('{"type":"ping"}')
                while (frame := await take(page))["type"] != "pong":
                    assert frame["payload"]["mark"] == number
                    hearers.add(who)
            found.append(hearers)
        return found


@asynccontextmanager
async def open_ears() -> AsyncIterator[Ears]:
    async with open_rig() as rig, AsyncExitStack() as stack:
        here = rig.world.workspace_id

        async def unit(conn: Connection) -> tuple[dict[str, str], dict[str, str], str]:
            ids = {"owner": rig.world.user_id}
            tokens = {"owner": rig.world.token}
            for who, role in (("admin", "admin"), ("peer", "member"), ("maker", "member")):
                ids[who] = await make_user(conn, who)
                await insert(conn, "member", workspace_id=here, user_id=ids[who], role=role)
                tokens[who] = await make_token(conn, ids[who])
            other = await insert(conn, "workspace", name="O", slug="other", issue_prefix="OTH")
            await insert(conn, "member", workspace_id=other, user_id=ids["maker"], role="owner")
            return ids, tokens, other

        ids, tokens, other = await rig.database.write(unit)
        pages = {}
        places = [(who, who, here) for who in tokens]
        for name, who, where in [*places, ("maker elsewhere", "maker", other)]:
            page = await stack.enter_async_context(rig.server.socket(f"/ws?workspace_id={where}"))
            assert await sign_in(page, tokens[who]) == {"type": "auth_ack"}
            await page.send_message('{"type":"ping"}')
            assert (await take(page))["type"] == "pong"
            pages[name] = page
        yield Ears(rig, ids, pages)


def expected(kind: str, nature: str) -> set[str]:
    right = EVENTS[kind]
    rule = row_of(right, nature)
    hears = set(_HEARS[rule.people])
    if right in ELSEWHERE:
        hears.add("maker elsewhere")
    return hears


async def test_events_go_to_who_may_read_what_they_are_about(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with open_ears() as ears:
        asked = [(kind, nature) for kind in sorted(EVENTS) for nature in KINDS if kind not in CLOSE]
        events = [
            Event(
                type=kind,
                payload=PAYLOAD,
                workspace_id=ears.rig.world.workspace_id,
                users=(ears.ids["maker"],),
                kind=nature,
            )
            for kind, nature in asked
        ]
        found = await ears.heard(events)
        wrong = [
            f"{nature} {kind}: heard by {sorted(hearers)}, not {sorted(expected(kind, nature))}"
            for (kind, nature), hearers in zip(asked, found, strict=True)
            if hearers != expected(kind, nature)
        ]
        with capsys.disabled():
            print(f"\nwalked {len(EVENTS)} types of event x {len(KINDS)} kinds x {len(ears.pages)}")
        assert not wrong, "\n".join(wrong)


async def test_a_change_of_role_changes_what_is_heard() -> None:
    async with open_ears() as ears:
        here = ears.rig.world.workspace_id
        secret = Event(
            type="task:message", payload={}, workspace_id=here, users=(ears.ids["maker"],),
            kind="private",
        )  # fmt: skip

        def changed(who: str, role: str) -> Event:
            member = {"user_id": ears.ids[who], "role": role}
            return Event(type="member:updated", payload={"member": member}, workspace_id=here)

        heard = await ears.heard(
            [changed("peer", "admin"), secret, changed("peer", "member"), secret]
        )
        assert heard[1] == {"owner", "admin", "maker", "peer"}
        assert heard[3] == {"owner", "admin", "maker"}


async def test_an_event_that_nobody_knows_goes_to_nobody(error_log: Any) -> None:
    async with open_ears() as ears:
        here = ears.rig.world.workspace_id
        heard = await ears.heard([Event(type="new:kind", payload={}, workspace_id=here)])
        assert heard == [set()]
        error_log.expect("rights_map")


async def test_agents_and_machines_have_no_live_feed() -> None:
    async with open_rig() as rig:
        world = rig.world
        tokens = {kind: mint_token(kind) for kind in ("mat_", "mdt_")}

        async def unit(conn: Connection) -> None:
            task = await make_task(conn, world, status="running")
            await conn.execute(
                "insert into task_token (token_hash, task_id, agent_id, workspace_id, user_id,"
                " expires_at) values ($1, $2, $3, $4, $5, now() + interval '1 day')",
                hash_token(tokens["mat_"]), task, world.agent_id, world.workspace_id, world.user_id,
            )  # fmt: skip
            await conn.execute(
                "insert into daemon_token (workspace_id, daemon_id, token_hash, expires_at)"
                " values ($1, 'x', $2, now() + interval '1 day')",
                world.workspace_id, hash_token(tokens["mdt_"]),
            )  # fmt: skip

        await rig.database.write(unit)
        for token in tokens.values():
            async with rig.server.socket(f"/ws?workspace_id={world.workspace_id}") as page:
                with trio.fail_after(10):
                    await page.send_message(
                        json.dumps({"type": "auth", "payload": {"token": token}})
                    )
                    assert json.loads(await page.get_message()) == {"error": "invalid token"}
