"""One task from hand-over to confirmed report (spec 03 §13, §14).

The pool starts it with a claimed task and the scope that a stop of the daemon closes. It owns the
task's journal, its directory, its watchers, its agent and its sender. Its scopes are, outermost
first, `shutdown`, `server_stop`, the wall clock, and the watchdog's deadline on every receive; what
is reported follows from which of them was caught and what the agent still said. It ends when the
server has confirmed everything, or after a bounded attempt, shorter at a stop: the journal keeps
the rest, and the backlog or the next start goes on with it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
import structlog
import trio

from daemon import threads
from daemon.agents import isolation
from daemon.agents.contract import Agent, AgentError, AgentResult, AgentRun
from daemon.agents.isolation import View
from daemon.agents.models import TakesLevel, any_level
from daemon.client import ApiError
from daemon.repos.desk import Grant, mint_secret
from daemon.repos.kept import kept_for_issue
from daemon.repos.visible import visible_to_git
from daemon.tasks import outcome as outcomes
from daemon.tasks import report
from daemon.tasks.drain import Sender, Transcript, consume
from daemon.tasks.environment import build_environment, make_launcher, secrets_of
from daemon.tasks.journal import Claim, Journal, JournalError, Session, open_journal
from daemon.tasks.outcome import End, Outcome
from daemon.tasks.paths import PathLocks, enter_local_directory
from daemon.tasks.preparing import get_ready
from daemon.tasks.trouble import Stays, patiently
from daemon.tasks.watchdog import Watchdog
from daemon.tasks.watchers import keep_lease, stopped_by_server, watch_cancel
from daemon.workdir.brief import render_brief
from daemon.workdir.bundles import BundleCache
from daemon.workdir.errors import PrepareError
from daemon.workdir.layout import Layout
from daemon.workdir.local import LocalDirectory
from daemon.workdir.meta import noting
from daemon.workdir.openclaw_config import OpenClaw, provide_openclaw
from daemon.workdir.prepare import (
    LiveRoots,
    Prepared,
    choose,
    keep_whole,
    places,
    short_path,
    write_brief,
)
from daemon.workdir.prompt import render_prompt, thread_name
from shared import failure, ids, times
from shared.addresses import split_address
from shared.log import hiding
from shared.redact import Redactor
from shared.supervise import Backoff
from shared.wire.runtime import MACHINE_REPORTS
from shared.wire.task import RUNNING, TERMINAL, ClaimedTask, ProgressRequest, kind_of

if TYPE_CHECKING:
    from daemon.client import Client
    from daemon.config import Config
    from daemon.repos.desk import Desk
    from daemon.runtimes.info import RuntimeInfo
    from daemon.tasks.backlog import Backlog
    from daemon.tasks.slots import Slot

log = structlog.get_logger(__name__)

OpenAgent = Callable[[AgentRun], AbstractAsyncContextManager[Agent]]

STOP_WITHIN: Final = 14.0
"""Seconds an agent's last messages are waited for: its stop takes at most 12."""

REPORT_WITHIN: Final = 124.0
"""Seconds a task keeps its slot while the server does not take its report (the reference's whole
schedule, spec 03 §30); then the backlog goes on, and the slot is free for other work."""

CLOSE_WITHIN: Final = 10.0
"""Seconds a task may take to report when it is being cut short; the journal keeps the rest."""

PROGRESS_WITHIN: Final = 5.0
"""Seconds a progress note, which nobody misses, may hold up the task."""

_START_BACKOFF: Final = Backoff(first=1.0, limit=15.0)

_INLINE_BRIEF: Final = frozenset({"openclaw", "kiro", "kimi"})
"""Providers that take the brief as a system prompt besides the file (spec 03 §14.19)."""


class TaskError(Exception):
    """The task cannot go on; the text is what its error field will say, `reason` its reason."""

    def __init__(self, text: str, *, reason: str = "") -> None:
        super().__init__(text)
        self.reason = reason


_EXPECTED: Final = (TaskError, PrepareError, AgentError, JournalError)


@attrs.frozen(kw_only=True)
class Job:
    """A claimed task, the slot it runs in and the runtime it was claimed for."""

    task: ClaimedTask
    slot: Slot
    runtime: RuntimeInfo


