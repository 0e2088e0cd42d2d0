"""What an agent says, on its way to the server: one ordered consumer and one ordered sender.

The consumer is the task itself. It receives until the agent's messages end, journals every item in
the order it came, and never waits for the network; its receive has the watchdog's budget as its
deadline, so silence needs no task of its own. The sender is a child of the task, woken by the
journal; it sends what was journalled in batches, the first after a quiet time at once, and repeats
a failed batch until it is confirmed. It is stopped by the task, which then sends the rest itself.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import attrs
import structlog
import trio

from daemon.agents.contract import AgentMessage
from daemon.client import ApiError, Foreign
from daemon.tasks.journal import BATCH_ITEMS, Batch, Journal, JournalError
from daemon.tasks.outcome import clip
from daemon.tasks.watchdog import Watchdog
from shared import codec, depth
from shared.redact import Redactor
from shared.wire.runtime import UNIQUE_ROWS
from shared.wire.task import TaskMessage

if TYPE_CHECKING:
    from daemon.client import Client

log = structlog.get_logger(__name__)

PACE: Final = 0.2
"""Seconds between two batches, and the longest that text waits for more of its kind. The reference
takes 0.5; a reader sees lines in half the time for a few more requests, and only while an agent
talks faster than this."""

OUTPUT_LIMIT: Final = 8192
"""Bytes of one tool output that are sent (spec 03 §15.2); the journal has all of it."""

DEEPEST_INPUT: Final = 64
"""Levels of a tool's input that are kept; far above any real one, below what anybody can read."""

CONTENT_LIMIT: Final = 1024 * 1024
"""Bytes of one text that are sent: far above any real one, far below the server's body limit."""

SEND_WITHIN: Final = 8.0
"""Seconds a batch in flight may hold up a cancel: above the client's own 5 s. Cut short, a batch
would be stored twice by servers that do not know (task, seq) to be unique."""

SMALLEST_CONTENT: Final = 4096
"""Bytes of a text that are sent in any case, however little something on the way lets through."""

UNREAD: Final = 5
"""Refused looks at what is stored after which a server counts as one that cannot tell."""

_FIRST_RETRY: Final = 0.5
_LAST_RETRY: Final = 30.0


class Transcript:
    """Turns messages into journalled items: merged where they belong together, secrets out.

    Used by the consumer only. Consecutive text (or thinking) becomes one item while it arrives
    within PACE; anything else in between ends the item, so order is what it was.
    """

    def __init__(self, journal: Journal, redactor: Redactor) -> None:
        self._journal = journal
        self._redactor = redactor
        self._tools: dict[str, str] = {}
        self._kind = ""
        self._parts: list[str] = []
        self._flushed = -math.inf
        self.due = math.inf

    def add(self, message: AgentMessage) -> None:
        """Take one message; journal what is complete."""
        match message.kind:
            case "text" | "thinking":
                self._merge(message.kind, message.content)
            case "tool_use":
                self._tools[message.call_id] = message.tool
                self._write(
                    TaskMessage(
                        seq=0,
                        type="tool_use",
                        tool=message.tool,
                        input=self._redactor.value(depth.cut(dict(message.input), DEEPEST_INPUT)),
                    )
                )
            case "tool_result":
                tool = message.tool or self._tools.get(message.call_id, "")
                self._tools.pop(message.call_id, None)
                output = self._redactor.text(message.output)
                self._write(TaskMessage(seq=0, type="tool_result", tool=tool, output=output))
            case "error":
                content = self._redactor.text(message.content)
                self._write(TaskMessage(seq=0, type="error", content=content))
            case _:  # status and log are not part of the transcript
                pass

    def flush(self) -> None:
        """Journal the text collected so far."""
        text, self._parts, self.due = "".join(self._parts), [], math.inf
        if text:
            self._flushed = trio.current_time()
            content = self._redactor.text(text)
            self._journal.note_message(TaskMessage(seq=0, type=self._kind, content=content))

    def _merge(self, kind: str, content: str) -> None:
        if kind != self._kind:
            self.flush()
            self._kind = kind
        self._parts.append(content)
        self.due = max(self._flushed + PACE, trio.current_time())
        if self.due <= trio.current_time():
            self.flush()

    def _write(self, message: TaskMessage) -> None:
        self.flush()
        self._journal.note_message(message)


async def consume(
    messages: trio.MemoryReceiveChannel[AgentMessage],
    transcript: Transcript,
    watchdog: Watchdog,
    on_session: Callable[[str], None],
) -> bool:
    """Take the agent's messages until they end (True) or it was silent too long (False).

    What was collected is journalled in either case, and when cancelled.
    """
    heard = trio.current_time()
    try:
        while True:
            silent_until = heard + watchdog.budget()
            try:
                message = await _receive_until(messages, min(silent_until, transcript.due))
            except trio.EndOfChannel:
                return True
            if message is not None:
                heard = trio.current_time()
                watchdog.saw(message)
                if message.session_id:
                    on_session(message.session_id)
                transcript.add(message)
            elif trio.current_time() >= silent_until:
                return False
            else:
                transcript.flush()
    finally:
        transcript.flush()


