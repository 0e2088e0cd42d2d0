"""What this server counts of itself and its work, in Prometheus' words (spec 02 §11.5).

One `Metrics` per application, with a registry of its own. Hot paths only add to a number or a queue:
what labels a task's counters (its source, its machine's provider) is looked up when somebody asks
for the numbers, for all tasks since the last time at once. Forgets the oldest when nobody asks.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import attrs
import structlog
import trio
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from server.consequences import Consequence, Counted
from server.database import Database
from server.push.hub import Hub
from server.store.queries import Connection, Record, load
from shared import __version__
from shared.wire.event import Event

log = structlog.get_logger(__name__)

SQL: Final = load("metrics")

SAMPLED_FOR: Final = 8.0
"""Seconds that sampled figures are kept, however many ask."""

STATEMENT_LIMIT: Final = "500ms"
LIMIT: Final = 3.0
"""Seconds for all of it; without an answer the last figures stand."""

ACTIVE_WITHIN: Final = 300.0
MOST_PENDING: Final = 20_000
MOST_ACTIVE: Final = 50_000
MOST_LABELS: Final = 64
"""Distinct values of a label that others choose; what comes after is `other`."""

_SECONDS: Final = (1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1200, 3600, 7200)
_REQUEST_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_AGES: Final = (1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0)

_MOVES: Final = {
    "task:queued": "enqueued",
    "task:dispatch": "dispatched",
    "task:running": "started",
    "task:completed": "completed",
    "task:failed": "failed",
    "task:cancelled": "cancelled",
}
_TERMINAL: Final = frozenset({"completed", "failed", "cancelled"})

_FUNNEL: Final = {
    "issue:created": "issue_created",
    "agent:created": "agent_created",
    "squad:created": "squad_created",
    "autopilot:created": "autopilot_created",
    "chat:message": "chat_message_sent",
    "invitation:created": "team_invite_sent",
    "invitation:accepted": "team_invite_accepted",
}
_COUNTED: Final = (
    *_FUNNEL.values(),
    *("signup", "workspace_created", "issue_executed", "runtime_registered"),
    *("runtime_ready", "runtime_failed", "runtime_offline"),
)

_Labels = tuple[str, ...]


class _Bounded:
    """Keeps a label that others choose from growing without end."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def __call__(self, value: str | None) -> str:
        text = value or "unknown"
        if text not in self._known:
            if len(self._known) >= MOST_LABELS:
                return "other"
            self._known.add(text)
        return text


class _Recent:
    """Who was active lately. Changed by `note`."""

    def __init__(self) -> None:
        self._at: OrderedDict[str, float] = OrderedDict()

    def note(self, key: str) -> None:
        """`key` was active now; an empty one is nobody."""
        if not key:
            return
        self._at[key] = trio.current_time()
        self._at.move_to_end(key)
        if len(self._at) > MOST_ACTIVE:
            self._at.popitem(last=False)

    def count(self) -> int:
        since = trio.current_time() - ACTIVE_WITHIN
        while self._at and next(iter(self._at.values())) < since:
            self._at.popitem(last=False)
        return len(self._at)


@attrs.define
class _Sample:
    """The database's figures, as of some moment; replaced whole."""

    at: float = float("-inf")
    queue: Sequence[Record] = ()
    runtimes: Sequence[Record] = ()
    workspaces: int = 0


