"""Claims: what pollers wish for at the same moment goes to the server as one call.

Each poller calls for its own runtime. Where the server offers claims for many (`CLAIM_MANY`), the
first of those who wish at a time leads: it takes the slots, asks for all of them and hands over what
each got; the others wait for that. Where it does not, each asks for itself. Either way the slots are
out before the server is asked, the call is shielded, because a claim that is cut leaves a task
dispatched to nobody for 90 s, and every slot is handed over or given back. Owns the calls in flight,
which a stop gives a deadline. Runs nothing by itself.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import attrs
import structlog
import trio

from daemon.client import CALL, ApiError, Client, Rejected, Transient
from daemon.runtimes.directory import Directory
from daemon.runtimes.info import RuntimeInfo
from daemon.runtimes.offers import Offers
from shared.wire.runtime import CLAIM_MANY
from shared.wire.task import ClaimedTask, ClaimManyRequest, RuntimeClaims, WantedClaims

if TYPE_CHECKING:
    from daemon.tasks.pool import TaskPool

log = structlog.get_logger(__name__)

CLAIM_WITHIN: Final = CALL + 5.0
"""Seconds a claim may hold up a cancel: the client's own deadline and a margin."""

MOST_RUNTIMES: Final = 200
MOST_SLOTS: Final = 100
"""What one call may ask for."""

_GATHER: Final = 2
"""Scheduler rounds the leader lets pass for others who were woken by the same thing."""

_MANY: Final = "POST /api/daemon/claims"


@attrs.define(eq=False)
class _Wish:
    """What one poller wants; the leader fills in the rest and sets `done`.

    `got` None means that no slot was free; `alone` that the poller has to ask for itself.
    """

    runtime: RuntimeInfo
    most: int
    done: trio.Event = attrs.field(factory=trio.Event)
    got: int | None = 0
    error: ApiError | None = None
    alone: bool = False


