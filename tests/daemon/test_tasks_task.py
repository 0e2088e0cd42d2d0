"""The task pipeline against the fake server, on virtual time."""

from __future__ import annotations

import errno
import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock as Clock

from daemon.agents.contract import AgentError, AgentResult, Program, Tokens
from daemon.allowed import allow_directory
from daemon.repos.desk import open_desk
from daemon.tasks import outcome, trouble
from daemon.tasks.backlog import Backlog
from daemon.tasks.journal import Journal, JournalError
from daemon.tasks.pool import TaskPool
from daemon.tasks.task import TaskRunner
from daemon.workdir.borrowed import Borrowed
from shared import failure
from shared.failure import RETRYABLE
from shared.home import Home
from shared.wire.task import CANCELLED, COMPLETED, DISPATCHED, FAILED, RUNNING
from tests.conftest import ExpectedErrors
from tests.daemon.tasks_support import (
    RUNTIME,
    USAGE,
    Agents,
    Bench,
    Script,
    open_bench,
    status,
    tell_journals,
    text,
    thinking,
    tool_result,
    tool_use,
)
from tests.support.fake_server import client_of, make_config, open_fake_server, uid
from tests.support.network import HANG, LOSE_REQUEST, LOSE_RESPONSE, REFUSE, answer

pytestmark = pytest.mark.fast

UNAVAILABLE = answer(503, '{"error":"unavailable"}')

WORK = Script(
    steps=(
        status("s1"),
        thinking("hm"),
        text("Let me "),
        text("look."),
        tool_use("c1", command="ls"),
        3.0,
        tool_result("c1", "a.txt"),
        text("Done."),
    )
)


async def test_happy_path_in_order(autojump_clock: Clock, tmp_path: Path) -> None:
    async with open_bench(tmp_path, WORK) as bench:
        task = await bench.run(bench.add())
        routes = bench.routes(task)
        assert [call for call in routes if call not in ("session", "messages")] == [
            "start",
            "progress",
            "usage",
            "progress",
            "status",
            "complete",
        ]
        last_messages = len(routes) - 1 - routes[::-1].index("messages")
        assert last_messages < routes.index("usage"), "the transcript comes before the report"
        assert task.status == COMPLETED
        work_dir = bench.agents.runs[0].cwd
        assert task.result == {"output": "done", "session_id": "s1", "work_dir": str(work_dir)}
        assert task.session == {"session_id": "s1", "work_dir": str(work_dir)}
        assert task.usage["claude", "opus"]["input_tokens"] == 10
        assert [(seq, row["type"]) for seq, row in sorted(task.rows.items())] == [
            (1, "thinking"),
            (2, "text"),
            (3, "tool_use"),
            (4, "tool_result"),
            (5, "text"),
        ]
        assert task.rows[2]["content"] == "Let me look."
        assert task.rows[3]["input"] == {"command": "ls"}
        assert task.rows[4] == {"seq": 4, "type": "tool_result", "tool": "Bash", "output": "a.txt"}
        assert bench.journals == []


async def test_directory_and_brief_are_there_before_the_agent_and_the_start(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    async with open_bench(tmp_path) as bench:
        task = await bench.run(bench.add())
        [run] = bench.agents.runs
        assert (
            run.cwd == tmp_path / "workspaces" / task.claimed["workspace_id"] / task.id / "workdir"
        )
        assert "MULTICA-RUNTIME" in (run.cwd / "CLAUDE.md").read_text()
        assert (run.cwd / ".agent_context" / "issue_context.md").exists()
        assert task.claimed["issue_id"] in run.prompt
        assert run.env["MULTICA_TOKEN"] == task.claimed["auth_token"]
        assert run.env["PATH"] == f"{tmp_path / 'bin'}:/bin"


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"auth_token": ""}, "server did not provide task-scoped auth token"),
        ({"auth_token": "mul_" + "0" * 40}, "server provided non-task-scoped auth token"),
        ({"workspace_id": ""}, "server sent a task without a workspace"),
        ({"workspace_id": "../../x"}, "not an id, so not a directory name: ../../x"),
    ],
)
async def test_refused_tasks_never_start_an_agent(
    autojump_clock: Clock, tmp_path: Path, changes: dict[str, str], error: str
) -> None:
    async with open_bench(tmp_path) as bench:
        task = await bench.run(bench.add(**changes))
        assert bench.agents.runs == []
        assert "start" not in bench.routes(task)
        assert task.status == FAILED
        assert task.result is not None
        assert task.result["error"] == error


