"""Whatever happens between the daemon and its server, and in whichever order: nothing is lost.

Hypothesis chooses what happens when; Trio's scheduling and the daemon's jitter are seeded with the
example. A failing example is printed with a blob for `@reproduce_failure`; the whole run repeats
with `--hypothesis-seed=N` (and PYTHONHASHSEED=0, as the nox session sets it).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from daemon.agents.contract import AgentResult
from shared.wire.runtime import BEAT_MANY, CLAIM_MANY, UNIQUE_ROWS
from tests.daemon.tasks_support import DONE, Script, text, thinking, tool_result, tool_use
from tests.simulation.world import (
    PLACES,
    World,
    is_open,
    no_git,
    watch_journals,
    watch_log,
    watch_slots,
)
from tests.support.fake_server import WORKSPACE
from tests.support.network import LOSE_REQUEST, LOSE_RESPONSE, REFUSE, Fault, answer, delay

pytestmark = pytest.mark.simulation

SCHEDULES = int(os.environ.get("BULLPEN_TEST_SCHEDULES", "500"))

SPAN = 300.0
"""Seconds in which things go wrong."""

ANYTHING = ".*"
ROUTES = (
    ANYTHING,
    ".*/(tasks/claim|claims)",
    ".*/start",
    ".*/messages",
    ".*/(complete|fail)",
    ".*/usage",
    ".*/status",
    ".*/(session|progress|prepare-lease)",
    ".*/recover-orphans",
    ".*/(register|heartbeat|runtime-profiles|workspaces)",
)

OUTAGES = (".*/messages", ".*/(complete|fail)", ".*/(messages|usage|complete|fail)")
"""What is away while the rest of the server works: these find what is lost between two calls."""

FAULTS = (
    LOSE_REQUEST,
    LOSE_RESPONSE,
    REFUSE,
    answer(500, '{"error":"internal error"}'),
    answer(503, "busy"),
    answer(429, "slow down"),
    answer(401, '{"error":"unauthorized"}'),
    answer(401, '{"error":"invalid token"}'),
    answer(200, "<html>"),
    answer(200, "{}"),
    answer(200, "null"),
    answer(200, '{"status":"accepted"}'),
    answer(404, "404 page not found"),
    answer(404, '{"message":"no Route matched with those values"}'),
    answer(400, '{"error":"upstream says no"}'),
    answer(409, "<html>"),
    answer(302),
    delay(2.0),
    delay(20.0),
)


@attrs.frozen
class Event:
    """Something that happens `at` a second; what `amount` and the others mean depends on `what`."""

    at: float
    what: str
    amount: float = 0.0
    which: int = 0
    route: str = ""
    fault: Fault | None = None


seconds = st.integers(0, int(SPAN * 4)).map(lambda quarter: quarter / 4)
short = st.integers(1, 200).map(float)


def event(what: str) -> st.SearchStrategy[Event]:
    return st.builds(Event, at=seconds, what=st.just(what), amount=short, which=st.integers(0, 5))


disturbance = st.builds(
    Event,
    at=seconds,
    what=st.just("disturb"),
    amount=short,
    route=st.sampled_from(ROUTES),
    fault=st.sampled_from(FAULTS),
)

events = st.lists(
    st.one_of(
        disturbance,
        disturbance,
        disturbance,
        event("outage"),
        event("fatal outage"),
        event("partition"),
        event("crash"),
        event("restart"),
        event("cut"),
        event("stall"),
        event("trouble"),
        event("jump"),
        event("forget runtime"),
        event("forget workspace"),
        event("resize"),
        event("drain"),
    ),
    max_size=8,
)

AIMED = ("deliver again", "cancel", "forget task", "give up", "give up for good", "crash", "outage")
"""What happens to a certain task, so soon after it has come that it is likely to be in hand."""

aimed = st.lists(
    st.builds(
        Event,
        at=st.integers(0, 120).map(lambda quarter: quarter / 4),
        what=st.sampled_from(AIMED),
        amount=short,
        which=st.integers(0, 4),
    ),
    min_size=1,
    max_size=4,
)

steps = st.one_of(
    st.sampled_from([0.0, 0.1, 0.6, 3.0, 20.0]),
    st.just("text"),
    st.just("thinking"),
    st.just("tool"),
    st.just("many"),
)

RESULTS = (
    DONE,
    AgentResult(status="failed", error="it went wrong", session_id="s1"),
    AgentResult(status="aborted", error="gone"),
)


@attrs.frozen
class Arrival:
    at: float
    provider: str
    words: tuple[Any, ...]
    result: AgentResult
    hangs: bool
    place: str | None = None
    """A directory of the user's to work in; None for one of its own."""


arrivals = st.lists(
    st.builds(
        Arrival,
        at=seconds,
        provider=st.sampled_from(["claude", "claude", "codex"]),
        words=st.lists(steps, min_size=2, max_size=12).map(tuple),
        result=st.sampled_from(RESULTS),
        hangs=st.sampled_from([False, False, False, True]),
        place=st.sampled_from([None, None, *PLACES]),
    ),
    min_size=1,
    max_size=5,
)