class Metrics:
    """The numbers of one application. Fed by the hub's own announcements and by endpoints."""

    def __init__(self, hub: Hub, database: Database) -> None:
        self._database = database
        self._pending: deque[tuple[str, str]] = deque()
        self._sample = _Sample()
        self.users, self.workspaces = _Recent(), _Recent()
        self._provider, self._reason, self._model = _Bounded(), _Bounded(), _Bounded()
        self.registry = CollectorRegistry()
        self._make_counters()
        self.registry.register(_Sampled(self))
        self.registry.register(_Push(hub))
        self.registry.register(_Pool(database))
        ProcessCollector(registry=self.registry)
        hub.observe_own(self._happened)

    def _make_counters(self) -> None:
        def counter(name: str, what: str, labels: _Labels = ()) -> Counter:
            return Counter(f"bullpen_{name}", what, labels, registry=self.registry)

        def histogram(name: str, what: str, labels: _Labels, buckets: Sequence[float]) -> Histogram:
            return Histogram(
                f"bullpen_{name}", what, labels, buckets=buckets, registry=self.registry
            )

        where = ("source", "provider", "runtime_mode")
        task = "agent_task"
        self._moves = {
            move: counter(f"{task}_{move}", f"Tasks {move}.", where)
            for move in ("enqueued", "dispatched", "started")
        }
        self._terminal = counter(f"{task}_terminal", "Tasks that ended.", (*where, "status"))
        self._failed = counter(f"{task}_failed", "Tasks that failed.", (*where, "reason"))
        self._queue_wait = histogram(
            f"{task}_queue_wait_seconds", "From when it might start to a daemon.", where, _SECONDS
        )
        self._run = histogram(
            f"{task}_run_seconds", "From start to end.", (*where, "status"), _SECONDS
        )
        self._whole = histogram(
            f"{task}_total_seconds", "From creation to end.", (*where, "status"), _SECONDS
        )
        self._attempts = histogram(
            f"{task}_iteration_count", "Attempts it took.", where, (1, 2, 3, 4, 5, 10)
        )
        self._queued_expired = counter("task_queued_expired", "Tasks nobody fetched in time.")
        self._lease_expired = counter("task_lease_expired", "Tasks that took too long.")
        self._uncounted = counter("task_moves_forgotten", "Not counted: nobody asked for so long.")
        self._tokens = counter(
            "llm_tokens", "Tokens that daemons reported.", ("provider", "model", "kind")
        )
        self._funnel = {name: counter(name, f"Counted: {name}.") for name in _COUNTED}
        self._runs_started = counter(
            "autopilot_run_started", "Runs of autopilots begun.", ("trigger",)
        )
        self._runs_skipped = counter(
            "autopilot_run_skipped", "Runs of autopilots that did not begin.", ("trigger",)
        )
        self._runs_ended = counter(
            "autopilot_run_terminal", "Runs of autopilots that ended.", ("status",)
        )
        self._deliveries = counter("webhook_delivery", "Calls of webhooks.", ("status",))
        self._offline = counter("runtime_changes", "Changes of the set of machines.", ("action",))
        self._requests = counter("http_requests", "Requests answered.", ("method", "status"))
        self._request_seconds = histogram(
            "http_request_duration_seconds",
            "To the end of the answer.",
            ("area",),
            _REQUEST_SECONDS,
        )
        self._in_flight = Gauge(
            "bullpen_http_requests_in_flight", "Being answered.", registry=self.registry
        )
        self._stages = counter(
            "http_request_stage_seconds", "Where the time of requests goes.", ("stage",)
        )
        build = Gauge("bullpen_build_info", "Always 1.", ("version",), registry=self.registry)
        build.labels(__version__).set(1)

    # --- what is told --------------------------------------------------------------------------

    def _happened(self, consequence: Consequence) -> None:
        """Count what this process announced; what others announce they count themselves."""
        if isinstance(consequence, Counted):
            self._funnel[consequence.name].inc(consequence.times)
        if not isinstance(consequence, Event):
            return
        kind, payload = consequence.type, consequence.payload
        if (move := _MOVES.get(kind)) is not None:
            self._pending.append((move, payload["task_id"]))
            if len(self._pending) > MOST_PENDING:
                self._pending.popleft()
                self._uncounted.inc()
        elif (name := _FUNNEL.get(kind)) is not None:
            self._funnel[name].inc()
        elif kind == "autopilot:run_start":
            begun = self._runs_skipped if payload["status"] == "skipped" else self._runs_started
            begun.labels(payload["source"]).inc()
        elif kind == "autopilot:run_done":
            self._runs_ended.labels(payload["status"]).inc()
        elif kind == "daemon:register" and "action" in payload:
            self._offline.labels(payload["action"]).inc()

    def count(self, name: str) -> None:
        """Count one of the things no event tells of: signup, workspace_created."""
        self._funnel[name].inc()

    def delivery(self, status: str) -> None:
        """Count one call of a webhook by the word it was answered with."""
        self._deliveries.labels(status).inc()

    def usage(self, grown: Sequence[Mapping[str, Any]]) -> None:
        """Count tokens: `provider`, `model`, and by how much each of the kinds has grown."""
        for entry in grown:
            provider, model = self._provider(entry["provider"]), self._model(entry["model"])
            for kind in ("input", "output", "cache_read", "cache_write"):
                if (tokens := entry[kind]) > 0:
                    self._tokens.labels(provider, model, kind).inc(tokens)

    def begun(self) -> None:
        """A request has come in."""
        self._in_flight.inc()

    def ended(self, area: str, seconds: float, spent: Mapping[str, float]) -> None:
        """A request is over; `spent` is its seconds by stage."""
        self._in_flight.dec()
        self._request_seconds.labels(area).observe(seconds)
        for stage, part in spent.items():
            self._stages.labels(stage).inc(part)

    def answered(self, method: str, status: int) -> None:
        """An answer was begun."""
        self._requests.labels(method, f"{status // 100}xx").inc()

    # --- what is asked for ---------------------------------------------------------------------

    async def text(self) -> bytes:
        """All of it in Prometheus' text format, as fresh as the database allows."""
        await self._settle()
        await self._look()
        return generate_latest(self.registry)

    async def _settle(self) -> None:
        """Count the tasks that moved since the last time."""
        if not self._pending:
            return
        moved, self._pending = list(self._pending), deque()
        ids = list({task_id for _, task_id in moved})
        rows = await self._read(lambda conn: conn.fetch(SQL.tasks, ids))
        if rows is None:
            self._pending.extendleft(reversed(moved))
            return
        tasks = {row["id"]: row for row in rows}
        for move, task_id in moved:
            self._count_move(move, tasks.get(task_id))

    def _count_move(self, move: str, task: Record | None) -> None:
        if task is None:  # deleted since
            where: _Labels = ("other", "unknown", "unknown")
        else:
            where = (task["source"], self._provider(task["provider"]), task["runtime_mode"])
        if move not in _TERMINAL:
            self._moves[move].labels(*where).inc()
            if move == "dispatched" and task is not None and task["dispatched_at"]:
                since = max(task["created_at"], task["not_before"] or task["created_at"])
                self._queue_wait.labels(*where).observe(_between(since, task["dispatched_at"]))
            return
        self._terminal.labels(*where, move).inc()
        if task is None:
            return
        if move == "failed":
            self._count_failure(where, task["failure_reason"])
        self._attempts.labels(*where).observe(task["attempt"])
        if task["first_of_issue"] and move == "completed":
            self._funnel["issue_executed"].inc()
        if task["completed_at"]:
            ended = task["completed_at"]
            self._whole.labels(*where, move).observe(_between(task["created_at"], ended))
            if task["started_at"]:
                self._run.labels(*where, move).observe(_between(task["started_at"], ended))

    def _count_failure(self, where: _Labels, reason: str | None) -> None:
        self._failed.labels(*where, self._reason(reason)).inc()
        if reason == "queued_expired":
            self._queued_expired.inc()
        elif reason == "timeout":
            self._lease_expired.inc()

    async def _look(self) -> None:
        """Sample the database, unless that was done a moment ago."""
        if trio.current_time() - self._sample.at < SAMPLED_FOR:
            return

        async def unit(conn: Connection) -> _Sample:
            return _Sample(
                queue=await conn.fetch(SQL.queue),
                runtimes=await conn.fetch(SQL.runtimes, list(_AGES)),
                workspaces=await conn.fetchval(SQL.workspaces),
            )

        found = await self._read(unit)
        if found is not None:
            found.at = trio.current_time()
            self._sample = found

    async def _read(self, unit: Any) -> Any:
        """What the database says, within the limits; None when it does not."""

        async def limited(conn: Connection) -> Any:
            async with conn.transaction():
                await conn.execute(f"set local statement_timeout = '{STATEMENT_LIMIT}'")
                return await unit(conn)

        try:
            return await self._database.read(limited, deadline=LIMIT)
        except Exception as error:  # noqa: BLE001 - whatever it is: the last figures stand
            log.warning("metrics could not be read", error=str(error))
            return None

    def sampled(self) -> Iterator[Metric]:
        """The sampled figures; called by the registry."""
        yield _gauge("active_users", "Users of the last five minutes.", self.users.count())
        yield _gauge("active_workspaces", "Their workspaces.", self.workspaces.count())
        yield _gauge("workspace_total", "Workspaces.", self._sample.workspaces)
        where = ("provider", "runtime_mode")
        for name, key in (("queued", "queued"), ("running", "running"), ("stuck_total", "stuck")):
            family = GaugeMetricFamily(f"bullpen_agent_task_{name}", f"Tasks {key}.", labels=where)
            for row in self._sample.queue:
                family.add_metric([self._provider(row["provider"]), row["runtime_mode"]], row[key])
            yield family
        online = GaugeMetricFamily(
            "bullpen_runtime_online", "Machines heard within a minute.", labels=where
        )
        ages = HistogramMetricFamily(
            "bullpen_runtime_heartbeat_age_seconds", "Since the last sign of life.", labels=where
        )
        machines: dict[_Labels, list[Record]] = {}
        for row in self._sample.runtimes:
            kind = (self._provider(row["provider"]), row["runtime_mode"])
            machines.setdefault(kind, []).append(row)
        for labels, rows in machines.items():
            online.add_metric(labels, sum(row["online"] for row in rows))
            ages.add_metric(labels, _buckets(rows), sum(row["seconds"] for row in rows))
        yield online
        yield ages


