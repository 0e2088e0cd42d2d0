"""Getting a task's directory ready, again while this machine is in trouble that passes.

Too many open files, no memory or a full disk for some seconds say nothing about the task. What an
attempt has done is taken back before the next one. Runs nothing by itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

from daemon import threads
from daemon.tasks.trouble import Stays, patiently
from daemon.workdir.errors import PrepareError
from daemon.workdir.prepare import Prepared, giving_back, prepare
from shared import failure
from shared.wire.task import ClaimedTask


async def get_ready(
    place: AsyncExitStack,
    task: ClaimedTask,
    kind: str,
    provider: str,
    chosen: Prepared,
    *,
    records: Path,
    env: Mapping[str, str],
    say: Callable[[str], Awaitable[None]],
) -> Prepared:
    """Prepare the chosen directory until `place` is left; a user's own is given back then.

    `records` is the folder of what is borrowed. Raises PrepareError.
    """

    async def attempt() -> Prepared:
        async with AsyncExitStack() as half:
            lending = threads.in_threads(giving_back(chosen, task.id, records))
            lent = await half.enter_async_context(lending)
            preparing = partial(prepare, task, kind, provider, lent, env)
            prepared = await threads.in_thread(preparing)
            place.push_async_exit(half.pop_all())
        return prepared

    try:
        return await patiently("preparing the directory", attempt, say)
    except Stays as stays:
        raise PrepareError(str(stays), reason=failure.RUNTIME_RECOVERY) from stays
