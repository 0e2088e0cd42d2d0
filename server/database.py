"""The one crossing from Trio into asyncio, where asyncpg lives: an event loop and a pool.

Opened outside everything that uses it and closed last, bounded in time. A unit of work is one
asyncio function that gets a connection and runs as one asyncio task, acquire and release included:
measured, this is the only shape that neither leaks connections under cancellation nor costs a
crossing per statement (design/trio-notes.md 2.9). Reads are cancellable. A cancelled write may
have committed, so writes are shielded and bounded by a deadline instead.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import ExitStack, asynccontextmanager
from typing import Any, Final, TypeVar

import asyncpg
import structlog
import trio
import trio_asyncio

from server.stages import stage
from server.store.queries import Connection

log = structlog.get_logger(__name__)

T = TypeVar("T")
Unit = Callable[[Connection], Awaitable[T]]
"""`async def unit(conn)`, asyncio-flavoured, free of side effects outside the database: it may be
run again after a serialization failure."""

_DEADLINE: Final = 15.0
"""Seconds. Half of what a client waits, so that it gets an answer and not a time-out."""

_ATTEMPTS: Final = 4
_CLOSING: Final = 5.0
_NOTIFICATIONS: Final = 4096
"""A relay that falls this far behind is closed, and catches up after it has reconnected."""

_AGAIN: Final = (
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    # what the unit had read was deleted before it could point at it: it looks again
    asyncpg.ForeignKeyViolationError,
)
_LOST: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    # what asyncpg meets when a backend dies in the middle of a message
    asyncpg.InternalClientError,
    OSError,
)


class Database:
    """A pool of connections. Made by `open_database`; used by any task inside it."""

    def __init__(self, url: str, loop: Any, pool: Any) -> None:
        self._url = url
        self._loop = loop
        self._pool = pool

    async def read(self, unit: Unit[T], *, deadline: float = _DEADLINE) -> T:
        """Run a unit that changes nothing, without a transaction of its own.

        Cancellable. Raises trio.TooSlowError after `deadline` seconds.
        """
        with trio.fail_after(deadline):
            return await self._cross(self._plain(unit))

    async def write(
        self, unit: Unit[T], *, deadline: float = _DEADLINE, one_statement: bool = False
    ) -> T:
        """Run a unit in one transaction, to its end whatever the caller's scope says.

        Serialization failures and deadlocks are retried, what was deleted meanwhile is looked up
        again, and so is done when a connection was lost before the commit was sent. Raises trio.TooSlowError after `deadline` seconds; the
        transaction has then been rolled back, unless it was the answer to the commit that was
        awaited. `one_statement` says that the unit is a single statement, which is a transaction
        already: it saves two round trips.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        with trio.fail_after(deadline, shield=True):
            return await self._cross(self._persistent(unit, one_statement))

    def connections(self) -> tuple[int, int, int]:
        """How many connections are open, how many of them idle, and how many there may be."""
        pool = self._pool
        return pool.get_size(), pool.get_idle_size(), pool.get_max_size()

    async def notify(self, channel: str, payload: str) -> None:
        """Tell all listeners of a channel; at most 7,999 bytes."""

        async def send(conn: Connection) -> None:
            await conn.execute("select pg_notify($1, $2)", channel, payload)

        await self.write(send, one_statement=True)

    @asynccontextmanager
    async def listen(self, channel: str) -> AsyncIterator[trio.MemoryReceiveChannel[str]]:
        """Open a connection of its own that listens to a channel; yields the payloads.

        The receive channel ends when the connection dies or the reader falls too far behind:
        what was missed then is unknown.
        """
        send, receive = trio.open_memory_channel[str](_NOTIFICATIONS)

        def put(_: Any, __: int, ___: str, payload: str) -> None:
            try:
                send.send_nowait(payload)
            except trio.WouldBlock:
                send.close()
            except (trio.ClosedResourceError, trio.BrokenResourceError):
                pass

        async def connect() -> Any:
            conn = await asyncpg.connect(self._url, **_SETTINGS)
            try:
                conn.add_termination_listener(lambda _: send.close())
                await conn.add_listener(channel, put)
            except BaseException:
                conn.terminate()
                raise
            return conn

        conn = await self._cross(connect())
        try:
            yield receive
        finally:
            send.close()
            receive.close()
            with trio.move_on_after(_CLOSING, shield=True):
                await self._cross(_close(conn))

    async def _cross(self, work: Coroutine[Any, Any, T]) -> T:
        with stage("crossing"):
            result: T = await self._loop.run_aio_coroutine(work)
        return result

    async def _plain(self, unit: Unit[T]) -> T:
        async with self._connection() as conn:
            with stage("statements"):
                return await unit(conn)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Any]:
        with ExitStack() as waiting:
            waiting.enter_context(stage("waiting for a connection"))
            async with self._pool.acquire() as conn:
                waiting.close()
                try:
                    yield conn
                except asyncpg.InternalClientError:
                    conn.terminate()  # whatever state it is in, nobody else is to meet it
                    raise
                except asyncpg.InterfaceError as error:
                    # Also what asyncpg says of wrong calls and values: those are nobody's loss.
                    if _is_closed(conn):
                        raise asyncpg.ConnectionDoesNotExistError(str(error)) from error
                    raise

    async def _persistent(self, unit: Unit[T], one_statement: bool) -> T:
        attempt = 0
        while True:
            attempt += 1
            committing = one_statement
            try:
                async with self._connection() as conn:
                    with stage("statements"):
                        if one_statement:
                            return await unit(conn)
                        # Managed by the block: asyncpg then never meets it open at the release.
                        async with conn.transaction():
                            result = await unit(conn)
                            committing = True
                    return result
            except _AGAIN as error:
                if attempt == _ATTEMPTS:
                    raise
                log.info("transaction is tried again", error=str(error), attempt=attempt)
            except _LOST as error:
                if committing or attempt == _ATTEMPTS:
                    raise
                log.warning("connection was lost, trying again", error=str(error), attempt=attempt)
            await asyncio.sleep(random.uniform(0.01, 0.05) * 2**attempt)  # noqa: S311


