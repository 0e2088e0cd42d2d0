"""The simulation sees what it is there to see: each of these bugs is found by its schedule.

A mutant is one line of the daemon replaced by another. Its schedule must be clean without it and
not with it; what random schedules find beyond these is `test_schedules`.
"""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import attrs
import pytest

from daemon import answers
from daemon.client import Client
from daemon.runtimes import runtime
from daemon.runtimes.claims import Claims
from daemon.tasks import paths, report, trouble, watchers
from daemon.tasks.backlog import Backlog
from daemon.tasks.drain import Sender
from daemon.tasks.pool import TaskPool
from daemon.tasks.slots import Slot, Slots
from daemon.workdir import prepare
from tests.daemon.tasks_support import DONE
from tests.simulation.test_schedules import Arrival, Event, play
from tests.support.network import LOSE_RESPONSE, Fault, answer

pytestmark = pytest.mark.simulation

TALK = ("text", 0.6, "tool", 0.6, "text", 3.0, "text")


LONG = ("text", 20.0, "text")


def arrival(
    at: float = 0.0,
    words: tuple[Any, ...] = TALK,
    *,
    provider: str = "claude",
    place: str | None = None,
) -> Arrival:
    return Arrival(at=at, provider=provider, words=words, result=DONE, hangs=False, place=place)


def refuse(route: str, at: float, lasting: float) -> Event:
    return Event(at=at, what="disturb", amount=lasting, route=route, fault=answer(503))


def strange(route: str, fault: Fault, lasting: float = 8.0) -> Event:
    return Event(at=0.0, what="disturb", amount=lasting, route=route, fault=fault)


@attrs.frozen
class Mutant:
    """`old` in the source of `owner.name` becomes `new`.

    `coming` are the tasks, if not two, the second long after the first. `offered`: the server takes
    claims for many.
    """

    owner: Any
    name: str
    old: str
    new: str
    happenings: tuple[Event, ...]
    words: tuple[Any, ...] = TALK
    coming: tuple[Arrival, ...] = ()
    offered: bool = False