class TaskRunner:
    """Runs jobs, any number at a time. One per daemon; what all tasks share is here."""

    def __init__(
        self,
        config: Config,
        client: Client,
        *,
        control_port: int = 0,
        open_agent: OpenAgent,
        backlog: Backlog,
        env: Mapping[str, str] = os.environ,
        desk: Desk | None = None,
        live: LiveRoots | None = None,
        takes_level: TakesLevel = any_level,
    ) -> None:
        self.config = config
        self.client = client
        self.backlog = backlog
        self.control_port = control_port
        self.open_agent = open_agent
        self.env = dict(env)
        self.desk = desk
        self.takes_level = takes_level
        self.live = LiveRoots() if live is None else live
        self.paths = PathLocks()
        self.bundles = BundleCache(client, config.workspaces_root)
        self.launcher = make_launcher(config.home)

    def adopt(self, config: Config) -> None:
        """Use changed settings: for tasks to come, and where a running one looks again."""
        for name in self.config.environment.keys() - config.environment.keys():
            self.env.pop(name, None)
        self.env |= config.environment
        self.config = config

    async def run(self, job: Job, shutdown: trio.CancelScope) -> None:
        """Run one job to its end. Known ends return; only a bug raises."""
        task = job.task
        claim = Claim(
            task_id=task.id,
            workspace_id=task.workspace_id,
            runtime_id=job.runtime.id,
            agent_id=task.agent_id,
            issue_id=task.issue_id,
            provider=job.runtime.provider,
            claimed_at=times.fine_stamp(times.now()),
        )
        try:
            journal = await self._open_journal(claim, shutdown)
        except (JournalError, Stays) as error:
            log.error("task not begun", task_id=task.id, error=str(error))  # noqa: TRY400
            reason = failure.RUNTIME_RECOVERY if isinstance(error, Stays) else ""
            broken = outcomes.broken(str(error), reason=reason)
            with shutdown, trio.move_on_after(REPORT_WITHIN):
                await report.settle(self.client, task.id, [], broken)
            return
        told = False
        try:
            await journal.save()
            async with AsyncExitStack() as guards:
                run = _TaskRun(self, job, journal, guards)
                with hiding(run.redactor):  # in what is logged of it, its agent's own words too
                    told = await run.run(shutdown)
        finally:
            journal.close()
            if not told:
                self.backlog.leave(task.id, job.runtime.id)

    async def _open_journal(self, claim: Claim, shutdown: trio.CancelScope) -> Journal:
        """Open a task's journal, waiting for a machine in trouble unless `shutdown` is due.

        Raises JournalError, Stays.
        """
        opening = partial(
            threads.in_thread, partial(open_journal, self.config.home.journals, claim)
        )

        def hurried() -> bool:
            return trio.current_time() >= shutdown.deadline

        return await patiently("opening a journal", opening, _say_nothing, hurried=hurried)


