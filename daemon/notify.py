"""Telling the service manager how the daemon is: ready, alive, stopping (systemd's sd_notify).

One datagram to the socket the manager named in the environment; without one nothing is sent. The
variables are taken out of the environment, so that no agent can speak for the daemon. It looks at
the daemon's health every second until it is ready, then as often as the manager's watchdog needs.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, MutableMapping
from typing import Any, Final

import attrs
import structlog
import trio

log = structlog.get_logger(__name__)

_VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")

PATIENCE: Final = 20.0
"""Seconds a daemon that has said what keeps it from working is not yet called ready: a server that
is away is waited for, and a manager that would not have it must not restart us meanwhile."""

_LOOK: Final = 1.0
_LEAST_OFTEN: Final = 30.0


@attrs.frozen(kw_only=True)
class Notifier:
    """`environment` is what was taken out, for a successor in the same process."""

    address: str = ""
    watchdog: float = 0.0
    environment: dict[str, str] = attrs.field(factory=dict)

    def tell(self, **state: str | int) -> bool:
        """Send assignments such as READY=1; tell whether they went out. Never waits or raises."""
        if not self.address:
            return False
        text = "\n".join(f"{key}={value}" for key, value in state.items())
        name = f"\0{self.address[1:]}" if self.address.startswith("@") else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
                line.setblocking(False)
                line.sendto(text.encode(), name)
        except OSError as error:
            log.debug("the service manager was not told", state=text, error=str(error))
            return False
        return True


def take_notifier(env: MutableMapping[str, str], pid: int) -> Notifier:
    """Read the manager's variables and remove them. A watchdog for another process is not ours."""
    told = {name: value for name in _VARIABLES if (value := env.pop(name, ""))}
    microseconds = told.get("WATCHDOG_USEC", "")
    ours = told.get("WATCHDOG_PID", str(pid)) == str(pid)
    return Notifier(
        address=told.get("NOTIFY_SOCKET", ""),
        watchdog=int(microseconds) / 1e6 if ours and microseconds.isdigit() else 0.0,
        environment=told,
    )


async def run_notify(notifier: Notifier, health: Callable[[], dict[str, Any]]) -> None:
    """Tell of readiness once, of problems as they come and go, and of life, until cancelled."""
    if not notifier.address:
        return
    pause = min(_LEAST_OFTEN, notifier.watchdog / 3) if notifier.watchdog else _LEAST_OFTEN
    began = trio.current_time()
    ready, before = False, ""
    while True:
        told = health()
        if not ready:
            waited = trio.current_time() - began
            is_up = told["status"] == "running" or ("problem" in told and waited >= PATIENCE)
            ready = is_up and notifier.tell(READY=1)
        status = str(told.get("problem") or told["status"]).replace("\n", " ")
        if status != before and notifier.tell(STATUS=status):
            before = status
        if notifier.watchdog:
            notifier.tell(WATCHDOG=1)
        await trio.sleep(pause if ready else min(_LOOK, pause))