MUTANTS = {
    "a redelivered task is run twice": Mutant(
        TaskPool,
        "hand_over",
        "if task.id in self._held or self._owes(task.id):",
        "if False:",
        (Event(at=2.0, what="deliver again"),),
        words=("text", 20.0, "text"),
    ),
    "the slot of a refused task is kept": Mutant(
        TaskPool,
        "hand_over",
        "self.give_back(slot)",
        "pass",
        (Event(at=2.0, what="deliver again"),),
        words=("text", 20.0, "text"),
    ),
    "a task is run again before its last run is reported": Mutant(
        TaskPool,
        "hand_over",
        "or self._owes(task.id)",
        "",
        (refuse(".*/(complete|fail)", 0.0, 200.0), Event(at=150.0, what="deliver again")),
    ),
    "the transcript's rest is dropped once the outcome is told": Mutant(
        report,
        "close_journal",
        "await settle(client, task_id, journal.usage, journal.outcome, still_wanted)\n"
        "    await sender.send_rest()",
        "await settle(client, task_id, journal.usage, journal.outcome, still_wanted)",
        (refuse(".*/messages", 1.0, 100.0),),
    ),
    "orphans are recovered before journals are told": Mutant(
        runtime,
        "_recover_orphans",
        "await services.backlog.wait_told(runtime_id)",
        "await trio.lowlevel.checkpoint()",
        (refuse(".*/(complete|fail)", 0.0, 60.0), Event(at=20.0, what="crash")),
    ),
    "a batch counts as sent before it is": Mutant(
        Sender,
        "_send_next",
        "await self._client.messages(self._task_id, wire)",
        "self._journal.confirm(batch.end)\n"
        "                    await self._client.messages(self._task_id, wire)",
        (refuse(".*/messages", 0.0, 10.0),),
    ),
    "a journal goes before its outcome is told": Mutant(
        report,
        "close_journal",
        "await settle(",
        "journal.remove()\n    await settle(",
        (refuse(".*/(complete|fail)", 0.0, 60.0), Event(at=20.0, what="crash")),
    ),
    "what a dead daemon left is forgotten": Mutant(
        Backlog,
        "__init__",
        "self._owed = left_journals(folder)",
        "self._owed = {}",
        (refuse(".*/(complete|fail)", 0.0, 60.0), Event(at=20.0, what="crash")),
    ),
    "slots that a call for many did not need are kept": Mutant(
        Claims,
        "_lead",
        "self._give_back(slots)",
        "pass",
        (),
        offered=True,
    ),
    "the slot of a task refused among others is kept": Mutant(
        TaskPool,
        "hand_over",
        "self.give_back(slot)",
        "pass",
        (Event(at=2.0, what="deliver again"),),
        words=LONG,
        offered=True,
    ),
    "one slot is used for all tasks of a call": Mutant(
        Claims,
        "_hand_over",
        "slot = slots.pop(0)",
        "slot = slots[0]",
        (),
        coming=(arrival(words=LONG), arrival(words=LONG, provider="codex")),
        offered=True,
    ),
    "a task that was given up is not taken back": Mutant(
        watchers,
        "stopped_by_server",
        "if told.presumed and await _goes_on(client, task_id):",
        "if False:",
        (Event(at=2.0, what="give up"),),
        words=LONG,
    ),
    "a directory inside another is another place": Mutant(
        paths,
        "_overlap",
        "return one.is_relative_to(other) or other.is_relative_to(one)",
        "return one == other",
        (),
        coming=(arrival(words=LONG, place="one"), arrival(1.0, words=LONG, place="one/inner")),
    ),
    "who waits for a directory goes on without a slot": Mutant(
        paths,
        "enter_local_directory",
        "await slot.regain()",
        "await trio.lowlevel.checkpoint()",
        (),
        coming=(arrival(words=LONG, place="one"), arrival(1.0, words=LONG, place="one")),
    ),
    "who waits for a directory keeps its slot from the end of the wait on": Mutant(
        Slot,
        "lend",
        "self._slots.give_back(number)",
        "pass",
        (),
        coming=(arrival(words=LONG, place="one"), arrival(1.0, words=LONG, place="one")),
    ),
    "a changed number of slots forgets which are out": Mutant(
        Slots,
        "resize",
        "if number not in self._out",
        "",
        (Event(at=2.0, what="resize", which=2),),
        coming=(arrival(words=LONG), arrival(4.0, words=LONG)),
    ),
    "any 404 is final": Mutant(
        answers,
        "error_of",
        'return Foreign(call, status, f"not the server\'s answer: {text[:_SHOWN]}".rstrip(": "))',
        "return Rejected(call, status, text)",
        (strange(".*/messages", answer(404, "404 page not found")),),
    ),
    "any envelope is the server's": Mutant(
        answers,
        "error_of",
        "if any(_begins(said, phrase) for phrase in words(_ANY, known).get(status, ())):",
        "if True:",
        (strange(".*/complete", answer(400, '{"error":"upstream says no"}')),),
    ),
    "any success confirms": Mutant(
        answers,
        "value_of",
        "if shape(plain):",
        "if True:",
        (strange(".*/messages", answer(200, "{}")),),
    ),
    "a redirect confirms": Mutant(
        Client,
        "_ask",
        "if 200 <= status < 300:",
        "if status < 400:",
        (strange(".*/session|.*/messages", answer(302, '{"status":"ok"}')),),
    ),
    "a task that is gone needs no second look": Mutant(
        report,
        "_is_final",
        "final = await client.surely_gone(task_id)",
        "pass",
        (strange(".*/(complete|usage)", answer(404, '{"error":"task not found"}')),),
    ),
    "what may have come is sent again": Mutant(
        Sender,
        "_missing",
        "return [message for message in messages if message.seq not in set(stored)]",
        "return messages",
        (strange("POST .*/messages", LOSE_RESPONSE),),
    ),
    "what an earlier process may have sent is sent again": Mutant(
        Sender,
        "__init__",
        "self._unsure = bool(journal.unsent)",
        "self._unsure = False",
        (strange(".*/messages", LOSE_RESPONSE), Event(at=1.0, what="crash")),
        words=LONG,
    ),
    "a machine in trouble fails its tasks": Mutant(
        trouble,
        "passing",
        "if isinstance(error, AgentError) and error.passing:",
        "if False:",
        (Event(at=0.0, what="trouble", amount=60.0),),
        coming=(arrival(at=1.0), arrival(at=60.0)),
    ),
    "a user's directory is not given back": Mutant(
        prepare,
        "giving_back",
        "give_back(borrowed.path)",
        "pass",
        (),
        coming=(arrival(words=LONG, place="two"),),
    ),
}


def mutated(mutant: Mutant) -> Callable[..., Any]:
    original = getattr(mutant.owner, mutant.name)
    source = textwrap.dedent(inspect.getsource(original))
    assert mutant.old in source, "the mutant's line is gone: adapt it"
    source = source.replace(mutant.old, mutant.new)
    namespace = dict(vars(sys.modules[original.__module__]))
    exec(f"from __future__ import annotations\n{source}", namespace)
    made: Callable[..., Any] = namespace[mutant.name]
    return made


@contextmanager
def alive(mutant: Mutant) -> Iterator[None]:
    made = mutated(mutant)
    places = [mutant.owner]
    if inspect.ismodule(mutant.owner):  # also where it was imported by name
        original = getattr(mutant.owner, mutant.name)
        places = [m for m in list(sys.modules.values()) if vars(m).get(mutant.name) is original]
    patches = [mock.patch.object(place, mutant.name, made) for place in places]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


@pytest.mark.parametrize("name", MUTANTS)
def test_each_mutant_is_found_by_its_schedule(name: str) -> None:
    mutant = MUTANTS[name]
    coming = list(mutant.coming) or [arrival(words=mutant.words), arrival(at=100.0)]
    run = partial(play, 2, coming, list(mutant.happenings), offered=mutant.offered)
    clean, _ = run()
    assert not clean, "\n".join(clean)
    with alive(mutant):
        try:
            wrong, _ = run()
        except Exception as crash:  # noqa: BLE001 - a daemon that crashes is seen as well
            wrong = [repr(crash)]
    assert wrong, "nothing was seen"