class _TaskRun:
    """One task's run: what it is, and what became of it so far. Only its own task changes it."""

    def __init__(
        self, runner: TaskRunner, job: Job, journal: Journal, guards: AsyncExitStack
    ) -> None:
        task = job.task
        self._runner = runner
        self._client = runner.client
        self._task = task
        self._job = job
        self._provider = job.runtime.provider
        self._kind = task.kind or kind_of(
            chat_session_id=task.chat_session_id,
            autopilot_run_id=task.autopilot_run_id,
            issue_id=task.issue_id,
            trigger_comment_id=task.trigger_comment_id,
        )
        self._log = log.bind(task_id=task.id)
        self._journal = journal
        self._guards = guards
        self._checkout_secret = mint_secret() if runner.desk is not None else ""
        self.redactor = Redactor([*secrets_of(task), self._checkout_secret])
        self._sender = Sender(runner.client, journal, task_id=task.id)
        self._transcript = Transcript(journal, self.redactor)
        self._results: list[AgentResult | None] = []
        self._work_dir = ""
        self._thinking_level = ""
        self._whole: Path | None = None
        self._tmp = Path()
        self._view = View()
        self._end: End = "agent"
        self._silence = ""
        self._outcome: Outcome | None = None
        self._unwanted = False
        self._decided = False

    async def run(self, shutdown: trio.CancelScope) -> bool:
        """Do the work and report it; False when the journal still owes the server something."""
        async with trio.open_nursery() as side:
            side.start_soon(self._sender.run)
            server_stop = trio.CancelScope()
            told = given_up = False
            try:
                with shutdown:
                    with server_stop:
                        self._outcome = await self._work(server_stop)
                    self._unwanted = server_stop.cancelled_caught
                    if self._unwanted:
                        await self._acknowledge_cancel()
                    while not (told or given_up):
                        with trio.move_on_after(REPORT_WITHIN) as patience:
                            told = await self._close(still_wanted=self._still_wanted)
                        # what is in memory only would be lost with us
                        given_up = not (patience.cancelled_caught and self._journal.behind)
            finally:
                if not (told or given_up):  # a stop of the daemon, or a bug
                    with trio.move_on_after(CLOSE_WITHIN, shield=True):
                        told = await self._close()
                side.cancel_scope.cancel(reason="the task is over")
        return told

    # -- the end

    async def _shorten(self) -> None:
        """Report the beginning of a result that is too long, and keep the whole beside the work."""
        outcome = self._outcome
        if self._decided or outcome is None or not outcomes.is_long(outcome.text):
            return
        text, path = self.redactor.text(outcome.text), self._whole
        if path is not None and not await threads.in_thread(partial(keep_whole, path, text)):
            path = None
        kept_in = "" if path is None else str(path)
        self._outcome = attrs.evolve(outcome, text=outcomes.shortened(text, kept_in))

    def _decide(self) -> None:
        """Journal usage and outcome, once. Without a scope's credit it was the shutdown's."""
        if self._decided:
            return
        self._decided = True
        usage = outcomes.usage_entries(self._provider, outcomes.merge_usage(self._results))
        outcome = self._outcome
        if outcome is None and not self._unwanted:
            outcome = self._judge("shutdown")
        if usage:
            self._note(partial(self._journal.note_usage, usage))
        if outcome is not None:
            text = self.redactor.text(outcome.text)
            self._note(partial(self._journal.note_outcome, attrs.evolve(outcome, text=text)))
        else:
            self._note(self._journal.note_unwanted)

    def _note(self, note: Callable[[], None]) -> None:
        """Journal what can still be told without a journal, for as long as we live."""
        try:
            note()
        except JournalError as error:
            self._log.error("not journalled", error=str(error))

    async def _close(self, *, still_wanted: report.StillWanted | None = None) -> bool:
        """Tell the server everything; return True when it has confirmed.

        What was decided is on disk before anything is waited for: a crash from here on loses none.
        """
        await self._shorten()
        self._decide()
        await self._journal.save()
        await self._sender.stop()
        try:
            await report.close_journal(
                self._client, self._journal, self._sender, self._task.id, still_wanted
            )
        except JournalError as error:
            self._log.error("transcript not told", error=str(error))
            return False
        outcome = self._journal.outcome
        self._log.info(
            "task ended",
            completed=outcome is not None and outcome.completed,
            reason=outcome.reason if outcome is not None else "ended by the server",
        )
        return True

    async def _still_wanted(self) -> bool:
        """The last look before the report: a task the server has ended is not reported."""
        await self._progress("Finishing task", 2)
        return not await stopped_by_server(self._client, self._task.id)

    def _judge(self, end: End) -> Outcome:
        return outcomes.decide(
            self._results[-1] if self._results else None,
            end,
            provider=self._provider,
            work_dir=self._work_dir,
            silence=self._silence,
            cap=self._runner.config.agent_timeout,
        )

    # -- the work

    async def _work(self, server_stop: trio.CancelScope) -> Outcome:
        """Do the task; whatever is raised on the way becomes its failure."""
        outcome: Outcome | None = None
        raised: BaseExceptionGroup[Exception] | None = None
        try:
            async with trio.open_nursery() as watchers:
                watchers.start_soon(watch_cancel, self._client, self._task.id, server_stop)
                async with AsyncExitStack() as place:  # given back before the report
                    outcome = await self._pipeline(server_stop, watchers, place)
                watchers.cancel_scope.cancel(reason="the work is done")
        except* Exception as group:  # noqa: BLE001 - a task's failure is reported, not raised
            raised = group
        if outcome is None:
            assert raised is not None
            if not all(isinstance(leaf, _EXPECTED) for leaf in _leaves(raised)):
                self._log.error("task failed unexpectedly", exc_info=raised)
            first = next(_leaves(raised))
            # other exceptions have a `reason` too, and mean something else by it
            reason = first.reason if isinstance(first, PrepareError | TaskError) else ""
            outcome = outcomes.broken(_text_of(raised), reason=reason, work_dir=self._work_dir)
        return outcome

    async def _pipeline(
        self, server_stop: trio.CancelScope, watchers: trio.Nursery, place: AsyncExitStack
    ) -> Outcome:
        runner = self._runner
        self._check()
        async with keep_lease(self._client, self._job.runtime.id, self._task.id):
            local = await enter_local_directory(
                self._task,
                place,
                client=self._client,
                config=runner.config,
                locks=runner.paths,
                slot=self._job.slot,
                env=runner.env,
                say=partial(self._progress, step=1),
            )
            self._task = task = await runner.bundles.fill(self._job.runtime.id, self._task)
            chosen = await self._choose(local)
            chosen = await get_ready(
                place,
                task,
                self._kind,
                self._provider,
                chosen,
                records=runner.config.home.borrowed,
                env=runner.env,
                say=partial(self._progress, step=1),
            )
            noted = noting(chosen.layout.env_root, task, local_directory=local is not None)
            await self._guards.enter_async_context(threads.in_threads(noted))
            if self._provider == "openclaw":
                program = OpenClaw(path=self._job.runtime.program.path, env=runner.env)
                variables = await provide_openclaw(program, chosen.layout, task.agent)
                chosen = attrs.evolve(chosen, variables=variables)
            await self._choose_thinking()
            # only now: whoever sees "running" finds the directory
            await self._start(server_stop)
        self._journal.note_started()
        self._work_dir = str(chosen.layout.work_dir)
        self._whole = chosen.layout.output / f"result-{task.id}.md"
        if isolation.machine.get().is_on:
            self._tmp = Path(isolation.TMP)
        else:
            shortened = threads.in_threads(short_path(chosen.layout.tmp))
            self._tmp = await self._guards.enter_async_context(shortened)
        self._view = await threads.in_thread(partial(self._see, chosen.layout))
        watchers.start_soon(self._progress, f"Launching {self._provider}", 1)
        await self._grant_checkouts(chosen)

        # agents find their sessions by directory: another directory, no session
        resume = task.prior_session_id if self._work_dir == task.prior_work_dir else ""
        timeout = self._runner.config.agent_timeout
        with trio.CancelScope() as cap:
            cap.deadline = trio.current_time() + timeout if timeout > 0 else math.inf
            await self._run_agent_patiently(chosen, resume, watchers)
            if self._end == "agent" and outcomes.may_run_afresh(
                self._results[-1], resumed=bool(resume)
            ):
                self._log.info("session cannot be resumed; running afresh", session_id=resume)
                await self._run_again(chosen, watchers)
        if cap.cancelled_caught:
            self._end = "cap"
        return self._judge(self._end)

    def _see(self, layout: Layout) -> View:
        """What an isolated agent sees of Bullpen's directories. Makes those that come later."""
        root = self._runner.config.workspaces_root
        git = visible_to_git(root, self._task.workspace_id, layout.env_root)
        for folder in git.read_only:
            folder.mkdir(parents=True, exist_ok=True)
        return View(
            own=git.writable,
            read_only=(self._runner.launcher, *git.read_only),
            tmp=layout.tmp,
        )

    async def _choose(self, local: LocalDirectory | None) -> Prepared:
        """Choose the directory and hold it until the task's end.

        All that come into question are held while the disk is looked at, so that none of them is
        reclaimed or given to another task meanwhile.
        """
        runner, root = self._runner, self._runner.config.workspaces_root
        roots = places(self._task, root)
        await runner.live.claim(*roots)
        with runner.live.hold_free(*roots) as taken:
            looking = partial(choose, self._task, root, taken, local)
            chosen = await threads.in_thread(looking)
        # no await between: what was let go is taken again
        self._guards.enter_context(runner.live.hold(chosen.layout.env_root))
        return chosen

    async def _grant_checkouts(self, chosen: Prepared) -> None:
        """Let the agent check out repositories, until the task's end."""
        task, desk = self._task, self._runner.desk
        if desk is not None:
            grant = Grant(
                task_id=task.id,
                workspace_id=task.workspace_id,
                agent_name=task.agent.name if task.agent is not None else "",
                env_root=chosen.layout.env_root,
                issue_id=task.issue_id,
                urls=frozenset(split_address(repo.url.strip())[0] for repo in task.repos),
                refs={split_address(repo.url.strip())[0]: repo.ref for repo in task.repos},
                userinfos=dict(split_address(repo.url.strip()) for repo in task.repos),
            )
            await desk.prepare(grant)
            self._guards.enter_context(desk.grant(self._checkout_secret, grant))

    def _kept_before(self) -> list[tuple[str, str]]:
        """What is kept of the issue's earlier tasks: addresses and refs."""
        task, desk = self._task, self._runner.desk
        if desk is None or not task.issue_id:
            return []
        folder = desk.clones.folder / task.workspace_id
        return kept_for_issue(
            folder, task.issue_id, (split_address(repo.url.strip())[0] for repo in task.repos)
        )

    def _check(self) -> None:
        """Refuse what must not run at all. Raises TaskError."""
        task = self._task
        if not task.workspace_id:
            raise TaskError("server sent a task without a workspace")
        if not task.auth_token:
            raise TaskError("server did not provide task-scoped auth token")
        if not task.auth_token.startswith(ids.TASK_TOKEN):
            raise TaskError("server provided non-task-scoped auth token")

    @property
    def _model(self) -> str:
        """The agent's own choice, or else this machine's; "" leaves it to the program."""
        agent = self._task.agent
        mine = self._runner.config.models.get(self._provider, "")
        return (agent.model if agent is not None else "") or mine

    async def _choose_thinking(self) -> None:
        """Take over the level the agent is to think at, if its program knows it (§14.18)."""
        level = self._task.agent.thinking_level if self._task.agent is not None else ""
        if not level:
            return
        if await self._runner.takes_level(self._job.runtime.program, self._model, level):
            self._thinking_level = level
        else:
            self._log.warning("level of thinking dropped", level=level, model=self._model)

    async def _start(self, server_stop: trio.CancelScope) -> None:
        """Tell the server that the task runs, until it knows. Raises TaskError.

        The call is not idempotent: after a lost answer a repetition is refused, and the status
        tells what happened.
        """
        client, task_id = self._client, self._task.id
        failures = 0
        while True:
            try:
                await client.start(task_id)
                return
            except ApiError as refusal:
                error = refusal
            if error.task_gone and await client.surely_gone(task_id):
                await _leave(server_stop, "gone")
            if error.final and not error.task_gone:
                status = await self._status()
                if status in TERMINAL or status == "gone":
                    await _leave(server_stop, status)
                if failures and status == RUNNING:
                    return
                if status:
                    raise TaskError(f"start task failed: {error}") from error
            self._log.warning("not started yet", error=str(error))
            failures += 1
            await trio.sleep(_START_BACKOFF.wait(failures))

    async def _status(self) -> str:
        """The task's status, "gone", or "" when the server cannot say."""
        try:
            return (await self._client.status(self._task.id)).status
        except ApiError as error:
            sure = error.task_gone and await self._client.surely_gone(self._task.id)
            return "gone" if sure else ""

    async def _run_again(self, chosen: Prepared, watchers: trio.Nursery) -> None:
        """Run once without resuming; if the agent does not start, the first result stands."""
        try:
            await self._run_agent(chosen, "", watchers)
        except* AgentError as group:
            self._log.warning("agent not started again", error=_text_of(group))

    async def _run_agent_patiently(
        self, chosen: Prepared, resume: str, watchers: trio.Nursery
    ) -> None:
        """Run the agent; a program that is missing for some seconds is waited for. Raises TaskError."""
        try:
            await patiently(
                "starting the agent",
                partial(self._run_agent, chosen, resume, watchers),
                partial(self._progress, step=1),
            )
        except Stays as stays:
            raise TaskError(str(stays), reason=failure.RUNTIME_RECOVERY) from stays

    async def _run_agent(self, chosen: Prepared, resume: str, watchers: trio.Nursery) -> None:
        """Run the agent once; its result is appended to the results however this ends."""
        watchdog = Watchdog(self._runner.config.idle_watchdog, self._runner.config.tool_watchdog)
        run = await self._agent_run(chosen, resume)
        pinned = False

        def pin(session_id: str) -> None:
            nonlocal pinned
            if not pinned:
                pinned = True
                session = Session(session_id=session_id, work_dir=self._work_dir)
                self._journal.note_session(session)
                watchers.start_soon(self._pin, session)

        agent: Agent | None = None
        try:
            async with self._runner.open_agent(run) as agent:
                ended = False
                try:
                    ended = await consume(agent.messages, self._transcript, watchdog, pin)
                    if not ended:
                        self._end = "idle"
                        self._silence = watchdog.explain()
                finally:
                    if not ended:
                        agent.stop(self._silence or "the task was stopped")
                        with trio.move_on_after(STOP_WITHIN, shield=True):
                            await consume(agent.messages, self._transcript, Watchdog(0, 0), pin)
        finally:
            if agent is not None:
                self._results.append(agent.result)

    async def _pin(self, session: Session) -> None:
        """Keep the resume pointer, then tell it."""
        await self._journal.save()
        await report.pin_session(self._client, self._task.id, session)

    async def _agent_run(self, chosen: Prepared, resume: str) -> AgentRun:
        """Say what the agent is to do, in its brief and its prompt, and with what."""
        task, config, provider = self._task, self._runner.config, self._provider
        brief = render_brief(
            task,
            self._kind,
            provider=provider,
            resumed=bool(resume),
            skills_in=chosen.skills_in,
            local=chosen.local is not None,
            kept=await threads.in_thread(self._kept_before),
        )
        prompt = render_prompt(task, self._kind, resumed=bool(resume))
        written = await threads.in_thread(partial(write_brief, chosen, provider, brief))
        if not written and provider not in _INLINE_BRIEF:
            prompt = f"{brief}\n{prompt}"
        slot = self._job.slot.number
        assert slot is not None
        env = build_environment(
            task,
            base=self._runner.env,
            provider=provider,
            slot=slot,
            server_url=config.server_url,
            control_port=self._runner.control_port,
            launcher=self._runner.launcher,
            tmp=self._tmp,
            as_root=hasattr(os, "geteuid") and os.geteuid() == 0,
            checkout_secret=self._checkout_secret,
            owner_id=self._job.runtime.owner_id,
        )
        agent = task.agent
        mcp = agent.mcp_config if agent is not None else None
        return AgentRun(
            program=self._job.runtime.program,
            cwd=Path(self._work_dir),
            env={**env, **chosen.variables},
            prompt=prompt,
            model=self._model,
            thinking_level=self._thinking_level,
            resume_session_id=resume,
            system_prompt=brief if provider in _INLINE_BRIEF else "",
            extra_args=tuple(config.extra_args.get(provider, ())),
            custom_args=tuple(agent.custom_args) if agent is not None else (),
            mcp_config=mcp if isinstance(mcp, Mapping) else None,
            thread_name=thread_name(task),
            view=self._view,
        )

    async def _acknowledge_cancel(self) -> None:
        """Say that the agent of a cancelled task has stopped, where the server takes it."""
        if MACHINE_REPORTS not in self._client.offers:
            return
        with trio.move_on_after(PROGRESS_WITHIN):
            try:
                await self._client.acknowledge_cancel(self._task.id)
            except ApiError as error:  # it may have ended in another way
                self._log.debug("cancel not acknowledged", error=str(error))

    async def _progress(self, summary: str, step: int) -> None:
        """Say what is going on; nobody misses it if it does not arrive."""
        with trio.move_on_after(PROGRESS_WITHIN):
            try:
                request = ProgressRequest(summary=summary, step=step, total=2)
                await self._client.progress(self._task.id, request)
            except ApiError as error:
                self._log.debug("progress not told", error=str(error))


async def _say_nothing(_: str) -> None:
    """Nobody watches a task that has not begun."""
    await trio.lowlevel.checkpoint()


async def _leave(server_stop: trio.CancelScope, reason: str) -> None:
    """End the work the way a cancel by the server does."""
    server_stop.cancel(reason=reason)
    await trio.lowlevel.checkpoint()


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    else:
        yield error


def _text_of(error: BaseException) -> str:
    """What went wrong first, in words."""
    leaf = next(_leaves(error))
    return str(leaf) or type(leaf).__name__