class _Sampled(Collector):
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        return self._metrics.sampled()

    def describe(self) -> Iterator[Metric]:
        return iter(())


class _Push(Collector):
    """The hub's numbers."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def collect(self) -> Iterator[Metric]:
        tally = self._hub.tally
        for name, what, label, values in (
            ("sockets_opened", "Websockets opened.", "socket", tally.opened),
            ("sockets_closed", "Websockets closed.", "socket", tally.closed),
            ("socket_frames_received", "Websocket frames received.", "socket", tally.frames),
            ("socket_heartbeats", "Heartbeats over websockets.", "result", tally.beats),
            ("socket_wakeups", "Daemons told of a task.", "result", tally.wakeups),
            ("relay_messages", "Consequences told between processes.", "direction", tally.relayed),
        ):
            family = CounterMetricFamily(f"bullpen_{name}", what, labels=[label])
            for value, count in values.items():
                family.add_metric([value], count)
            yield family
        yield CounterMetricFamily(
            "bullpen_relay_resyncs", "Times every socket was sent to catch up.", tally.resyncs
        )
        yield CounterMetricFamily(
            "bullpen_socket_evictions",
            "Websockets closed because they did not keep up.",
            self._hub.evictions,
        )
        active = GaugeMetricFamily("bullpen_sockets_open", "Open websockets.", labels=["socket"])
        for name, count in tally.open.items():
            active.add_metric([name], count)
        yield active
        yield _gauge("topics", "What somebody listens to.", len(self._hub.topics))


class _Pool(Collector):
    """The database's connections."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def collect(self) -> Iterator[Metric]:
        size, idle, most = self._database.connections()
        yield _gauge("db_pool_connections", "Open connections.", size)
        yield _gauge("db_pool_idle_connections", "Of those, idle ones.", idle)
        yield _gauge("db_pool_max_connections", "As many as there may be.", most)


def _gauge(name: str, what: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"bullpen_{name}", what, value)


def _buckets(rows: Sequence[Record]) -> list[tuple[str, float]]:
    """Counts up to each limit. A machine exactly at a limit counts with the next."""
    found: list[tuple[str, float]] = []
    total = 0
    for place, limit in enumerate((*_AGES, None)):
        total += sum(row["count"] for row in rows if row["place"] == place)
        found.append(("+Inf" if limit is None else str(limit), total))
    return found


def _between(start: Any, end: Any) -> float:
    return max(0.0, float((end - start).total_seconds()))
