"""Random lives of many tasks, over two real servers on one Postgres, checked after every step.

Hypothesis draws the steps: what users, daemons, lost answers, repeated requests and time do. Every
draw is a number that picks from what there is by then, so a step means something in any state. The
servers' own clocks cannot be turned; `time_passes` moves every stored time back instead, and runs
the sweeper's rules as a third process would.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import attrs
import httpx
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from server.database import Database
from server.dispatch import sweeper
from server.store.queries import Connection
from tests.support.portal import Portal
from tests.support.rows import World, make_agent, make_runtime, make_world

REDELIVERED_AFTER = 90.0
"""Seconds after which a claim whose answer was lost may be handed out again."""

OFFLINE_AFTER, OFFLINE_GRACE = 150.0, 900.0
"""Seconds until a silent machine is offline, and from then until what it runs is given up."""

ASSUMED = frozenset({"runtime_offline", "runtime_recovery", "timeout"})
"""Reasons the server gives by itself, without having heard from the daemon."""

RUNTIMES = 3
AGENTS = 4

pick = st.integers(min_value=0, max_value=999)
"""Chooses one of however many there are."""

outcomes = st.sampled_from(["complete", "complete twice", "fail", "complete and fail", "race"])

_STATE = """
with task as (
    select * from agent_task_queue where workspace_id = $1
), flying as (
    select * from task where status in ('dispatched', 'waiting_local_directory', 'running')
)
select array(select a.id::text from agent a join flying f on f.agent_id = a.id
             group by a.id having count(*) > a.max_concurrent_tasks) as over,
       array(select issue_id::text from flying where issue_id is not null
             group by agent_id, issue_id having count(*) > 1) as double,
       (select coalesce(jsonb_agg(jsonb_build_object('id', id, 'status', status,
                'output', result ->> 'output', 'error', error, 'reason', failure_reason,
                'dated', completed_at is not null)), '[]')
        from task where status in ('completed', 'failed', 'cancelled')) as ended,
       array(select id::text from task) as alive,
       (select coalesce(jsonb_agg(m), '[]')
        from (select task_id as id, count(*) as n, max(seq) as last from task_message
              where task_id = any($2::uuid[]) group by task_id) m) as told
"""
"""All that is looked at after a step, in one statement: it runs thousands of times."""


@attrs.define
class Held:
    """A claim some daemon holds: what it was given and what it has said since."""

    task_id: str
    runtime_id: str
    age: float = 0.0
    seq: int = 0
    started: bool = False


@attrs.define
class Together:
    """What all examples share: the servers' addresses and a way into their database."""

    urls: list[str]
    portal: Portal[Database]
    workers: ThreadPoolExecutor
    seen: Counter[str] = attrs.field(factory=Counter)
    """How often what happened: a walk in which nothing ends proves nothing."""


