"""Which runtimes this daemon has at the moment, and whom to tell about each of them.

Each workspace's reconciler publishes its runtimes here; pollers, heartbeats and the websocket look
them up. Everything is synchronous, so a reader never sees half a change. It runs nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import attrs

from daemon.runtimes.info import RuntimeInfo
from shared.mailbox import Nudge


@attrs.define(eq=False)
class _Member:
    """A workspace this daemon serves; `runtimes` changes only through `publish`."""

    recheck: Callable[[], None]
    gone: Callable[[str], None]
    runtimes: dict[str, RuntimeInfo] = attrs.field(factory=dict)


class Directory:
    """The level everyone reconciles to. `changed` is nudged when the set of ids differs.

    `changed` has one waiter, the websocket.
    """

    def __init__(self) -> None:
        self.changed = Nudge()
        self._members: dict[str, _Member] = {}
        self._nudges: dict[str, Nudge] = {}

    def join(
        self, workspace_id: str, *, recheck: Callable[[], None], gone: Callable[[str], None]
    ) -> None:
        """Add a workspace, without runtimes; `recheck` and `gone` reach its reconciler."""
        self.leave(workspace_id)
        self._members[workspace_id] = _Member(recheck=recheck, gone=gone)

    def leave(self, workspace_id: str) -> None:
        """Forget a workspace and its runtimes."""
        self.publish(workspace_id, ())
        self._members.pop(workspace_id, None)

    def publish(self, workspace_id: str, runtimes: Iterable[RuntimeInfo]) -> None:
        """Replace a workspace's runtimes."""
        member = self._members.get(workspace_id)
        if member is None:
            return
        before = member.runtimes.keys()
        after = {runtime.id: runtime for runtime in runtimes}
        different = before != after.keys()
        for gone in before - after.keys():
            del self._nudges[gone]
        for new in after.keys() - before:
            self._nudges[new] = Nudge()
        member.runtimes = after
        if different:
            self.changed.nudge()

    def ids(self) -> tuple[str, ...]:
        """Every runtime id, sorted."""
        return tuple(sorted(self._nudges))

    def by_workspace(self) -> dict[str, list[str]]:
        """The runtime ids of each workspace, sorted, for `/health`."""
        return {key: sorted(member.runtimes) for key, member in sorted(self._members.items())}

    def find(self, runtime_id: str) -> RuntimeInfo | None:
        for member in self._members.values():
            if runtime_id in member.runtimes:
                return member.runtimes[runtime_id]
        return None

    def nudge_of(self, runtime_id: str) -> Nudge:
        """The mailbox of a runtime's poller; for a runtime not in the set, one nobody fills."""
        return self._nudges.get(runtime_id) or Nudge()

    def nudge(self, runtime_id: str) -> None:
        """Tell a runtime's poller to look for work now; an unknown id is ignored."""
        if runtime_id in self._nudges:
            self._nudges[runtime_id].nudge()

    def nudge_all(self) -> None:
        for nudge in self._nudges.values():
            nudge.nudge()

    def report_gone(self, runtime_id: str) -> None:
        """Pass on that the server no longer knows a runtime. A repetition changes nothing."""
        runtime = self.find(runtime_id)
        if runtime is not None:
            self._members[runtime.workspace_id].gone(runtime_id)

    def recheck(self, workspace_id: str) -> None:
        """Ask a workspace to compare what it has registered with what it should have."""
        member = self._members.get(workspace_id)
        if member is not None:
            member.recheck()
