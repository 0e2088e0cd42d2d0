"""Keep one agent's whole process family together, and leave none of it behind.

A small program of its own, started by `daemon.agents.process` before each agent: tool shells leave
the agent's process group and session (real-agents §2), so no signal from outside reaches them all.
As the family's subreaper (Linux) the warden becomes the parent of whatever outlives its own parent;
killing its children until it has none is therefore complete, however often they double-forked, and
no pid can be reused under its hands. It wakes for its children's deaths and for its keeper's
commands: `T` passes SIGTERM to the agent's group, `K` kills everybody. Losing the keeper (a killed
daemon) means the same, so that no agent works on unseen. It ends when its agent has ended and no
descendant is left, always after telling the keeper how.

An agent is isolated (`daemon.agents.isolation`) by the warden becoming process 1 of namespaces of
its own, in which there is nothing but what a plan names. Bubblewrap starts it there, or it goes
there by itself (`daemon.agents.namespaces`) and stays outside only as the parent of that process.
The kernel then kills everybody inside when process 1 ends, however it ends.

Only the standard library, and little of it: it starts once for every task. Elsewhere than on Linux
it owns the agent's group alone; the keeper's sweep finds the rest.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:  # at run time `typing` would cost more than all the rest
    from typing import Any

# The keeper reads these lines: "S<pid>" started, "X<errno>" could not start, "E<code>" ended,
# "N<text>" the system refused the isolation.
HANDED_OVER = "BULLPEN_HANDED_OVER_"
"""Before the name of each of the agent's variables: none of them may mean anything out here."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_ORPHAN_GRACE = 2.0
"""Seconds between SIGTERM and SIGKILL once the keeper is gone: enough to save a session file."""
_KILL_PATIENCE = 5.0
"""Seconds to wait for killed processes; beyond it they hang in the kernel and nobody can help."""


def _prctl(option: int, value: int) -> None:
    if sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _children() -> list[int]:
    """Name the living children; the warden has one thread, so they stand in one file."""
    try:
        file = os.open("/proc/thread-self/children", os.O_RDONLY)
    except OSError:
        return _children_by_search()
    try:
        return [int(pid) for pid in os.read(file, 1 << 20).split()]
    finally:
        os.close(file)


def _children_by_search() -> list[int]:
    """The same for kernels without that file; nothing where there is no /proc at all."""
    found = []
    with suppress(OSError):
        for name in filter(str.isdecimal, os.listdir("/proc")):
            with suppress(OSError):
                file = os.open(f"/proc/{name}/stat", os.O_RDONLY)
                stat = os.read(file, 4096)
                os.close(file)
                if int(stat.rpartition(b")")[2].split()[1]) == os.getpid():
                    found.append(int(name))
    return found


def _environment(cwd: str = "") -> dict[bytes, bytes]:
    """The agent's environment: what was handed over under other names, else this process's."""
    prefix = HANDED_OVER.encode()
    found = {
        name[len(prefix) :]: value for name, value in os.environb.items() if name.startswith(prefix)
    }
    if found and cwd:
        found[b"PWD"] = os.fsencode(cwd)
    return found or dict(os.environb)


def _spawn(argv: list[str], env: dict[bytes, bytes]) -> tuple[int, int]:
    """Start the agent in its own group. Returns (pid, 0) or (0, errno)."""
    read, write = os.pipe()  # closed by a successful exec, else it carries the errno
    pid = os.fork()
    if pid == 0:
        try:
            os.setpgid(0, 0)
            _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them
                signal.signal(number, signal.SIG_DFL)
            os.execvpe(argv[0], argv, env)  # noqa: S606 - no shell wanted
        except OSError as error:
            os.write(write, str(error.errno).encode())
        finally:
            os._exit(127)
    os.close(write)
    problem = os.read(read, 16)
    os.close(read)
    if problem:
        os.waitpid(pid, 0)
        return 0, int(problem)
    return pid, 0