class Claims:
    """The calls in flight, and the wishes for the next. Pollers call `claim`."""

    def __init__(
        self, client: Client, pool: TaskPool, directory: Directory, offers: Offers
    ) -> None:
        self._client = client
        self._pool = pool
        self._directory = directory
        self._offers = offers
        self._began = trio.current_time()
        self._calls: set[trio.CancelScope] = set()
        self._wishes: dict[str, _Wish] = {}

    def cut(self, seconds: float) -> None:
        """Give what is in flight a deadline."""
        deadline = trio.current_time() + seconds
        for call in self._calls:
            call.deadline = min(call.deadline, deadline)

    def next_poll(self, interval: float) -> float:
        """When a poller that has nothing to do asks again, on Trio's clock.

        All at once where that is one call; otherwise each in its own time.
        """
        now = trio.current_time()
        if CLAIM_MANY not in self._offers:
            return now + interval
        # The margin keeps a poll that came at its time from being followed by itself.
        return self._began + interval * (math.floor((now - self._began) / interval + 0.01) + 1)

    async def claim(self, runtime: RuntimeInfo, most: int = 1) -> int | None:
        """Claim up to `most` tasks and hand them over; return how many were admitted.

        None: no slot was free, or nothing more is admitted. Raises ApiError.
        """
        if CLAIM_MANY not in self._offers:
            return await self._claim_alone(runtime)
        wish = _Wish(runtime, most)
        leads = not self._wishes
        self._wishes[runtime.id] = wish
        if leads:
            await self._lead()
        else:  # shielded as well: whoever comes next for this runtime must not meet this claim
            with trio.move_on_after(CLAIM_WITHIN, shield=True):
                await wish.done.wait()
        await trio.lowlevel.checkpoint_if_cancelled()
        if wish.alone:
            return await self._claim_alone(runtime)
        if wish.error is not None:
            raise wish.error
        return wish.got

    async def _claim_alone(self, runtime: RuntimeInfo) -> int | None:
        slot = self._pool.try_take_slot()
        if slot is None:
            await trio.lowlevel.checkpoint()
            return None
        slots = [slot]
        with trio.move_on_after(CLAIM_WITHIN, shield=True) as call:
            try:
                self._calls.add(call)
                task = await self._client.claim(runtime.id)
                return int(task is not None and self._hand_over(task, slots, runtime))
            finally:
                self._calls.discard(call)
                self._give_back(slots)
        return 0

    async def _lead(self) -> None:
        """Ask for everybody who wishes now, and tell each what came of it."""
        batch: dict[str, _Wish] = {}
        slots: list[int] = []
        with trio.move_on_after(CLAIM_WITHIN, shield=True) as call:
            try:
                self._calls.add(call)
                for _ in range(_GATHER):
                    await trio.lowlevel.checkpoint()
                batch, self._wishes = self._wishes, {}
                slots = self._take_slots(sum(wish.most for wish in batch.values()))
                if not slots:
                    for wish in batch.values():
                        wish.got = None
                elif len(batch) == 1 and len(slots) == 1:
                    for wish in batch.values():
                        wish.alone = True  # the call everybody knows does as well
                else:
                    await self._ask(batch, slots)
            finally:
                self._calls.discard(call)
                self._give_back(slots)
                if not batch:  # cut before it began; the next wish leads again
                    batch, self._wishes = self._wishes, {}
                for wish in batch.values():
                    wish.done.set()

    async def _ask(self, batch: dict[str, _Wish], slots: list[int]) -> None:
        waiting = list(batch.values())
        while waiting:
            asked, waiting = waiting[:MOST_RUNTIMES], waiting[MOST_RUNTIMES:]
            if not slots:
                for wish in asked:
                    wish.got = None
                continue
            room = min(len(slots), MOST_SLOTS)
            request = ClaimManyRequest(
                runtimes=[
                    WantedClaims(runtime_id=wish.runtime.id, slots=min(wish.most, room))
                    for wish in asked
                ],
                slots=room,
            )
            try:
                reply = await self._client.claim_many(request)
            except ApiError as error:
                self._refused(asked, error)
                continue
            for claims in reply.claims:
                if claims.runtime_id in batch:
                    self._answered(batch[claims.runtime_id], claims, slots)

    def _refused(self, asked: list[_Wish], error: ApiError) -> None:
        """Let each ask for itself if it is the call that was wrong, and not what was asked."""
        if error.status in (404, 405):
            log.info("the server does not take claims for many after all", error=str(error))
            self._offers.withdraw(CLAIM_MANY)
        for wish in asked:
            wish.alone = error.status in (404, 405) or error.final
            wish.error = error

    def _answered(self, wish: _Wish, claims: RuntimeClaims, slots: list[int]) -> None:
        if claims.error:
            gone = claims.error.endswith("not found")
            wish.error = (
                Rejected(_MANY, 404, claims.error) if gone else Transient(_MANY, 500, claims.error)
            )
        admitted = [self._hand_over(task, slots, wish.runtime) for task in claims.tasks]
        wish.got = sum(admitted)

    def _hand_over(self, task: ClaimedTask, slots: list[int], runtime: RuntimeInfo) -> bool:
        """Give a task one of the slots; what is handed over comes back by itself."""
        if not slots:
            log.warning("more tasks than were asked for; one will come again", task_id=task.id)
            return False
        slot = slots.pop(0)
        log.info("task claimed", task_id=task.id, runtime_id=runtime.id, slot=slot)
        now = self._directory.find(runtime.id) or runtime
        return self._pool.hand_over(task, slot, now)

    def _take_slots(self, most: int) -> list[int]:
        slots: list[int] = []
        while len(slots) < most and (slot := self._pool.try_take_slot()) is not None:
            slots.append(slot)
        return slots

    def _give_back(self, slots: list[int]) -> None:
        while slots:
            self._pool.give_back(slots.pop())
