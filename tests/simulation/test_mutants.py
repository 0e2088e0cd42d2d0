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
from typing import Any
from unittest import mock

import attrs
import pytest

from daemon.runtimes import runtime
from daemon.tasks import report
from daemon.tasks.backlog import Backlog
from daemon.tasks.drain import Sender
from daemon.tasks.pool import TaskPool
from tests.daemon.tasks_support import DONE
from tests.simulation.test_schedules import Arrival, Event, play
from tests.support.network import answer

pytestmark = pytest.mark.simulation

TALK = ("text", 0.6, "tool", 0.6, "text", 3.0, "text")


def arrival(at: float = 0.0, words: tuple[Any, ...] = TALK) -> Arrival:
    return Arrival(at=at, provider="claude", words=words, result=DONE, hangs=False)


def refuse(route: str, at: float, lasting: float) -> Event:
    return Event(at=at, what="disturb", amount=lasting, route=route, fault=answer(503))


@attrs.frozen
class Mutant:
    """`old` in the source of `owner.name` becomes `new`."""

    owner: Any
    name: str
    old: str
    new: str
    happenings: tuple[Event, ...]
    words: tuple[Any, ...] = TALK


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
        "await self._client.messages(self._task_id, list(map(for_wire, batch.messages)))\n"
        "                self._journal.confirm(batch.end)",
        "self._journal.confirm(batch.end)\n"
        "                await self._client.messages(self._task_id, list(map(for_wire, batch.messages)))",
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
    coming = [arrival(words=mutant.words), arrival(at=100.0)]
    clean, _ = play(2, coming, list(mutant.happenings))
    assert not clean, "\n".join(clean)
    with alive(mutant):
        try:
            wrong, _ = play(2, coming, list(mutant.happenings))
        except Exception as crash:  # noqa: BLE001 - a daemon that crashes is seen as well
            wrong = [repr(crash)]
    assert wrong, "nothing was seen"