def script_of(arrival: Arrival) -> Script:
    """Numbered words, so that a lost, doubled or moved one is seen."""
    made: list[Any] = []
    for number, word in enumerate(arrival.words):
        match word:
            case "text":
                made.append(text(f"w{number} "))
            case "thinking":
                made.append(thinking(f"t{number} "))
            case "tool":
                made += [tool_use(f"c{number}"), 0.1, tool_result(f"c{number}", f"o{number}")]
            case "many":
                for again in range(130):
                    made += [tool_use(f"c{number}-{again}"), tool_result(f"c{number}-{again}", "x")]
            case _:
                made.append(word)
    if arrival.hangs:
        made.append(1e6)
    return Script(steps=tuple(made), result=arrival.result)


async def perform(world: World, happening: Event) -> None:
    server = world.server
    tasks = world.tasks()
    chosen = tasks[happening.which % len(tasks)] if tasks else None
    match happening.what:
        case "disturb":
            assert happening.fault is not None
            server.disturb(happening.route, happening.fault, happening.amount)
        case "partition":
            server.disturb(ANYTHING, LOSE_REQUEST, happening.amount)
            server.drop_sockets()
        case "crash":
            await world.crash()
            await trio.sleep(happening.which * 20)
            world.start()
        case "restart":
            await world.leave()
            world.start()
        case "outage" | "fatal outage":
            server.disturb(OUTAGES[happening.which % 3], answer(503), happening.amount)
            if happening.what == "fatal outage":
                await trio.sleep(happening.amount / 2)
                await world.crash()
                world.start()
        case "stall":
            server.drop_sockets()
            server.stall_sockets = True
            await trio.sleep(happening.amount / 4)
            server.stall_sockets = False
        case "trouble":
            world.troubled_until = trio.current_time() + happening.amount / 2
        case "cut":
            server.drop_sockets()
        case "jump":
            server.clock_ahead += (happening.amount - 100) * 60
        case "deliver again" if chosen is not None:
            if world.holds(chosen.id):
                server.deliver_again(chosen.id)
        case "cancel" if chosen is not None:
            server.cancel_task(chosen.id)
        case "forget task" if chosen is not None:
            server.forget_task(chosen.id)
        case "give up" if chosen is not None:
            server.give_up(chosen.id)
        case "give up for good" if chosen is not None:
            server.give_up(chosen.id)
            await trio.sleep(happening.amount / 10)
            if is_open(chosen):
                server.replace(chosen.id)
        case "resize":
            world.life.resize(1 + happening.which % 3)
        case "drain":
            await world.drain(happening.amount)
        case "forget runtime":
            server.forget_runtime("claude")
        case "forget workspace":
            server.workspaces.pop(WORKSPACE, None)
            await trio.sleep(60)
            server.workspaces[WORKSPACE] = "Bullpen"


async def live(
    home: Path, slots: int, coming: list[Arrival], happenings: list[Event], offered: list[str]
) -> tuple[list[str], list[str]]:
    """Play one schedule; return what is wrong afterwards and every request in order."""
    async with trio.open_nursery() as nursery:
        world = World(home, nursery, max_concurrent_tasks=slots, idle_watchdog=60.0)
        world.server.capabilities = offered
        with watch_journals(world), watch_slots(world), no_git():
            world.start()
            await trio.sleep(35)
            whole = sorted([*coming, *happenings], key=lambda each: each.at)
            began = trio.current_time()
            for number, each in enumerate(whole):
                await trio.sleep_until(max(began + each.at, trio.current_time()))
                if isinstance(each, Arrival):
                    name = f"task {number}"
                    world.add_task(name, each.provider, script_of(each), each.place)
                else:
                    await perform(world, each)
            await world.settle()
        nursery.cancel_scope.cancel()
    calls = [f"{call.at:.6f} {call}" for call in world.server.calls]
    return world.check(), calls


def play(
    slots: int, coming: list[Arrival], happenings: list[Event], *, offered: bool = False
) -> tuple[list[str], list[str]]:
    """Play a schedule; `offered`: the server takes claims and beats for many runtimes at once."""
    names = [CLAIM_MANY, BEAT_MANY, UNIQUE_ROWS] if offered else []
    memory = Path("/dev/shm")
    home = Path(tempfile.mkdtemp(prefix="bullpen-", dir=memory if memory.is_dir() else None))
    clock = MockClock(autojump_threshold=0)
    try:
        with watch_log() as errors:
            wrong, calls = trio.run(
                live,
                home,
                slots,
                coming,
                happenings,
                names,
                clock=clock,
                strict_exception_groups=True,
            )
        return wrong + errors, calls
    finally:
        shutil.rmtree(home, ignore_errors=True)


PLAIN = settings(
    max_examples=SCHEDULES // 2,
    deadline=None,
    print_blob=True,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
)


@pytest.mark.parametrize("offered", [False, True])
@given(slots=st.integers(1, 3), coming=arrivals, happenings=events, at_tasks=aimed)
@PLAIN
def test_nothing_is_lost_doubled_or_left(
    slots: int,
    coming: list[Arrival],
    happenings: list[Event],
    at_tasks: list[Event],
    *,
    offered: bool,
) -> None:
    """Half of the schedules with a server that takes claims and beats for many."""
    in_order = sorted(coming, key=lambda each: each.at)
    for each in at_tasks:
        which = each.which % len(coming)
        at = in_order[which].at + each.at
        happenings = [*happenings, attrs.evolve(each, at=at, which=which)]
    wrong, _ = play(slots, coming, happenings, offered=offered)
    assert not wrong, "\n".join(wrong)