class QueueMachine(RuleBasedStateMachine):
    """One workspace with three runtimes and four agents; `together` is set by the test."""

    together: Together

    # the stage ---------------------------------------------------------------------------------

    @initialize(capacities=st.lists(st.integers(1, 3), min_size=AGENTS, max_size=AGENTS))
    def open(self, capacities: list[int]) -> None:
        portal = self.together.portal
        self.world: World = portal(make_world, portal.resource)
        self.agents, self.runtimes = portal(self._fill, capacities)
        self.clients = [
            httpx.Client(
                base_url=url,
                headers={
                    "Authorization": f"Bearer {self.world.token}",
                    "X-Workspace-ID": self.world.workspace_id,
                },
                timeout=20,
                trust_env=False,
            )
            for url in self.together.urls
        ]
        self.issues: list[str] = []
        self.held: list[Held] = []
        self.given: dict[str, float] = {}  # task -> seconds since it was last handed to a daemon
        self.ended: dict[str, dict[str, Any]] = {}
        self.confirmed: dict[str, str] = {}  # task -> the output whose completion was confirmed
        self.reported: dict[str, set[str]] = {}  # task -> what a daemon said of its end
        self.silent: list[str] = []  # machines that were out of reach and have not come back
        self.told: dict[str, int] = {}  # task -> transcript rows confirmed
        for agent in range(2 * AGENTS):
            self.create(agent, "none", "todo", agent)

    async def _fill(self, capacities: list[int]) -> tuple[list[str], list[str]]:
        async def unit(conn: Connection) -> tuple[list[str], list[str]]:
            world = self.world
            runtimes = [world.runtime_id] + [
                await make_runtime(conn, world.workspace_id, world.user_id)
                for _ in range(RUNTIMES - 1)
            ]
            agents = [
                await make_agent(
                    conn,
                    world.workspace_id,
                    runtimes[place % RUNTIMES],
                    owner_id=world.user_id,
                    max_concurrent_tasks=capacity,
                )
                for place, capacity in enumerate(capacities)
            ]
            return agents, runtimes

        return await self.together.portal.resource.write(unit)

    def teardown(self) -> None:
        if not hasattr(self, "clients"):
            return
        try:
            self._everything_queued_is_claimable()
        finally:
            for client in self.clients:
                client.close()

    # helpers -----------------------------------------------------------------------------------

    def _ask(self, server: int, method: str, path: str, body: Any = None) -> httpx.Response:
        answer = self.clients[server % len(self.clients)].request(method, path, json=body)
        assert answer.status_code < 500, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer

    def _at_once(self, *requests: tuple[int, str, str, Any]) -> list[httpx.Response]:
        """The same moment, different servers and connections."""
        started = [self.together.workers.submit(self._ask, *request) for request in requests]
        return [future.result(30) for future in started]

    def _one(self, things: list[Any], number: int) -> Any:
        return things[number % len(things)] if things else None

    def _rows(self, query: str, *args: Any) -> list[dict[str, Any]]:
        async def read() -> list[Any]:
            return await self.together.portal.resource.read(lambda conn: conn.fetch(query, *args))

        return [dict(row) for row in self.together.portal(read)]

    def _keep(self, runtime_id: str, answers: list[httpx.Response], *, lost: bool = False) -> None:
        """Take claims' answers; whatever is handed out twice too early is a broken promise."""
        for answer in answers:
            task = answer.json().get("task") if answer.status_code == 200 else None
            if task is None:
                continue
            last = self.given.get(task["id"])
            assert last is None or last > REDELIVERED_AFTER, f"{task['id']} was handed out twice"
            self.together.seen["claimed" if last is None else "claimed again"] += 1
            self.given[task["id"]] = 0.0
            self.held = [held for held in self.held if held.task_id != task["id"]]
            if not lost:
                self.held.append(Held(task["id"], runtime_id))

    # people ------------------------------------------------------------------------------------

    @rule(
        agent=pick,
        priority=st.sampled_from(["urgent", "none"]),
        status=st.sampled_from(["todo", "todo", "backlog"]),
        server=pick,
    )
    def create(self, agent: int, priority: str, status: str, server: int) -> None:
        answer = self._ask(
            server,
            "POST",
            "/api/issues",
            {
                "title": "Fix it",
                "allow_duplicate": True,
                "priority": priority,
                "status": status,
                "assignee_type": "agent",
                "assignee_id": self._one(self.agents, agent),
            },
        )
        if answer.status_code == 201:  # an archived agent is refused
            self.issues.append(answer.json()["id"])

    @rule(issue=pick, server=pick, twice=st.booleans())
    def comment(self, issue: int, server: int, *, twice: bool) -> None:
        if (chosen := self._one(self.issues, issue)) is not None:
            say = (server, "POST", f"/api/issues/{chosen}/comments", {"content": "and now?"})
            self._at_once(say, *([(server + 1, *say[1:])] if twice else []))

    @rule(
        what=st.sampled_from(
            ["reassign", "move", "move", "rerun", "cancel", "move agent", "archive", "delete"]
        ),
        issue=pick,
        task=pick,
        agent=pick,
        runtime=pick,
        server=pick,
        status=st.sampled_from(["todo", "in_progress", "done", "cancelled", "backlog"]),
    )
    def upset(
        self,
        *,
        what: str,
        issue: int,
        task: int,
        agent: int,
        runtime: int,
        server: int,
        status: str,
    ) -> None:
        """People change their minds while agents work."""
        on = f"/api/issues/{self._one(self.issues, issue)}"
        held = self._one(self.held, task)
        chosen = self._one(self.agents, agent)
        if what == "reassign":
            self._ask(server, "PUT", on, {"assignee_type": "agent", "assignee_id": chosen})
        elif what == "move":
            self._ask(server, "PUT", on, {"status": status})
        elif what == "rerun":
            self._ask(server, "POST", f"{on}/rerun", {})
        elif what == "cancel" and held is not None:
            self._ask(server, "POST", f"/api/tasks/{held.task_id}/cancel")
        elif what == "move agent":
            to = {"runtime_id": self._one(self.runtimes, runtime)}
            self._ask(server, "PUT", f"/api/agents/{chosen}", to)
        elif what == "archive":
            self._ask(server, "POST", f"/api/agents/{chosen}/archive")
            if runtime % 4:
                self._ask(server + 1, "POST", f"/api/agents/{chosen}/restore")
        elif what == "delete" and len(self.issues) > AGENTS:
            self._ask(server, "DELETE", on)
            self.issues.pop(issue % len(self.issues))

    # daemons -----------------------------------------------------------------------------------

    @rule(runtime=pick, server=pick, lost=st.sampled_from([False, False, True]))
    def claim(self, runtime: int, server: int, *, lost: bool) -> None:
        chosen = self._one(self.runtimes, runtime)
        answer = self._ask(server, "POST", f"/api/daemon/runtimes/{chosen}/tasks/claim", {})
        self._keep(chosen, [answer], lost=lost)

    @rule(runtime=pick, server=pick)
    def lose_an_answer(self, runtime: int, server: int) -> None:
        """The answer of a claim is lost, and the daemon asks again when it may."""
        self.claim(runtime, server, lost=True)
        self._move_times(REDELIVERED_AFTER + 10)
        self.claim(runtime, server + 1, lost=False)

    @rule(runtime=pick)
    def claim_at_once(self, runtime: int) -> None:
        chosen = self._one(self.runtimes, runtime)
        path = f"/api/daemon/runtimes/{chosen}/tasks/claim"
        self._keep(chosen, self._at_once(*((n, "POST", path, {}) for n in range(4))))

    @rule(runtime=pick, server=pick, count=st.integers(1, 4), how=outcomes | st.just("go on"))
    def work(self, runtime: int, server: int, count: int, how: str) -> None:
        """What happens most of the time: a daemon takes a task, starts it and tells of it."""
        before = len(self.held)
        self.claim(runtime, server, lost=False)
        if len(self.held) > before:
            last = len(self.held) - 1
            self.start(last, server, twice=False)
            self.talk(last, server, count, twice=False)
            if how != "go on":
                self.held.insert(0, self.held.pop())
                self.end(0, server, how, "", lost=False)

    @rule(task=pick, server=pick, twice=st.booleans())
    def start(self, task: int, server: int, *, twice: bool) -> None:
        if (held := self._one(self.held, task)) is not None:
            call = ("POST", f"/api/daemon/tasks/{held.task_id}/start", {})
            answers = self._at_once((server, *call), *([(server + 1, *call)] if twice else []))
            if any(answer.status_code == 200 for answer in answers):
                held.started = True

    @rule(task=pick, server=pick, count=st.integers(1, 4), twice=st.booleans())
    def talk(self, task: int, server: int, count: int, *, twice: bool) -> None:
        if (held := self._one(self.held, task)) is None or not held.started:
            return
        rows = [
            {"seq": seq, "type": "text", "content": f"row {seq}"}
            for seq in range(held.seq + 1, held.seq + count + 1)
        ]
        call = ("POST", f"/api/daemon/tasks/{held.task_id}/messages", {"messages": rows})
        answers = self._at_once((server, *call), *([(server + 1, *call)] if twice else []))
        if all(answer.status_code == 200 for answer in answers):
            held.seq += count
            self.told[held.task_id] = max(held.seq, self.told.get(held.task_id, 0))

    @rule(
        task=pick,
        server=pick,
        how=outcomes,
        reason=st.sampled_from(["", "timeout", "agent_error.provider_overloaded", "unknown"]),
        lost=st.booleans(),
    )
    def end(self, task: int, server: int, how: str, reason: str, *, lost: bool) -> None:
        """Report an outcome; `lost` is a daemon that does not hear the answer and asks again."""
        if (held := self._one([h for h in self.held if h.started], task)) is None:
            return
        base = f"/api/daemon/tasks/{held.task_id}"
        output = f"output of {held.task_id} at {held.seq}"
        complete = ("POST", f"{base}/complete", {"output": output, "session_id": "s"})
        fail = ("POST", f"{base}/fail", {"error": "it broke", "failure_reason": reason})
        calls: dict[str, list[tuple[int, str, str, Any]]] = {
            "complete": [(server, *complete)],
            "complete twice": [(server, *complete), (server + 1, *complete)],
            "fail": [(server, *fail)],
            "complete and fail": [(server, *complete), (server + 1, *fail)],
            "race": [
                (server, *complete),
                (server + 1, "POST", f"/api/tasks/{held.task_id}/cancel", None),
            ],
        }
        said = self.reported.setdefault(held.task_id, set())
        said |= {output} if how != "fail" else set()
        said |= {"it broke"} if "fail" in how else set()
        answers = self._at_once(*calls[how])
        if lost:
            return  # still held: the daemon says it again some time
        for answer in answers:
            if answer.status_code == 200 and answer.json()["status"] == "completed":
                self.confirmed[held.task_id] = answer.json()["result"]["output"]
        self.held.remove(held)

    @rule(runtime=pick, server=pick, seldom=st.sampled_from([True, False, False]))
    def crash(self, runtime: int, server: int, *, seldom: bool) -> None:
        """A daemon dies, starts again and says that it has nothing of what it had."""
        if not seldom:
            return self.beat(runtime, server)
        chosen = self._one(self.runtimes, runtime)
        self.held = [held for held in self.held if held.runtime_id != chosen]
        self._ask(server, "POST", f"/api/daemon/runtimes/{chosen}/recover-orphans", {})
        return None

    def beat(self, runtime: int, server: int) -> None:
        body = {"runtime_id": self._one(self.runtimes, runtime)}
        self._ask(server, "POST", "/api/daemon/heartbeat", body)

    @rule(runtime=pick, server=pick)
    def fall_silent(self, runtime: int, server: int) -> None:
        """A machine is out of reach for longer than is borne; its agents work on."""
        chosen = self._one(self.runtimes, runtime)
        self.beat(runtime, server)
        self.work(runtime, server, 1, "go on")
        self.silent.append(chosen)
        for seconds in (OFFLINE_AFTER + 10, OFFLINE_GRACE + 10):
            self._move_times(seconds)
            for other in self.runtimes:
                if other != chosen:
                    beat = {"runtime_id": other}
                    self._ask(server, "POST", "/api/daemon/heartbeat", beat)
            self.together.portal(self._sweep)

    @rule(runtime=pick, server=pick, crowd=st.booleans())
    def come_back(self, runtime: int, server: int, *, crowd: bool) -> None:
        """It is back, and its daemon asks for what was given up; `crowd`: while all ask for work."""
        if (chosen := self._one(self.silent, runtime)) is None:
            return
        self.silent.remove(chosen)
        self._ask(server, "POST", "/api/daemon/heartbeat", {"runtime_id": chosen})
        for held in [held for held in self.held if held.runtime_id == chosen and held.started]:
            ask = ("POST", f"/api/daemon/tasks/{held.task_id}/go-on", {})
            claims = [
                (server, "POST", f"/api/daemon/runtimes/{each}/tasks/claim", {})
                for each in (self.runtimes if crowd else [])
            ]
            first, second, *claimed = self._at_once((server, *ask), (server + 1, *ask), *claims)
            for each, answer in zip(self.runtimes, claimed, strict=False):
                self._keep(each, [answer])
            if 200 in (first.status_code, second.status_code):
                if self.ended.pop(held.task_id, None) is not None:  # what was assumed is taken back
                    self.together.seen["went on"] += 1
            elif held in self.held:  # it ended, or another attempt has begun: its agent is stopped
                self.held.remove(held)

    # time --------------------------------------------------------------------------------------

    @rule(
        seconds=st.sampled_from([20.0, 60.0, 60.0, 100.0, 100.0, 400.0, 8000.0]),
        sweeps=st.booleans(),
    )
    def time_passes(self, seconds: float, *, sweeps: bool) -> None:
        self._move_times(seconds)
        if sweeps:
            self.together.portal(self._sweep)

    def _move_times(self, seconds: float) -> None:
        async def move() -> None:
            async def unit(conn: Connection) -> None:
                for table in ("agent_task_queue", "agent_runtime"):
                    columns = await conn.fetchval(
                        "select array_agg(column_name::text) from information_schema.columns"
                        " where table_name = $1 and data_type = 'timestamp with time zone'",
                        table,
                    )
                    moved = ", ".join(f"{column} = {column} - $2::interval" for column in columns)
                    await conn.execute(
                        f"update {table} set {moved} where workspace_id = $1",
                        self.world.workspace_id,
                        timedelta(seconds=seconds),
                    )

            await self.together.portal.resource.write(unit)

        self.together.portal(move)
        self.given = {task_id: since + seconds for task_id, since in self.given.items()}

    async def _sweep(self) -> None:
        for sweep in sweeper.rules(OFFLINE_AFTER, OFFLINE_GRACE):
            await self.together.portal.resource.write(sweep, deadline=60)

    # what holds, whatever happened ---------------------------------------------------------------

    @invariant()
    def promises_are_kept(self) -> None:
        if not hasattr(self, "clients"):
            return
        [row] = self._rows(_STATE, self.world.workspace_id, list(self.told))
        assert not row["over"], f"more runs than the agent's capacity: {row['over']}"
        assert not row["double"], f"two runs of an agent on one issue: {row['double']}"
        self._what_ended_stays_as_it_ended(row["ended"])
        self._no_confirmed_result_is_lost(set(row["alive"]))
        self._transcripts_have_every_row_once(row["told"], set(row["alive"]))

    def _what_ended_stays_as_it_ended(self, rows: list[dict[str, Any]]) -> None:
        """But what a daemon says late may replace a failure the server had only assumed."""
        for row in rows:
            assert row["dated"], f"{row['id']} ended at no time"
            before = self.ended.get(row["id"])
            said = row["output"] if row["status"] == "completed" else row["error"]
            adopted = (
                before is not None
                and before["status"] == "failed"
                and before["reason"] in ASSUMED
                and said in self.reported.get(row["id"], set())
            )
            assert before is None or before == row or adopted, f"{before} became {row}"
            if before is None:
                self.together.seen[row["status"]] += 1
            if adopted:
                self.together.seen["adopted"] += 1
            self.ended[row["id"]] = row

    def _no_confirmed_result_is_lost(self, alive: set[str]) -> None:
        for task_id, output in self.confirmed.items():
            if task_id in alive:  # a deleted issue takes its runs along
                row = self.ended.get(task_id)
                assert row is not None, f"{task_id} was confirmed complete and is not ended"
                assert row["status"] == "completed", row
                assert row["output"] == output, row

    def _transcripts_have_every_row_once(self, rows: list[Any], alive: set[str]) -> None:
        kept = {row["id"]: row for row in rows}
        for task_id, last in self.told.items():
            if task_id in alive:
                assert kept[task_id]["last"] >= last, f"{task_id} lost rows"
                assert kept[task_id]["n"] == kept[task_id]["last"], f"{task_id} has a gap"

    def _everything_queued_is_claimable(self) -> None:
        """Nothing waits for ever: with every daemon back and free, the queue runs empty."""
        for runtime_id in self.runtimes:
            self._ask(0, "POST", "/api/daemon/heartbeat", {"runtime_id": runtime_id})
            self._ask(0, "POST", f"/api/daemon/runtimes/{runtime_id}/recover-orphans", {})
        self.held = []
        self._move_times(3600.0)  # what waits for a provider, or for late results, may go on
        for _ in range(400):
            claimed = 0
            for runtime_id in self.runtimes:
                path = f"/api/daemon/runtimes/{runtime_id}/tasks/claim"
                task = self._ask(1, "POST", path, {}).json()["task"]
                if task is not None:
                    claimed += 1
                    base = f"/api/daemon/tasks/{task['id']}"
                    assert self._ask(0, "POST", f"{base}/start", {}).status_code == 200
                    done = self._ask(1, "POST", f"{base}/complete", {"output": "at last"}).json()
                    assert done["status"] == "completed", done
            if not claimed:
                break
        waiting = self._rows(
            "select t.* from agent_task_queue t join agent a on a.id = t.agent_id"
            " where t.workspace_id = $1 and t.status not in ('completed', 'failed', 'cancelled')"
            " and a.archived_at is null",
            self.world.workspace_id,
        )
        assert not waiting, f"nobody can claim {waiting}"


def machine_for(together: Together) -> Callable[[], QueueMachine]:
    """The machine bound to running servers, as a class Hypothesis can make."""
    return type("BoundQueueMachine", (QueueMachine,), {"together": together})