async def test_an_agent_that_cannot_start_is_reported(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    async with open_bench(tmp_path) as bench:
        bench.agents.refuse = AgentError("claude: executable not found")
        task = await bench.run(bench.add())
        assert task.status == FAILED
        assert task.failure_reason == "agent_error.runtime_missing_executable"


@pytest.mark.parametrize(
    "met",
    [
        AgentError("claude executable not found", passing=True),
        OSError(errno.EMFILE, "too many open files"),
        OSError(errno.ENOMEM, "cannot allocate memory"),
        OSError(errno.EAGAIN, "resource temporarily unavailable"),
    ],
)
async def test_trouble_of_this_machine_that_passes_is_waited_for_and_said(
    autojump_clock: Clock, tmp_path: Path, met: Exception
) -> None:
    async with open_bench(tmp_path) as bench:
        bench.agents.refuse = met
        bench.hand_over(task := bench.add())
        await trio.sleep(30)
        assert task.status == RUNNING
        said = [call.body["summary"] for call in bench.server.requests(".*/progress")]
        assert any(str(met) in summary for summary in said)
        bench.agents.refuse = None
        await trio.sleep(10)
        assert task.status == COMPLETED


async def test_trouble_that_stays_fails_the_task_so_that_it_is_tried_again(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    async with open_bench(tmp_path) as bench:
        bench.agents.refuse = AgentError("claude executable not found", passing=True)
        task = await bench.run(bench.add(), within=trouble.PATIENCE + 5)
        assert task.status == FAILED
        assert task.failure_reason in RETRYABLE
        assert task.result is not None
        assert "claude executable not found" in task.result["error"]


async def test_too_many_open_files_do_not_lose_a_task_before_it_begins(
    autojump_clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening, failures = os.open, [errno.EMFILE, errno.ENFILE]

    def busy(path: Any, *args: Any, **kwargs: Any) -> int:
        if failures and str(path).endswith(".jsonl"):
            raise OSError(failures.pop(), "too many open files")
        return opening(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", busy)
    async with open_bench(tmp_path) as bench:
        task = await bench.run(bench.add())
        assert task.status == COMPLETED
    assert not failures


@pytest.mark.parametrize(
    "number", [errno.EMFILE, errno.ENOSPC, errno.EDQUOT, errno.EAGAIN, errno.ENOMEM]
)
@pytest.mark.parametrize("mends", [True, False])
async def test_a_directory_that_cannot_be_prepared_just_now_is_prepared_later(
    autojump_clock: Clock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    mends: bool,
) -> None:
    making, ill = os.mkdir, True

    def busy(path: Any, *args: Any, **kwargs: Any) -> None:
        if ill and str(path).endswith("/logs"):  # in the middle of it
            raise OSError(number, os.strerror(number))
        making(path, *args, **kwargs)

    monkeypatch.setattr(os, "mkdir", busy)
    async with open_bench(tmp_path) as bench:
        bench.hand_over(task := bench.add())
        await trio.sleep(20)
        assert task.status == DISPATCHED
        said = [call.body["summary"] for call in bench.server.requests(".*/progress")]
        assert any(os.strerror(number) in summary for summary in said)
        ill = not mends
        await trio.sleep(trouble.PATIENCE)
        assert task.status == (COMPLETED if mends else FAILED)
        assert mends or task.failure_reason in RETRYABLE


async def test_a_users_directory_is_given_back_between_attempts_to_prepare_it(
    autojump_clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, project = tmp_path / "home", tmp_path / "project"
    home.mkdir()
    project.mkdir()
    (project / "CLAUDE.md").write_bytes(b"rules")
    putting, ill = Borrowed.put, [errno.ENOSPC, errno.EMFILE]

    def put(self: Borrowed, *args: Any) -> None:
        putting(self, *args)
        if ill:
            raise OSError(number := ill.pop(), os.strerror(number))

    monkeypatch.setattr(Borrowed, "put", put)
    async with open_bench(home) as bench:
        ref = {"local_path": str(project), "daemon_id": bench.config.daemon_id}
        resource = {"id": uid("r"), "resource_type": "local_directory", "resource_ref": ref}
        allow_directory(Home(home), project)
        bench.hand_over(task := bench.add(project_id=uid("p"), project_resources=[resource]))
        with trio.fail_after(100):
            while not bench.server.requests(".*/progress"):  # noqa: ASYNC110 - virtual time
                await trio.sleep(0.1)
        assert len(ill) == 1
        assert [path.name for path in project.rglob("*")] == ["CLAUDE.md"]  # noqa: ASYNC240
        await bench.pool.wait_empty()
        assert task.status == COMPLETED
    assert [path.name for path in project.rglob("*")] == ["CLAUDE.md"]  # noqa: ASYNC240
    assert (project / "CLAUDE.md").read_bytes() == b"rules"  # noqa: ASYNC240


async def test_a_result_no_server_takes_is_reported_in_part_and_kept_whole(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    whole = "line of a very long answer\n" * 800_000
    script = Script(result=AgentResult(status="completed", output=whole, session_id="s1"))
    async with open_bench(tmp_path, script) as bench:
        task = await bench.run(bench.add())
        assert task.status == COMPLETED
        assert task.result is not None
        told = task.result["output"]
        assert len(told) <= outcome.RESULT_LIMIT
        assert whole.startswith(told.split("\n\n[Cut here")[0])
        kept = Path(told.split("the whole is in ")[1].split(" on the machine")[0])
        assert kept.read_text() == whole  # noqa: ASYNC240 - virtual time


async def test_a_result_too_large_for_the_way_is_told_in_less_and_less(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    script = Script(result=AgentResult(status="completed", output="x" * 900_000, session_id="s1"))
    async with open_bench(tmp_path, script) as bench:
        no = answer(413, "<html>413 Request Entity Too Large</html>")
        bench.server.fail_next("POST .*/complete", no, no)
        task = await bench.run(bench.add(), within=2)
        assert task.status == COMPLETED
        assert task.result is not None
        assert 60_000 < len(task.result["output"]) <= 64 * 1024
        assert "[Cut here" in task.result["output"]


async def test_a_stranger_neither_confirms_nor_refuses_a_report(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    """A proxy answers `404 page not found` while a task reports, then `{}`, then with a page."""
    strangers = [
        answer(404, "404 page not found"),
        answer(200, "{}"),
        answer(403, "<html>"),
        answer(302),
    ]
    async with open_bench(tmp_path, Script(steps=(text("a"), 1.0, text("b")))) as bench:
        bench.server.fail_next("POST .*/usage", strangers[0])
        bench.server.fail_next("POST .*/complete", *strangers[1:3])
        bench.server.fail_next("POST .*/messages", *strangers)
        task = await bench.run(bench.add())
        assert task.status == COMPLETED
        assert task.usage
        assert task.seqs == [1, 2]
        assert "fail" not in bench.routes(task)


async def test_usage_is_with_the_server_before_the_result(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    """Or the issue's page would show an ended run without its cost."""
    async with open_bench(tmp_path) as bench:
        bench.server.fail_next("POST .*/usage", answer(503))
        task = await bench.run(bench.add())
        *_, told = bench.server.times("POST .*/usage")
        [completed] = bench.server.times("POST .*/complete")
        assert told <= completed
        assert len(bench.server.times("POST .*/usage")) == 2
        assert task.usage


async def test_the_last_report_is_made_even_when_everything_is_cancelled(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    async with open_fake_server() as server:
        config = make_config(tmp_path)
        async with client_of(server, config) as client, trio.open_nursery() as tasks:
            backlog = Backlog(client, config.home.journals)
            agents = Agents(Script(steps=(text("a"), 1e6)))
            runner = TaskRunner(
                config, client, open_agent=agents.open, backlog=backlog, env={"PATH": "/bin"}
            )
            pool = TaskPool(1, tasks, runner.run, backlog.owes)
            bench = Bench(server, client, config, pool, agents, runner, backlog)
            bench.hand_over(task := bench.add())
            await trio.sleep(5)
            assert task.status == RUNNING
            tasks.cancel_scope.cancel()
    assert task.status == FAILED
    assert task.failure_reason == "runtime_recovery"
    assert task.seqs == [1]


async def test_the_outcome_is_on_the_disk_itself_before_it_is_told(
    autojump_clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[float, bool]] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        journal = bench.journals[0].read_bytes() if bench.journals else b""
        synced.append((trio.current_time(), b'"outcome"' in journal))
        fsync(descriptor)

    async with open_bench(tmp_path) as bench:
        monkeypatch.setattr(os, "fsync", note)
        await bench.run(bench.add())
        [completed] = bench.server.times("POST .*/complete")
    assert any(at <= completed and decided for at, decided in synced)


async def test_the_secret_of_checkouts_reaches_no_transcript(
    autojump_clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "checkout-secret-of-this-very-task-0123456789"
    monkeypatch.setattr("daemon.tasks.task.mint_secret", lambda: secret)
    script = Script(
        steps=(text(f"my secret is {secret}"),),
        result=AgentResult(status="completed", output=f"it was {secret}", session_id="s1"),
    )
    async with open_bench(tmp_path, script) as bench:
        async with open_desk(bench.client, bench.config.workspaces_root) as desk:
            bench.runner.desk = desk
            task = await bench.run(bench.add())
        assert secret in bench.agents.runs[0].env.values()
        assert secret not in json.dumps([task.rows, task.result])


async def test_the_reason_of_a_failure_is_never_any_exceptions_own(
    autojump_clock: Clock, tmp_path: Path, error_log: ExpectedErrors
) -> None:
    async with open_bench(tmp_path) as bench:
        bench.agents.refuse = UnicodeEncodeError("utf-8", "x", 0, 1, "surrogates not allowed")
        task = await bench.run(bench.add())
        error_log.expect("task failed unexpectedly")
        assert task.failure_reason in failure.REASONS


async def test_a_bug_in_the_pipeline_fails_the_task_and_is_logged(
    autojump_clock: Clock, tmp_path: Path, error_log: ExpectedErrors
) -> None:
    async with open_bench(tmp_path) as bench:
        bench.agents.refuse = ZeroDivisionError("division by zero")
        task = await bench.run(bench.add())
        error_log.expect("task failed unexpectedly")
        assert task.status == FAILED


# -- watchdog and wall clock


async def test_silence_is_ended_exactly_at_the_idle_budget(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    script = Script(steps=(text("a"), 100.0, text("b"), 1e9), last_words=(text("bye"),))
    async with open_bench(tmp_path, script, idle_watchdog=120.0) as bench:
        task = bench.add()
        start = trio.current_time()
        await bench.run(task)
        [at] = bench.server.times("POST .*/fail")
        assert at - start == pytest.approx(100 + 120 + 1, abs=0.01), "1 s is the agent's stop"
        assert task.failure_reason == "idle_watchdog"
        assert task.result is not None
        assert "120 seconds" in task.result["error"]
        assert task.result["session_id"] == "s1"
        assert ("claude", "opus") in task.usage
        assert [row["content"] for row in task.rows.values()] == ["a", "b", "bye"]


async def test_an_open_tool_raises_the_budget_and_its_result_lowers_it(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    script = Script(steps=(tool_use("c1"), 1000.0, tool_result("c1"), 1e9))
    async with open_bench(tmp_path, script, idle_watchdog=60.0, tool_watchdog=2000.0) as bench:
        task = bench.add()
        start = trio.current_time()
        await bench.run(task)
        [at] = bench.server.times("POST .*/fail")
        assert at - start == pytest.approx(1000 + 60 + 1, abs=0.01)


async def test_a_stuck_tool_is_named(autojump_clock: Clock, tmp_path: Path) -> None:
    script = Script(steps=(tool_use("c1", "Sleep"), 1e9))
    async with open_bench(tmp_path, script, idle_watchdog=60.0, tool_watchdog=300.0) as bench:
        task = await bench.run(bench.add())
        assert task.result is not None
        assert "Sleep" in task.result["error"]
        assert "300 seconds" in task.result["error"]


async def test_without_an_idle_window_nothing_fires(autojump_clock: Clock, tmp_path: Path) -> None:
    script = Script(steps=(3000.0, text("late")))
    async with open_bench(tmp_path, script, idle_watchdog=0.0) as bench:
        task = await bench.run(bench.add())
        assert task.status == COMPLETED


async def test_the_wall_clock_is_a_timeout(autojump_clock: Clock, tmp_path: Path) -> None:
    script = Script(steps=tuple([text("x"), 10.0] * 1000))
    async with open_bench(tmp_path, script, agent_timeout=95.0) as bench:
        task = bench.add()
        start = trio.current_time()
        await bench.run(task)
        [at] = bench.server.times("POST .*/fail")
        assert at - start == pytest.approx(96, abs=0.1)
        assert task.failure_reason == "timeout"
        assert ("claude", "opus") in task.usage


# -- the server ends the task


@pytest.mark.parametrize("end", ["cancelled", "gone", "failed"])
async def test_an_ended_task_stops_the_agent_and_reports_usage_only(
    autojump_clock: Clock, tmp_path: Path, end: str
) -> None:
    script = Script(steps=(text("working"), 1e9))
    async with open_bench(tmp_path, script) as bench:
        task = bench.add()
        start = trio.current_time()
        bench.hand_over(task)
        await trio.sleep(12)
        if end == "gone":
            del bench.server.tasks[task.id]
        else:
            task.status = end
        await bench.pool.wait_empty()
        assert trio.current_time() - start < 12 + 5 + 1.5
        routes = bench.routes(task)
        assert "complete" not in routes
        assert "fail" not in routes
        assert routes.count("usage") == 1
        assert bench.journals == []


async def test_a_cancel_noticed_at_the_last_look_withdraws_the_report(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    async with open_bench(tmp_path) as bench:
        task = bench.add()

        def cancel() -> None:
            task.status = CANCELLED

        bench.agents._scripts = [Script(steps=(cancel,))]
        await bench.run(task)
        assert task.status == CANCELLED
        assert "complete" not in bench.routes(task)
        assert bench.journals == []


# -- start


async def test_a_lost_answer_to_start_is_found_out(autojump_clock: Clock, tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        bench.server.fail_next("POST .*/start", LOSE_RESPONSE)
        task = await bench.run(bench.add())
        assert task.status == COMPLETED
        assert bench.routes(task).count("start") == 2


async def test_start_waits_for_the_server_and_keeps_the_lease(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    async with open_bench(tmp_path) as bench:
        task = bench.add()
        bench.server.fail_always("POST .*/start", UNAVAILABLE)
        bench.hand_over(task)
        await trio.sleep(100)
        assert bench.server.times("POST .*/prepare-lease") == pytest.approx(
            [trio.current_time() - 100 + 15 * n for n in range(1, 7)], abs=0.1
        )
        bench.server.fail_always("POST .*/start", None)
        await bench.pool.wait_empty()
        assert task.status == COMPLETED


async def test_a_start_the_server_refuses_fails_the_task(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    async with open_bench(tmp_path) as bench:
        bench.server.fail_next("POST .*/start", answer(400, '{"error":"start task: no rows"}'))
        task = await bench.run(bench.add())
        assert bench.agents.runs == []
        assert task.status == FAILED
        assert task.result is not None
        assert task.result["error"].startswith("start task failed: ")


async def test_a_task_cancelled_before_its_start_is_left_alone(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    async with open_bench(tmp_path) as bench:
        task = bench.add()
        task.status = CANCELLED
        await bench.run(task)
        assert bench.agents.runs == []
        assert not {"complete", "fail"} & set(bench.routes(task))


# -- reporting


async def test_completion_survives_a_storm_longer_than_the_schedule(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    async with open_bench(tmp_path) as bench:
        task = bench.add()
        bench.server.fail_always("POST .*/(complete|usage|messages)", UNAVAILABLE)
        bench.hand_over(task)
        await trio.sleep(1000)
        assert task.status == RUNNING
        assert len(bench.journals) == 1
        bench.server.fail_always("POST .*/(complete|usage|messages)", None)
        await tell_journals(bench.client, bench.config.home.journals)
        assert task.status == COMPLETED
        assert "fail" not in bench.routes(task), "a success never becomes a failure"
        assert ("claude", "opus") in task.usage
        assert bench.journals == []


@pytest.mark.parametrize("fault", [LOSE_REQUEST, LOSE_RESPONSE, REFUSE, HANG, UNAVAILABLE])
async def test_a_single_fault_on_the_report_is_retried_after_4_s(
    autojump_clock: Clock, tmp_path: Path, fault: object
) -> None:
    async with open_bench(tmp_path) as bench:
        bench.server.fail_next("POST .*/complete", fault)  # type: ignore[arg-type]
        task = await bench.run(bench.add())
        assert task.status == COMPLETED
        first, second = bench.server.times("POST .*/complete")
        waited = 30 if fault is HANG else 0
        assert 3.5 <= second - first - waited <= 4.5


async def test_a_completion_refused_for_good_becomes_a_failure_that_says_so(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    async with open_bench(tmp_path) as bench:
        bench.server.fail_always("POST .*/complete", answer(400, '{"error":"complete task: no"}'))
        task = await bench.run(bench.add())
        assert task.status == FAILED
        assert task.result is not None
        assert task.result["error"].startswith("complete task failed: ")
        assert task.result["session_id"] == "s1"


async def test_secrets_reach_neither_the_transcript_nor_the_report(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    secret = "hunter2hunter2"
    token = "mat_" + "7" * 40
    script = Script(
        steps=(text(f"key {secret}"), tool_use("c1", command=f"echo {token}"), 1.0),
        result=AgentResult(status="completed", output=f"it is {secret}", session_id="s1"),
    )
    async with open_bench(tmp_path, script) as bench:
        task = bench.add(auth_token=token)
        task.claimed["agent"]["custom_env"] = {"KEY": secret}
        await bench.run(task)
        assert secret not in str(task.rows)
        assert token not in str(task.rows)
        assert task.result is not None
        assert secret not in task.result["output"]
        assert bench.agents.runs[0].env["KEY"] == secret


# -- resume


async def _prior(home: Path, name: str = "prior") -> Path:
    work_dir = home / "workspaces" / "11111111-1111-4111-8111-111111111111" / uid(name) / "workdir"
    work_dir.mkdir(parents=True)
    await trio.lowlevel.checkpoint()
    return work_dir


async def test_a_session_is_resumed_in_its_directory(autojump_clock: Clock, tmp_path: Path) -> None:
    work_dir = await _prior(tmp_path)
    (work_dir / "left.txt").write_text("work of the first run")
    async with open_bench(tmp_path) as bench:
        await bench.run(bench.add(prior_session_id="s0", prior_work_dir=str(work_dir)))
        [run] = bench.agents.runs
        assert run.resume_session_id == "s0"
        assert run.cwd == work_dir
        assert (work_dir / "left.txt").exists()


@pytest.mark.parametrize("place", ["missing", "foreign", "in use"])
async def test_another_directory_means_no_session(
    autojump_clock: Clock, tmp_path: Path, place: str
) -> None:
    work_dir = await _prior(tmp_path)
    async with open_bench(tmp_path) as bench:
        if place == "missing":
            work_dir.rmdir()
        if place == "foreign":
            work_dir = tmp_path / "src" / "workdir"
            work_dir.mkdir(parents=True)
        if place == "in use":
            bench.runner.live._roots.add(work_dir.parent)
        task = await bench.run(bench.add(prior_session_id="s0", prior_work_dir=str(work_dir)))
        [run] = bench.agents.runs
        assert run.resume_session_id == ""
        assert run.cwd.parent.name == task.id
        assert not (work_dir / "CLAUDE.md").exists()


async def test_a_session_that_cannot_be_resumed_is_run_afresh_once(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    work_dir = await _prior(tmp_path)
    dead = AgentResult(
        status="failed", error="No conversation found", usage={"opus": Tokens(input=1)}
    )
    async with open_bench(
        tmp_path, Script(steps=(text("one"),), result=dead), Script(steps=(text("two"),))
    ) as bench:
        task = bench.add(
            prior_session_id="s0",
            prior_work_dir=str(work_dir),
            kind="comment",
            trigger_comment_id=uid("comment"),
            trigger_thread_id=uid("thread"),
        )
        await bench.run(task)
        assert [run.resume_session_id for run in bench.agents.runs] == ["s0", ""]
        resumed, fresh = (run.prompt for run in bench.agents.runs)
        assert "You remember your last session" in resumed
        assert "You remember your last session" not in fresh
        assert task.status == COMPLETED
        assert task.usage["claude", "opus"]["input_tokens"] == 1 + USAGE["opus"].input
        assert [row["content"] for _, row in sorted(task.rows.items())] == ["one", "two"]


async def test_a_resumed_run_that_fails_with_a_session_is_not_repeated(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    work_dir = await _prior(tmp_path)
    failed = AgentResult(status="failed", error="429 overloaded", session_id="s0")
    async with open_bench(tmp_path, Script(result=failed)) as bench:
        task = await bench.run(bench.add(prior_session_id="s0", prior_work_dir=str(work_dir)))
        assert len(bench.agents.runs) == 1
        assert task.failure_reason == "agent_error.provider_capacity_or_rate_limit"


# -- stopping the daemon


async def test_a_stop_cuts_the_task_at_the_deadline_and_still_reports_it(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    script = Script(steps=(text("a"), 1e9), last_words=(text("z"),))
    async with open_bench(tmp_path, script) as bench:
        task = bench.add()
        bench.hand_over(task)
        await trio.sleep(3)
        start = trio.current_time()
        bench.pool.stop(10)
        await bench.pool.wait_empty()
        assert trio.current_time() - start == pytest.approx(11, abs=0.1)
        assert task.status == FAILED
        assert task.failure_reason == "runtime_recovery", "so that the server tries again"
        assert task.result is not None
        assert task.result["session_id"] == "s1"
        assert [row["content"] for row in task.rows.values()] == ["a", "z"]
        assert ("claude", "opus") in task.usage


async def test_a_stop_during_an_outage_is_bounded_and_leaves_the_journal(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    async with open_bench(tmp_path, WORK) as bench:
        task = bench.add()
        bench.server.fail_always("POST .*/(messages|usage|complete|fail)", HANG)
        bench.hand_over(task)
        await trio.sleep(20)
        start = trio.current_time()
        bench.pool.stop(5)
        await bench.pool.wait_empty()
        assert trio.current_time() - start <= 5 + 10 + 8
        assert len(bench.journals) == 1
        assert task.status == RUNNING


@pytest.mark.parametrize("appends", range(12))
async def test_a_disk_that_breaks_fails_the_task_and_nothing_else(
    autojump_clock: Clock,
    tmp_path: Path,
    error_log: ExpectedErrors,
    monkeypatch: pytest.MonkeyPatch,
    appends: int,
) -> None:
    left = appends
    append = Journal._append

    def failing(self: Journal, kind: str, value: object) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise JournalError("journal: Input/output error")
        append(self, kind, value)

    monkeypatch.setattr(Journal, "_append", failing)
    async with open_bench(tmp_path, WORK) as bench:
        task = await bench.run(bench.add())
        assert task.status in (COMPLETED, FAILED), "the server is told all the same"
        if task.status == FAILED:
            assert task.result is not None
            assert "Input/output error" in task.result["error"]
        assert task.seqs == list(range(1, len(task.rows) + 1))
    error_log.records.clear()


# -- given up by the server while this machine was out of reach


async def test_a_task_given_up_goes_on_when_the_server_can_be_reached(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    script = Script(steps=(text("a"), 60.0, text("b")))
    async with open_bench(tmp_path, script) as bench:
        task = bench.add()
        bench.hand_over(task)
        await trio.sleep(10)
        bench.server.give_up(task.id)
        await trio.sleep(10)
        assert task.status == RUNNING
        await bench.pool.wait_empty()
        assert task.status == COMPLETED
        assert [task.rows[seq]["content"] for seq in task.seqs] == ["a", "b"]
        assert bench.routes(task).count("go-on") == 1


async def test_a_task_given_up_at_its_very_end_is_reported(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    async with open_bench(tmp_path, Script(steps=(text("a"), 1.0))) as bench:
        task = bench.add()
        bench.hand_over(task)
        await trio.sleep(0.5)
        bench.server.give_up(task.id)
        await bench.pool.wait_empty()
        assert task.status == COMPLETED


async def test_a_task_given_up_ends_when_another_attempt_has_begun(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    async with open_bench(tmp_path, Script(steps=(text("a"), 1e6))) as bench:
        task = bench.add()
        bench.hand_over(task)
        await trio.sleep(1)
        bench.server.give_up(task.id)
        task.replaced = True
        with trio.fail_after(60):
            await bench.pool.wait_empty()
        assert task.status == FAILED
        assert not {"complete", "fail"} & set(bench.routes(task))


@pytest.mark.parametrize("fault", [LOSE_REQUEST, LOSE_RESPONSE, UNAVAILABLE, answer(401)])
async def test_taking_a_task_back_is_tried_again(
    autojump_clock: Clock, tmp_path: Path, fault: object
) -> None:
    async with open_bench(tmp_path, Script(steps=(text("a"), 60.0))) as bench:
        task = bench.add()
        bench.hand_over(task)
        await trio.sleep(1)
        bench.server.fail_next(".*/go-on", fault, fault)  # type: ignore[arg-type]
        bench.server.give_up(task.id)
        await bench.pool.wait_empty()
        assert task.status == COMPLETED


# -- the numbers of spec 03 §30


async def test_the_server_is_asked_every_5_s_whether_the_task_still_counts(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    async with open_bench(tmp_path, Script(steps=(33.0,))) as bench:
        began = trio.current_time()
        await bench.run(bench.add())
        *looks, last = [at - began for at in bench.server.times("GET .*/status")]
        assert looks == pytest.approx([5, 10, 15, 20, 25, 30], abs=0.1)
        assert last == pytest.approx(33, abs=0.1), "and once more before the report"


async def test_a_report_is_tried_again_on_the_schedule_and_then_left_to_the_backlog(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    async with open_bench(tmp_path) as bench:
        bench.server.fail_always("POST .*/complete", UNAVAILABLE)
        await bench.run(bench.add(), within=130)
        tried = bench.server.times("POST .*/complete")
        gaps = [after - before for before, after in pairwise(tried)]
        assert len(gaps) in {4, 5}, "the last one is due when the patience ends"
        assert gaps == pytest.approx([4, 8, 16, 32, 64][: len(gaps)], rel=0.11)
        assert bench.backlog.count == 1


@pytest.mark.parametrize(
    ("level", "known", "told"), [("high", True, "high"), ("odd", False, ""), ("", False, "")]
)
async def test_only_a_level_of_thinking_the_program_knows_is_passed_on(
    autojump_clock: Clock, tmp_path: Path, level: str, known: bool, told: str
) -> None:
    asked: list[tuple[str, str, str]] = []

    async def takes_level(program: Program, model: str, wanted: str) -> bool:
        await trio.sleep(20)  # its catalogue is asked for, and the lease is kept meanwhile
        asked.append((program.path, model, wanted))
        return known

    async with open_bench(tmp_path, models={"claude": "mine"}) as bench:
        bench.runner.takes_level = takes_level
        task = bench.add()
        task.claimed["agent"] = {"id": "a", "name": "A", "thinking_level": level}
        await bench.run(task)
        assert [(run.thinking_level, run.model) for run in bench.agents.runs] == [(told, "mine")]
        assert asked == ([(RUNTIME.program.path, "mine", level)] if level else [])
        assert ("prepare-lease" in bench.routes(task)) is bool(level)