@asynccontextmanager
async def open_database(url: str, *, pool_size: int = 20) -> AsyncIterator[Database]:
    """Open the asyncio loop and a pool of at most `pool_size` connections to `url`.

    Raises OSError or asyncpg.PostgresError when the server cannot be reached. On leaving, units
    that still run get a few seconds, then their connections are cut.
    """
    failure: BaseException | None = None
    try:
        async with trio_asyncio.open_loop() as loop:
            try:
                loop.set_exception_handler(_report)
                pool = await loop.run_aio_coroutine(_open_pool(url, pool_size))
                try:
                    yield Database(url, loop, pool)
                finally:
                    with trio.move_on_after(_CLOSING, shield=True):
                        await loop.run_aio_coroutine(pool.close())
                    pool.terminate()
            except BaseException as error:
                failure = error
                raise
    except BaseExceptionGroup as group:
        if not _wraps_only(group, failure):
            raise
    if failure is not None:
        raise failure


def _wraps_only(group: BaseException, error: BaseException | None) -> bool:
    """Tell whether the groups are only those the loop's nurseries put round the body's error."""
    while group is not error and isinstance(group, BaseExceptionGroup):
        if len(group.exceptions) > 1:
            return False
        group = group.exceptions[0]
    return group is error


_SETTINGS: Final[dict[str, Any]] = {
    # More statements than asyncpg's default of 100 are in use, the claim among the long ones.
    "statement_cache_size": 512,
    "max_cached_statement_lifetime": 0,
    "max_cacheable_statement_size": 64 * 1024,
    # Compiling, and planning anew for each call's parameters, cost more than these statements:
    # a claim takes 2 ms with one plan kept and 6 ms without.
    "server_settings": {
        "application_name": "bullpen",
        "jit": "off",
        "plan_cache_mode": "force_generic_plan",
        "timezone": "UTC",
    },
    "timeout": 10.0,
}


async def _open_pool(url: str, size: int) -> Any:
    return await asyncpg.create_pool(
        url, min_size=min(2, size), max_size=size, init=_set_codecs, reset=_reset, **_SETTINGS
    )


def _is_closed(conn: Any) -> bool:
    """Tell whether a connection of the pool is closed; it is the pool's again then, not ours."""
    try:
        return bool(conn.is_closed())
    except asyncpg.InterfaceError:
        return True


async def _close(conn: Any) -> None:
    try:
        await conn.close(timeout=_CLOSING / 2)
    except (*_LOST, asyncpg.InterfaceError, TimeoutError):
        conn.terminate()


async def _reset(_: Any) -> None:
    """Leave out asyncpg's own reset, which costs more than most units: no unit leaves state.

    An open transaction would not get this far; asyncpg reports it and rolls it back.
    """


def _report(_: Any, context: dict[str, Any]) -> None:
    """Log what no asyncio task answers for; trio-asyncio would end the process for it."""
    log.error(str(context.get("message")), exc_info=context.get("exception"))


async def _set_codecs(conn: Any) -> None:
    """Speak plain values: jsonb as Python values, uuid as str, text without what Postgres refuses."""
    for name in ("json", "jsonb"):
        await conn.set_type_codec(
            name, schema="pg_catalog", encoder=write_json, decoder=json.loads, format="text"
        )
    await conn.set_type_codec("uuid", schema="pg_catalog", encoder=str, decoder=str, format="text")
    await conn.set_type_codec(
        "text", schema="pg_catalog", encoder=_write_text, decoder=bytes.decode, format="binary"
    )


def clean(text: str) -> str:
    """Return the text without NUL characters and lone surrogates, which Postgres cannot store."""
    return _write_text(text).decode()


def _write_text(text: str) -> bytes:
    return text.encode("utf-8", "replace").replace(b"\0", b"")


_SUSPICIOUS: Final = ("\\u0000", "NaN", "Infinity")
"""What Python writes and Postgres refuses; or the same characters in a harmless place."""


def write_json(value: Any) -> str:
    """Write a value as JSON that jsonb accepts."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if any(sign in text for sign in _SUSPICIOUS):
        text = json.dumps(_clean_value(value), ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace").decode()


def _clean_value(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\0", "")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {_clean_value(key): _clean_value(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [_clean_value(member) for member in value]
    return value