class _Family:
    """The agent and its descendants; only the main loop touches it."""

    def __init__(self, agent: int) -> None:
        self.agent = agent
        self.code: int | None = None

    def reap(self) -> bool:
        """Collect the dead. True while anybody lives."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self.agent:
                self.code = os.waitstatus_to_exitcode(status)

    def signal_group(self, number: int) -> None:
        if self.code is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.agent, number)

    def kill_all(self) -> None:
        """Kill until nobody is left: the children of the killed become ours and are next."""
        deadline = time.monotonic() + _KILL_PATIENCE
        self.signal_group(signal.SIGKILL)
        while self.reap() and time.monotonic() < deadline:
            if os.getpid() == 1:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(-1, signal.SIGKILL)  # everybody in our namespace but us
            for pid in () if os.getpid() == 1 else _children():
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)


def _enter(plan: dict[str, Any], keeper: int) -> None:
    """Become process 1 of the namespaces that the plan describes, or tell the keeper why not.

    The process that was called stays outside until that one has ended, and ends as it did.
    """
    sys.path.append(os.path.dirname(__file__))
    namespaces: Any = __import__("namespaces")
    try:
        if plan["mode"] == "own":
            null = os.open(os.devnull, os.O_RDWR)
            namespaces.leave(plan)
            pid = os.fork()
            if pid:
                for number in (plan["stdin"], plan["stdout"], 0, 1, 2, keeper):
                    os.dup2(null, number)
                for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
                    signal.signal(number, signal.SIG_IGN)
                os._exit(abs(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])) & 255)
            os.close(null)
            namespaces.build(plan["steps"])
            namespaces.settle(plan)
        namespaces.give_up(plan)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # the outside has no other hold on us
        namespaces.shut()
        os.chdir(plan["cwd"])
    except (namespaces.Refused, OSError) as error:
        os.write(keeper, f"N{error}".encode()[:400])
        sys.exit(126)


def _read_all(keeper: int, size: int) -> bytes:
    found = b""
    while len(found) < size:
        data = os.read(keeper, size - len(found))
        if not data:
            sys.exit(126)
        found += data
    return found


def _release_streams() -> None:
    """The agent's streams belong to the agent: holding copies would keep its readers waiting."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.close(null)


def main() -> int:
    """Run `FD PROGRAM…`; with `FD+` the keeper has sent a plan: its length in 8 digits, JSON."""
    plan: dict[str, Any] = {}
    keeper = int(sys.argv[1].removesuffix("+"))
    if sys.argv[1].endswith("+"):
        import json

        plan = json.loads(_read_all(keeper, int(_read_all(keeper, 8))))
    os.set_inheritable(keeper, False)
    if plan:
        _enter(plan, keeper)
        for number, stream in ((plan["stdin"], 0), (plan["stdout"], 1)):
            os.dup2(number, stream)
            os.close(number)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)

    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)

    agent, problem = _spawn(sys.argv[2:], _environment(plan.get("cwd", "")))
    if problem:
        os.write(keeper, f"X{problem}\n".encode())
        return 127
    family = _Family(agent)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: family.signal_group(signal.SIGTERM))
    os.write(keeper, f"S{agent}\n".encode())

    _release_streams()

    poll = select.poll()
    poll.register(keeper, select.POLLIN)
    poll.register(wake_read, select.POLLIN)
    deadline: float | None = None
    while family.code is None:
        wait = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        ready = {number for number, _ in poll.poll(wait)}
        if wake_read in ready:
            os.read(wake_read, 512)
        if keeper in ready:
            try:
                command = os.read(keeper, 16)
            except OSError:
                command = b""
            if not command:
                poll.unregister(keeper)
                family.signal_group(signal.SIGTERM)
                deadline = time.monotonic() + _ORPHAN_GRACE
            elif b"K" in command:
                break
            elif b"T" in command:
                family.signal_group(signal.SIGTERM)
        family.reap()
        if deadline is not None and time.monotonic() >= deadline:
            break
    family.kill_all()
    code = -signal.SIGKILL if family.code is None else family.code
    with suppress(OSError):
        os.write(keeper, b"E%d\n" % code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
