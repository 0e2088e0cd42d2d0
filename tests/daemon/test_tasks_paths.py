"""Who may work in a user's directory, and who waits: the queue alone, then whole tasks in it."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock as Clock
from trio.testing import wait_all_tasks_blocked

from daemon.allowed import allow_directory, forget_directory
from daemon.tasks.paths import PathLocks, Ticket
from daemon.workdir import local
from shared.home import Home
from shared.wire.task import CANCELLED, COMPLETED, FAILED, RUNNING
from tests.daemon.tasks_support import Script, open_bench, text
from tests.support.fake_server import FakeTask, make_config, uid
from tests.support.network import REFUSE

pytestmark = pytest.mark.fast

WAITING = "waiting_local_directory"
LONG = Script(steps=(text("a"), 100.0, text("b")))


# -- the queue


def test_a_free_path_is_taken_at_once_and_others_do_not_mind() -> None:
    locks = PathLocks()
    with locks.join(Path("/a"), "1") as one, locks.join(Path("/ab"), "2") as two:
        assert one.first.is_set()
        assert two.first.is_set()


@pytest.mark.parametrize("other", ["/a", "/a/b", "/"])
def test_same_inner_and_outer_paths_wait(other: str) -> None:
    locks = PathLocks()
    with ExitStack() as stack:
        stack.enter_context(locks.join(Path("/a"), "1"))
        with locks.join(Path(other), "2") as two:
            holder = locks.blocker(two)
            assert holder is not None
            assert holder.task_id == "1"
            assert not two.first.is_set()
            stack.close()
            assert two.first.is_set()


def test_first_come_first_served_even_across_nesting() -> None:
    locks = PathLocks()
    holder, outer, inner = ExitStack(), ExitStack(), ExitStack()
    holder.enter_context(locks.join(Path("/a/b"), "holder"))
    outside = outer.enter_context(locks.join(Path("/a"), "outer"))
    inside = inner.enter_context(locks.join(Path("/a/c"), "inner"))
    assert not inside.first.is_set(), "it would let the outer one starve"
    holder.close()
    assert outside.first.is_set()
    assert not inside.first.is_set()
    outer.close()
    assert inside.first.is_set()
    inner.close()


def test_who_gives_up_waiting_lets_the_next_one_through() -> None:
    locks = PathLocks()
    holder, middle, last = ExitStack(), ExitStack(), ExitStack()
    holder.enter_context(locks.join(Path("/a"), "1"))
    middle.enter_context(locks.join(Path("/"), "2"))
    third = last.enter_context(locks.join(Path("/b"), "3"))
    middle.close()
    assert third.first.is_set(), "only the one that gave up was in its way"
    holder.close()
    last.close()


PATHS = [Path(each) for each in ("/a", "/a/b", "/a/b/c", "/a/d", "/e", "/e/f")]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=40))
def test_never_two_in_one_place_and_nobody_is_forgotten(steps: list[tuple[bool, int]]) -> None:
    locks = PathLocks()
    inside: list[tuple[Ticket, ExitStack]] = []

    def check() -> None:
        holders = [ticket for ticket, _ in inside if ticket.first.is_set()]
        for one in holders:
            for other in holders:
                clash = one.path.is_relative_to(other.path) or other.path.is_relative_to(one.path)
                assert one is other or not clash
        for ticket, _ in inside:
            assert ticket.first.is_set() or locks.blocker(ticket) is not None

    for joins, number in steps:
        if joins:
            stack = ExitStack()
            inside.append((stack.enter_context(locks.join(PATHS[number], str(number))), stack))
        elif inside:
            inside.pop(number % len(inside))[1].close()
        check()
    while inside:
        inside.pop(0)[1].close()
        check()


# -- tasks


@pytest.fixture(autouse=True)
def no_git(monkeypatch: pytest.MonkeyPatch) -> None:
    """Virtual time and a real process do not go together."""

    async def nowhere(*_: Any) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr("daemon.tasks.paths.find_excludes", nowhere)


def directory(folder: Path, home: Path) -> dict[str, Any]:
    """What a claim says of a task in a user's directory, which the machine's owner has allowed."""
    allow_directory(Home(home), folder)
    return named(folder, home)


def named(folder: Path, home: Path) -> dict[str, Any]:
    """What a claim says of a task in a directory of this machine."""
    ref = {"local_path": str(folder), "daemon_id": make_config(home).daemon_id}
    resource = {"id": uid("r"), "resource_type": "local_directory", "resource_ref": ref}
    return {"project_id": uid("p"), "project_resources": [resource]}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "CLAUDE.md").write_bytes(b"rules")
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


async def until(task: FakeTask, status: str) -> None:
    with trio.fail_after(1000):
        while task.status != status:  # noqa: ASYNC110 - virtual time
            await trio.sleep(1)


async def test_the_agent_works_in_the_users_directory_which_is_as_it_was_when_told(
    autojump_clock: Clock, home: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, bytes]] = []
    reported: list[dict[str, bytes]] = []
    script = Script(steps=(lambda: seen.append(content(project)), text("hi")))
    async with open_bench(home, script) as bench:
        task = bench.add(**directory(project, home), prior_work_dir=str(project))
        task.claimed["prior_session_id"] = "s0"
        complete = bench.client.complete

        async def look(*args: Any) -> Any:
            reported.append(content(project))
            return await complete(*args)

        monkeypatch.setattr(bench.client, "complete", look)
        await bench.run(task)
        assert task.status == COMPLETED
        [run] = bench.agents.runs
        assert run.cwd == project
        assert run.resume_session_id == "s0", "the same directory, so the same session"
        assert task.result is not None
        assert task.result["work_dir"] == str(project)
        assert b"Local Directory" in seen[0]["CLAUDE.md"]
        assert ".agent_context/issue_context.md" in seen[0]
        assert reported == [{"CLAUDE.md": b"rules"}]
        assert WAITING not in str(bench.routes(task))
        assert list(bench.config.home.borrowed.iterdir()) == []


async def test_a_brief_without_a_file_is_in_the_prompt(
    autojump_clock: Clock, home: Path, project: Path
) -> None:
    (project / "CLAUDE.md").unlink()
    (project / "CLAUDE.md").mkdir()
    async with open_bench(home) as bench:
        task = await bench.run(bench.add(**directory(project, home)))
        assert task.status == COMPLETED
        assert "## Workflow" in bench.agents.runs[0].prompt


async def test_the_second_task_waits_and_says_so(
    autojump_clock: Clock, home: Path, project: Path
) -> None:
    link = home / "link"
    link.symlink_to(project)
    async with open_bench(home, LONG) as bench:
        first = bench.add("first", **directory(project, home))
        second = bench.add("second", **directory(link, home))
        third = bench.add("third", **directory(project, home))
        bench.hand_over(first)
        await until(first, RUNNING)
        bench.hand_over(second)
        await until(second, WAITING)
        bench.hand_over(third)
        await until(third, WAITING)
        [call] = bench.server.requests(f".*{second.id}/wait-local-directory")
        assert call.body == {"reason": f"local_directory {link} (held by task {first.id[-8:]})"}
        await until(second, RUNNING)
        assert first.status in {RUNNING, COMPLETED}
        assert third.status == WAITING
        assert bench.agents.alive == 1
        await bench.pool.wait_empty()
        assert [first.status, second.status, third.status] == [COMPLETED] * 3
        assert bench.server.count(f".*{third.id}/prepare-lease") >= 10, "200 s, a lease of 45"
        assert content(project) == {"CLAUDE.md": b"rules"}


async def test_who_waits_for_a_directory_leaves_its_slot_to_others(
    autojump_clock: Clock, home: Path, project: Path
) -> None:
    async with open_bench(home, LONG, max_concurrent_tasks=2) as bench:
        first, second = (bench.add(n, **directory(project, home)) for n in "12")
        other = bench.add("other")
        bench.hand_over(first)
        await until(first, RUNNING)
        bench.hand_over(second)
        await until(second, WAITING)
        assert bench.pool.slots_out == 1
        bench.hand_over(other)
        await until(other, RUNNING)
        assert bench.pool.try_take_slot() is None
        await bench.pool.wait_empty()
        assert [each.status for each in (first, second, other)] == [COMPLETED] * 3
        slots = [run.env["MULTICA_TASK_SLOT"] for run in bench.agents.runs]
        assert slots == ["0", "1", "0"]


async def test_a_failed_word_does_not_end_the_wait(
    autojump_clock: Clock, home: Path, project: Path
) -> None:
    async with open_bench(home, LONG) as bench:
        first, second = (bench.add(name, **directory(project, home)) for name in ("1", "2"))
        bench.server.fail_always(".*/wait-local-directory", REFUSE)
        bench.hand_over(first)
        await until(first, RUNNING)
        await bench.run(second)
        assert [first.status, second.status] == [COMPLETED, COMPLETED]


async def test_other_directories_do_not_wait(
    autojump_clock: Clock, home: Path, project: Path
) -> None:
    other = project.with_name("other")
    other.mkdir()
    async with open_bench(home, LONG) as bench:
        first = bench.add("1", **directory(project, home))
        second = bench.add("2", **directory(other, home))
        bench.hand_over(first)
        bench.hand_over(second)
        await until(second, RUNNING)
        assert first.status == RUNNING


async def test_a_cancel_while_waiting_ends_it_silently(
    autojump_clock: Clock, home: Path, project: Path
) -> None:
    async with open_bench(home, LONG) as bench:
        first, second, third = (bench.add(n, **directory(project, home)) for n in "123")
        for task in (first, second, third):
            bench.hand_over(task)
            await until(task, RUNNING if task is first else WAITING)
        bench.server.cancel_task(second.id)
        with trio.fail_after(10):
            while second.id in bench.pool.active:  # noqa: ASYNC110 - virtual time
                await trio.sleep(1)
        assert first.status == RUNNING
        assert second.status == CANCELLED
        assert "fail" not in bench.routes(second)
        await bench.pool.wait_empty()
        assert third.status == COMPLETED
        assert len(bench.agents.runs) == 2


async def test_a_stop_while_waiting_hands_the_task_back(
    autojump_clock: Clock, home: Path, project: Path
) -> None:
    async with open_bench(home, LONG) as bench:
        first, second = (bench.add(name, **directory(project, home)) for name in ("1", "2"))
        bench.hand_over(first)
        await until(first, RUNNING)
        bench.hand_over(second)
        await until(second, WAITING)
        bench.pool.stop(5.0)
        await bench.pool.wait_empty()
        assert second.status == FAILED
        assert second.failure_reason == "runtime_recovery", "so that it is tried again"
        assert content(project) == {"CLAUDE.md": b"rules"}


async def test_the_directory_is_looked_at_again_after_the_wait(
    autojump_clock: Clock, home: Path, project: Path
) -> None:
    def move() -> None:
        project.rename(project.with_name("gone"))

    gone = Script(steps=(50.0, move))
    async with open_bench(home, gone) as bench:
        first, second = (bench.add(name, **directory(project, home)) for name in ("1", "2"))
        bench.hand_over(first)
        await until(first, RUNNING)
        await bench.run(second)
        assert second.status == FAILED
        assert second.failure_reason == "local_directory_error"
        assert second.result is not None
        assert "does not exist" in second.result["error"]
        assert len(bench.agents.runs) == 1


async def test_a_link_that_leads_elsewhere_after_the_wait_is_an_error(
    autojump_clock: Clock, home: Path, project: Path
) -> None:
    link, other = home / "link", project.with_name("other")
    other.mkdir()
    link.symlink_to(project)

    def turn() -> None:
        link.unlink()
        link.symlink_to(other)

    async with open_bench(home, Script(steps=(50.0, turn))) as bench:
        first, second = (bench.add(name, **directory(link, home)) for name in ("1", "2"))
        bench.hand_over(first)
        await until(first, RUNNING)
        await bench.run(second)
        assert second.failure_reason == "local_directory_error"


async def test_what_cannot_be_worked_in_fails_with_its_reason(
    autojump_clock: Clock, home: Path, project: Path
) -> None:
    async with open_bench(home) as bench:
        for name, folder in (("a", Path("/")), ("b", project / "none"), ("c", home / "workspaces")):
            if name == "c":
                folder.mkdir(exist_ok=True)
            task = await bench.run(bench.add(name, **directory(folder, home)))
            assert task.status == FAILED
            assert task.failure_reason == "local_directory_error"
            assert "start" not in bench.routes(task)
        assert bench.agents.runs == []


async def test_only_what_the_machines_owner_allowed_is_worked_in(
    autojump_clock: Clock, home: Path, project: Path
) -> None:
    inside, beside = project / "src", project.with_name("project-2")
    link = project / "out"
    inside.mkdir()
    beside.mkdir()
    link.symlink_to(beside)
    secret = home / "secrets"
    async with open_bench(home) as bench:
        for name, folder in (("a", project), ("b", beside), ("c", home / "none")):
            task = await bench.run(bench.add(name, **named(folder, home)))
            assert task.failure_reason == "local_directory_error"
            assert task.result is not None
            assert f"bullpen daemon allow-dir {folder}" in task.result["error"]
        allow_directory(Home(home), project)
        for name, folder in (("d", beside), ("e", link), ("f", secret), ("g", project / "..")):
            task = await bench.run(bench.add(name, **named(folder, home)))
            assert task.failure_reason == "local_directory_error", folder
        assert bench.agents.runs == []
        for name, folder in (("h", project), ("i", inside)):
            assert (await bench.run(bench.add(name, **named(folder, home)))).status == COMPLETED
        forget_directory(Home(home), project)
        task = await bench.run(bench.add("j", **named(project, home)))
        assert task.failure_reason == "local_directory_error"
        # what cannot be read allows nothing
        Home(home).directories_file.write_text("{")
        task = await bench.run(bench.add("k", **named(project, home)))
        assert task.failure_reason == "local_directory_error"


async def test_somebody_elses_directory_changes_nothing(
    autojump_clock: Clock, home: Path, project: Path
) -> None:
    fields = directory(project, home)
    fields["project_resources"][0]["resource_ref"]["daemon_id"] = uid("another machine")
    async with open_bench(home) as bench:
        await bench.run(bench.add(**fields))
        assert bench.agents.runs[0].cwd.name == "workdir"


async def test_a_new_daemon_gives_back_what_the_last_one_held(
    autojump_clock: Clock, home: Path, project: Path
) -> None:
    from daemon.workdir.borrowed import Borrowed
    from daemon.workdir.sidecars import Sidecars

    record = make_config(home).home.borrowed
    loan = Borrowed(record, uid("t"), project, home / "env")
    planned = Sidecars(project)
    planned.write(project / ".agent_context/issue_context.md", "x")
    loan.put(planned, "CLAUDE.md", None)
    assert loan.write_brief("CLAUDE.md", "brief")
    assert content(project) != {"CLAUDE.md": b"rules"}
    async with open_bench(home):
        assert content(project) == {"CLAUDE.md": b"rules"}
        assert list(record.iterdir()) == []


async def test_git_is_asked_only_for_so_long(
    autojump_clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hangs(*_: Any, **__: Any) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(trio, "run_process", hangs)
    assert await local.find_excludes(tmp_path, {}) is None
    assert trio.current_time() < 60
    await wait_all_tasks_blocked()


async def test_the_disk_of_a_directory_never_holds_up_the_loop(
    autojump_clock: Clock, home: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be a network's: looking at it and filling it are work for threads."""
    done: list[str] = []

    async def in_thread(work: Any) -> Any:
        await trio.sleep(1)
        done.append(getattr(getattr(work, "func", work), "__name__", ""))
        return work()

    monkeypatch.setattr("daemon.threads.in_thread", in_thread)
    async with open_bench(home, LONG) as bench:
        first, second = (bench.add(name, **directory(project, home)) for name in ("1", "2"))
        bench.hand_over(first)
        await until(first, RUNNING)
        assert {"check_named", "prepare"} <= set(done)
        bench.hand_over(second)
        await until(second, WAITING)
        bench.server.cancel_task(second.id)
        await bench.pool.wait_empty()
        assert [first.status, second.status] == [COMPLETED, CANCELLED]
        assert content(project) == {"CLAUDE.md": b"rules"}