async def _receive_until(
    messages: trio.MemoryReceiveChannel[AgentMessage], deadline: float
) -> AgentMessage | None:
    """Receive, or return None at the deadline if nothing is waiting even then."""
    with trio.CancelScope(deadline=deadline):
        return await messages.receive()
    # an expired scope cancels even when a message is there
    try:
        return messages.receive_nowait()
    except trio.WouldBlock:
        return None


class Sender:
    """Sends the journalled transcript in order. `run` paces itself; `send_rest` does not.

    `gone` is set when the server no longer knows the task: nothing is sent after that.
    """

    def __init__(self, client: Client, journal: Journal, *, task_id: str) -> None:
        self._client = client
        self._journal = journal
        self._task_id = task_id
        self._scope = trio.CancelScope()
        self._stopped = trio.Event()
        self._unsure = bool(journal.unsent)  # an earlier process may have sent some of it
        self._unread = 0
        self._clip = CONTENT_LIMIT
        self.gone = False

    async def run(self) -> None:
        """Send what is journalled, as it is journalled, until `stop`."""
        try:
            with self._scope:
                while not self.gone:
                    await trio.lowlevel.checkpoint_if_cancelled()
                    if not self._journal.unsent:
                        await self._journal.grown.wait()
                        continue
                    begun = trio.current_time()
                    try:
                        await self._send_next()
                    except JournalError as error:  # the agent's work is not worth less for it
                        log.error("transcript not read", task_id=self._task_id, error=str(error))  # noqa: TRY400
                        await trio.sleep(_LAST_RETRY)
                        continue
                    if self._journal.unsent < BATCH_ITEMS:
                        await trio.sleep_until(begun + PACE)
        finally:
            self._stopped.set()

    async def stop(self) -> None:
        """End `run`; a batch in flight is finished first."""
        self._scope.cancel(reason="the run is over")
        await self._stopped.wait()

    async def send_rest(self) -> None:
        """Send everything that is journalled and not confirmed. After `stop`, or without `run`."""
        while self._journal.unsent and not self.gone:
            await trio.lowlevel.checkpoint_if_cancelled()
            await self._send_next()

    async def _send_next(self, *, items: int = BATCH_ITEMS) -> None:
        """Send one batch until it is confirmed or refused; what is unsent begins behind it then."""
        batch = self._journal.next_batch(items=items)
        if not batch:  # damaged on disk
            log.error("transcript items lost", task_id=self._task_id, items=self._journal.unsent)
            self._journal.confirm(attrs.evolve(batch.end, seq=self._journal.last_seq))
            await trio.lowlevel.checkpoint()
            return
        failures = 0
        while not self.gone:
            try:
                with trio.move_on_after(SEND_WITHIN, shield=True):
                    messages = await self._missing(batch.messages)
                    self._unsure = True
                    if messages:
                        wire = [for_wire(message, self._clip) for message in messages]
                        await self._client.messages(self._task_id, wire)
                    self._journal.confirm(batch.end)
                    self._unsure = False
                    return
            except ApiError as error:
                if error.task_gone:
                    self.gone = await self._client.surely_gone(self._task_id)
                    if self.gone:
                        return
                elif error.too_large:
                    if len(batch.messages) > 1:
                        await self._narrow_down(batch, error)
                        return
                    self._clip = max(SMALLEST_CONTENT, self._clip // 4)
                elif error.final:
                    await self._narrow_down(batch, error)
                    return
                log.warning("transcript not sent yet", task_id=self._task_id, error=str(error))
            failures += 1
            wait = min(_LAST_RETRY, _FIRST_RETRY * 2 ** min(failures - 1, 10))
            await trio.sleep(wait * random.uniform(0.8, 1.2))  # noqa: S311 - spreads retries

    async def _missing(self, messages: list[TaskMessage]) -> list[TaskMessage]:
        """Leave out what the server has already, where sending it again would double it.

        Asked only when the answer to an earlier attempt was lost, and a server does not say that it
        keeps one row for each number. One that does not answer that either gets all of it: a row
        twice is better than none.
        """
        if not self._unsure or UNIQUE_ROWS in self._client.offers or self._unread >= UNREAD:
            return messages
        try:
            stored = await self._client.stored_seqs(self._task_id, messages[0].seq - 1)
        except ApiError as error:
            self._unread += isinstance(error, Foreign) and error.status in (404, 405)
            raise
        self._unread = 0
        return [message for message in messages if message.seq not in set(stored)]

    async def _narrow_down(self, batch: Batch, error: ApiError) -> None:
        """The server refuses a batch: send its items singly and go on without the refused one."""
        if len(batch.messages) == 1:
            seq = batch.end.seq
            log.error("transcript item refused", task_id=self._task_id, seq=seq, error=str(error))
            self._journal.confirm(batch.end)
            return
        while self._journal.confirmed.seq < batch.end.seq and not self.gone:
            await self._send_next(items=1)


def for_wire(message: TaskMessage, limit: int = CONTENT_LIMIT) -> TaskMessage:
    """Cut what is too long to send, on a character boundary."""
    size = len(codec.encode(message.input)) if message.input else 0
    return attrs.evolve(
        message,
        output=clip(message.output, min(limit, OUTPUT_LIMIT)),
        content=clip(message.content, limit),
        input=message.input if size <= limit else {"cut": f"{size} bytes, too many to send"},
    )
