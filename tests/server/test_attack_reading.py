"""What a member could read and start of somebody's private agent: findings 10 and 11.

The live feed told everybody in the workspace the transcript of private agents' runs; and an
autopilot was a way to an agent that could not be assigned.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import attrs
import pytest

from server import rights
from server.rights import Caller as Asker
from server.rights import Thing
from server.store.queries import Connection
from shared.wire.event import Event
from tests.support.api import Api, open_api
from tests.support.rows import (
    insert,
    make_agent,
    make_issue,
    make_runtime,
    make_task,
    make_token,
    make_user,
)

pytestmark = pytest.mark.postgres

SECRET = "PRIVATE WORDS"


@attrs.frozen
class Scene:
    """A private agent of the member (`maker`), its run on an issue, and its autopilot."""

    agent: str
    runtime: str
    issue: str
    task: str
    autopilot: str
    trigger: str


async def scene(api: Api) -> Scene:
    async def unit(conn: Connection) -> Scene:
        world, maker = api.world, api.member.user_id
        runtime = await make_runtime(conn, world.workspace_id, maker)
        agent = await make_agent(
            conn, world.workspace_id, runtime, owner_id=maker, visibility="private",
            name="Hidden", instructions=SECRET, custom_args=[SECRET],
        )  # fmt: skip
        issue = await make_issue(conn, world, assignee_id=agent)
        task = await make_task(
            conn, world, agent_id=agent, runtime_id=runtime, issue_id=issue.id, status="running",
            result={"output": SECRET},
        )  # fmt: skip
        pilot = await insert(
            conn, "autopilot", workspace_id=world.workspace_id, title=SECRET,
            assignee_type="agent", assignee_id=agent, execution_mode="run_only",
            created_by_type="member", created_by_id=maker,
        )  # fmt: skip
        trigger = await insert(
            conn, "autopilot_trigger", autopilot_id=pilot, kind="webhook",
            webhook_token="awt_" + "s" * 43,
        )  # fmt: skip
        return Scene(agent, runtime, issue.id, task, pilot, trigger)

    found: Scene = await api.run(unit)
    return found


async def test_the_feed_tells_a_private_run_only_to_who_may_read_it() -> None:
    async with open_api() as api:
        at = await scene(api)
        peer = await api.run(lambda conn: make_user(conn, "Peer"))
        task = f"/api/daemon/tasks/{at.task}"
        message = {"seq": 1, "type": "text", "content": SECRET}
        await api.member.ok(200, "POST", f"{task}/messages", {"messages": [message]})
        await api.member.ok(200, "POST", f"{task}/progress", {"summary": SECRET})
        told = [event for event in api.told if isinstance(event, Event) and SECRET in str(event)]
        assert {event.type for event in told} == {"task:message", "task:progress"}
        here = api.world.workspace_id
        for event in told:
            topics = api.hub._topics(event)
            assert topics == {
                f"owners:{here}",
                f"admins:{here}",
                f"member:{here}:{api.member.user_id}",
            }
            assert f"member:{here}:{peer}" not in topics
        # what a run of an open agent says goes to everybody, as before
        await api.run(
            lambda conn: conn.execute(
                "update agent set visibility = 'workspace' where id = $1", at.agent
            )
        )
        api.told.clear()
        await api.member.ok(200, "POST", f"{task}/progress", {"summary": SECRET})
        (event,) = api.events("task:progress")
        assert api.hub._topics(event) == {f"workspace:{here}"}
        # and a run that is under way when its agent is made private is private from then on
        await api.run(
            lambda conn: conn.execute(
                "update agent set visibility = 'private' where id = $1", at.agent
            )
        )
        api.told.clear()
        await api.member.ok(200, "POST", f"{task}/progress", {"summary": SECRET})
        (event,) = api.events("task:progress")
        assert f"workspace:{here}" not in api.hub._topics(event)


async def test_events_of_agents_do_not_say_how_they_work() -> None:
    async with open_api() as api:
        at = await scene(api)
        path = f"/api/agents/{at.agent}"
        hidden = {"mcp_config": {"x": SECRET}, "runtime_config": {"y": SECRET}}
        await api.member.ok(200, "PUT", path, {"instructions": SECRET + "!"} | hidden)
        await api.member.ok(200, "PUT", f"{path}/env", {"custom_env": {"K": SECRET}})
        await api.member.ok(200, "POST", f"{path}/archive")
        await api.member.ok(200, "POST", f"{path}/restore")
        told = [event for event in api.events() if event.type.startswith("agent:")]
        assert {event.type for event in told} >= {
            "agent:status",
            "agent:archived",
            "agent:restored",
        }
        for event in told:
            assert SECRET not in str(event.payload)
            assert event.kind == "private"
            assert event.users == (api.member.user_id,)


async def test_http_shows_of_a_private_run_that_it_is_there() -> None:
    async with open_api() as api:
        at = await scene(api)
        peer = await newcomer(api)
        for path in (f"/api/issues/{at.issue}/task-runs", f"/api/issues/{at.issue}/active-task"):
            answer = await peer.call("GET", path)
            assert answer.status_code == 200
            assert at.task in answer.text
            assert SECRET not in answer.text
            assert SECRET in (await api.member.call("GET", path)).text
            assert SECRET in (await api.owner.call("GET", path)).text
        await peer.refused(403, "GET", f"/api/tasks/{at.task}/messages")
        await peer.refused(403, "POST", f"/api/tasks/{at.task}/cancel", {})
        await peer.refused(403, "POST", f"/api/issues/{at.issue}/rerun", {})


async def newcomer(api: Api) -> Any:
    async def unit(conn: Connection) -> tuple[str, str]:
        user_id = await make_user(conn, "Peer")
        await insert(
            conn, "member", workspace_id=api.world.workspace_id, user_id=user_id, role="member"
        )
        return user_id, await make_token(conn, user_id)

    user_id, token = await api.run(unit)
    return await api.caller(user_id, token, api.world.workspace_id)


async def test_an_autopilot_is_no_way_to_a_private_agent() -> None:
    async with open_api() as api:
        at = await scene(api)
        peer = await newcomer(api)
        pilot = f"/api/autopilots/{at.autopilot}"
        trigger = f"{pilot}/triggers/{at.trigger}"
        for method, path, body in (
            ("GET", pilot, ...),
            ("PATCH", pilot, {"title": "mine", "description": "do my work"}),
            ("PATCH", pilot, {"status": "paused"}),
            ("POST", f"{pilot}/trigger", {}),
            ("POST", f"{pilot}/triggers", {"kind": "webhook"}),
            ("PATCH", trigger, {"enabled": False}),
            ("POST", f"{trigger}/rotate-webhook-token", {}),
            ("PUT", f"{trigger}/signing-secret", {"signing_secret": "s" * 20}),
            ("DELETE", trigger, ...),
            ("GET", f"{pilot}/runs", ...),
            ("GET", f"{pilot}/deliveries", ...),
            ("DELETE", pilot, ...),
        ):
            answer = await peer.call(method, path, body)
            assert answer.status_code == 403, f"{method} {path}: {answer.status_code}"
            assert "awt_" not in answer.text
        assert SECRET not in (await peer.call("GET", "/api/autopilots")).text
        assert SECRET in (await api.member.call("GET", "/api/autopilots")).text
        assert (await api.member.get(pilot))["triggers"][0]["webhook_token"].startswith("awt_")
        await api.owner.ok(200, "PATCH", pilot, {"description": "an admin's word"})
        await api.member.ok(200, "POST", f"{pilot}/trigger", {})
        for event in api.events():
            if event.type.startswith("autopilot:"):
                assert (event.kind, event.users) == ("private", (api.member.user_id,) * 2)


async def test_an_agent_reads_no_webhook_of_an_open_autopilot() -> None:
    async with open_api() as api:
        at = await scene(api)
        await api.run(lambda conn: conn.execute("update agent set visibility = 'workspace'"))
        agent, pilot = await api.agent(), f"/api/autopilots/{at.autopilot}"
        assert "awt_" not in (await agent.call("GET", pilot)).text
        assert "awt_" in (await api.member.call("GET", pilot)).text


async def test_an_autopilot_that_an_agent_made_starts_only_what_that_agent_may_use() -> None:
    async with open_api() as api:
        at = await scene(api)
        await api.run(
            lambda conn: conn.execute(
                "update autopilot set created_by_type = 'agent', created_by_id = $1",
                api.world.agent_id,
            )
        )
        run = await api.owner.ok(200, "POST", f"/api/autopilots/{at.autopilot}/trigger", {})
        assert (run["status"], "private" in run["failure_reason"]) == ("skipped", True)


async def test_numbers_by_agent_leave_private_agents_out() -> None:
    async with open_api() as api:
        at = await scene(api)
        peer = await newcomer(api)

        async def used(conn: Connection) -> None:
            await conn.execute(
                "insert into task_usage (task_id, provider, model, input_tokens, output_tokens)"
                " values ($1, 'claude', 'm', 5, 5)",
                at.task,
            )
            await conn.execute(
                "update agent_task_queue set started_at = now(), completed_at = now(),"
                " status = 'completed' where id = $1",
                at.task,
            )

        await api.run(used)
        for path in (
            "/api/dashboard/usage/by-agent",
            "/api/dashboard/agent-runtime",
            f"/api/runtimes/{at.runtime}/usage/by-agent",
            "/api/agent-run-counts",
            "/api/agent-activity-30d",
            "/api/agent-task-snapshot",
            "/api/agents",
        ):
            assert at.agent in (await api.member.call("GET", path)).text, path
            assert at.agent not in (await peer.call("GET", path)).text, path


async def test_the_database_filters_as_the_table_says() -> None:
    """`may_use_agent` and the rows of `agent.use`, for every viewer and every agent."""
    async with open_api() as api:
        world = api.world

        async def unit(conn: Connection) -> list[str]:
            people = {"owner": world.user_id, "member": api.member.user_id}
            for who, role in (("admin", "admin"), ("peer", "member")):
                people[who] = await make_user(conn, who)
                await insert(
                    conn, "member", workspace_id=world.workspace_id, user_id=people[who], role=role
                )
            people["outsider"] = api.stranger.user_id
            roles = {"owner": "owner", "admin": "admin", "member": "member", "peer": "member"}
            runtime = await make_runtime(conn, world.workspace_id, world.user_id)
            agents = {}
            for owner, visibility, number in itertools.product(
                ("owner", "member", "peer", None), ("workspace", "private"), (1, 2)
            ):
                agents[owner, visibility, number] = await make_agent(
                    conn, world.workspace_id, runtime, owner_id=people.get(owner or ""),
                    visibility=visibility,
                )  # fmt: skip
            squads: list[set[str]] = []
            for archived, names in (
                (False, [("owner", "workspace", 1), ("member", "private", 1)]),
                (False, [("peer", "private", 1), ("owner", "private", 2)]),
                (True, [("owner", "workspace", 2), ("peer", "private", 2)]),
            ):
                squad = await insert(
                    conn, "squad", workspace_id=world.workspace_id, name=str(names),
                    leader_id=agents[names[0]],
                )  # fmt: skip
                for name in names[1:]:
                    await insert(
                        conn, "squad_member", squad_id=squad, member_type="agent",
                        member_id=agents[name],
                    )  # fmt: skip
                if archived:
                    await conn.execute("update squad set archived_at = now() where id = $1", squad)
                else:
                    squads.append({agents[name] for name in names})
            viewers: list[tuple[str, Asker, Any]] = [
                (who, Asker(user_id=people[who], role=roles.get(who)), None) for who in people
            ]
            for (owner, visibility, _), agent_id in agents.items():
                if owner is not None:
                    asker = Asker(user_id=people[owner], role=roles[owner], agent_id=agent_id)
                    viewers.append((f"agent of {owner}", asker, visibility))
            wrong = []
            for name, asker, own_visibility in viewers:
                for (owner, visibility, _), agent_id in agents.items():
                    owner_id = people.get(owner or "")
                    mine = asker.agent_id is not None and circle(
                        asker, own_visibility, agent_id, owner_id, squads
                    )
                    kind = "private" if visibility == "private" else ""
                    thing = Thing(kind=kind, people=(owner_id,), mine=mine)
                    asked = asker if asker.role else attrs.evolve(asker, role="member")
                    wanted = rights.may(asked, "agent.use", thing)
                    for gate in {asker.gate, asker.agent_id or asker.user_id}:
                        found = await conn.fetchval(
                            "select may_use_agent($1, $2, $3, $4, $5)",
                            agent_id, visibility, owner_id, world.workspace_id, gate,
                        )  # fmt: skip
                        if found != wanted:
                            wrong.append(f"{name} {own_visibility}, {owner} {visibility}: {found}")
            return wrong

        assert await api.run(unit) == []


def circle(
    asker: Asker, visibility: str, agent_id: str, owner_id: str | None, squads: Iterable[set[str]]
) -> bool:
    """An agent's circle in Python: itself, its squads, and its owner's if it is private itself."""
    if agent_id == asker.agent_id:
        return True
    if visibility == "private" and owner_id == asker.user_id:
        return True
    return any({agent_id, asker.agent_id} <= squad for squad in squads)
