"""The parts of checkouts that need no git: names, sharing, settings, who may ask for what."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from daemon.client import Rejected, Transient
from daemon.control import Answer, Asked
from daemon.repos import desk as desk_module
from daemon.repos.checkouts import CheckedOut, Wanted
from daemon.repos.clones import Clones
from daemon.repos.desk import Desk, Grant, mint_secret
from daemon.repos.flights import Flights, KeyLocks, Stopped
from daemon.repos.git import Git, GitError, git_environment
from daemon.repos.hooks import co_author_wanted
from daemon.repos.names import branch_name, clone_name, repo_name, saved_name, without_credentials
from shared.wire.runtime import ReposReply
from shared.wire.task import Repo

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://github.com/org/r", "github.com+org+r.git"),
        ("https://github.com/org/r.git/", "github.com+org+r.git"),
        ("https://user:secret@GitHub.com/org/r.git", "github.com+org+r.git"),
        ("git@github.com:org/r", "github.com+org+r.git"),
        ("ssh://git@h:22/g/s/r.git", "h%3A22+g+s+r.git"),
        ("/srv/git/r", "srv+git+r.git"),
        ("file:///srv/git/r.git", "srv+git+r.git"),
        ("", "repo.git"),
    ],
)
def test_names_of_clones(url: str, name: str) -> None:
    assert clone_name(url) == name


def test_different_repositories_have_different_clones() -> None:
    urls = [
        "https://h/a/b", "https://h/a+b", "https://h:1/a/b", "https://h/1/a/b", "https://g/a/b",
        "https://h/a%2Bb", "https://h/a/b/c", "https://h+a/b", "/h/a/b", "https://h/a/../b",
        "https://h/" + "x" * 300, "https://h/" + "x" * 301,
    ]  # fmt: skip
    names = {clone_name(url) for url in urls}
    assert len(names) == len(urls) - 1, "only the bare path may meet the address without a user"
    assert all(len(name) < 230 and "/" not in name for name in names)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://h/org/app.git", "app"),
        ("git@h:app", "app"),
        ("https://h/..", "repo"),
        ("https://h/", "repo"),
        ("h:../..", "repo"),
    ],
)
def test_names_of_directories(url: str, name: str) -> None:
    assert repo_name(url) == name


@pytest.mark.parametrize(
    ("agent", "slug"),
    [
        ("Ada's Agent", "ada-s-agent"),
        ("", "agent"),
        ("日本", "agent"),
        ("x" * 29 + "-yz", "x" * 29),
    ],
)
def test_names_of_branches(agent: str, slug: str) -> None:
    assert branch_name(agent, "eeee-0a1b2c3d") == f"agent/{slug}/0a1b2c3d"


def test_names_of_kept_work() -> None:
    assert saved_name("", "20260101T000000Z", "abcdef0123") == (
        "refs/bullpen/detached/20260101T000000Z-abcdef01"
    )


def test_errors_show_no_credentials() -> None:
    assert without_credentials("see https://me:pw@h/r.git") == "see https://h/r.git"
    assert "pw" not in str(GitError("fatal: https://me:pw@h/r.git"))


def test_the_environment_of_git() -> None:
    env = git_environment(
        {
            "PATH": "/bin",
            "BULLPEN_HOME": "/h",
            "MULTICA_TOKEN": "mat_1",
            "GIT_DIR": "/elsewhere",
            "GIT_SSH_COMMAND": "ssh -i key",
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "http.proxy",
            "GIT_CONFIG_VALUE_0": "p",
        }
    )
    assert "mat_1" not in str(env)
    assert not {"BULLPEN_HOME", "GIT_DIR"} & set(env)
    assert (env["GIT_SSH_COMMAND"], env["GIT_TERMINAL_PROMPT"]) == ("ssh -i key", "0")
    assert env["LC_ALL"] == "C"
    settings = {
        env[f"GIT_CONFIG_KEY_{n}"]: env[f"GIT_CONFIG_VALUE_{n}"]
        for n in range(int(env["GIT_CONFIG_COUNT"]))
    }
    assert settings["http.proxy"] == "p"
    assert settings["safe.directory"] == "*"
    assert settings["core.hooksPath"] == "/dev/null"


def test_the_users_switches_for_git_count() -> None:
    switches = {
        "GIT_LFS_SKIP_SMUDGE": "1",
        "GIT_SSL_CAINFO": "/ca.pem",
        "GIT_SSL_CERT": "/me.pem",
        "GIT_HTTP_LOW_SPEED_LIMIT": "1000",
        "GIT_HTTP_USER_AGENT": "x",
        "GIT_PROXY_SSL_CERT": "/proxy.pem",
        "GIT_PROTOCOL_FROM_USER": "0",
        "GIT_SOMETHING_NEW": "y",
    }
    misleading = {
        "GIT_WORK_TREE": "/",
        "GIT_INDEX_FILE": "/i",
        "GIT_OBJECT_DIRECTORY": "/o",
        "GIT_ALTERNATE_OBJECT_DIRECTORIES": "/o",
        "GIT_CONFIG_PARAMETERS": "'core.bare=true'",
        "GIT_TRACE_CURL": "1",
        "GIT_CURL_VERBOSE": "1",
        "GIT_AUTHOR_NAME": "who started the daemon",
        "GIT_EXTERNAL_DIFF": "x",
        "GIT_LITERAL_PATHSPECS": "1",
        "GIT_NAMESPACE": "n",
    }
    env = git_environment({**switches, **misleading})
    assert switches.items() <= env.items()
    assert not misleading.keys() & env.keys()


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        (None, True),
        ({}, True),
        ("nonsense", True),
        ({"co_authored_by_enabled": "no"}, True),
        ({"co_authored_by_enabled": False}, False),
        ({"github_enabled": False, "co_authored_by_enabled": True}, False),
    ],
)
def test_who_wants_the_co_author(settings: Any, wanted: bool) -> None:
    assert co_author_wanted(settings) is wanted


# -- sharing


async def test_a_flight_is_shared_and_the_next_is_new(autojump_clock: MockClock) -> None:
    runs: list[float] = []

    async def work() -> int:
        runs.append(trio.current_time())
        await trio.sleep(5)
        return len(runs)

    got: list[int] = []
    async with trio.open_nursery() as owner:
        flights: Flights[str, int] = Flights(owner)

        async def ask(after: float) -> None:
            await trio.sleep(after)
            got.append(await flights.share("k", work))

        async with trio.open_nursery() as askers:
            for after in (0, 1, 4.9, 6):
                askers.start_soon(ask, after)
    assert got == [1, 1, 1, 2]
    assert len(runs) == 2


async def test_a_flight_goes_on_without_who_asked_first(autojump_clock: MockClock) -> None:
    landed = trio.Event()

    async def work() -> None:
        await trio.sleep(5)
        landed.set()

    async with trio.open_nursery() as owner:
        flights: Flights[str, None] = Flights(owner)
        with trio.move_on_after(1):
            await flights.share("k", work)
        assert not landed.is_set()
        await flights.share("k", work)
        assert landed.is_set()
        assert trio.current_time() == pytest.approx(5)


async def test_a_flights_error_reaches_everybody(autojump_clock: MockClock) -> None:
    async def work() -> None:
        await trio.sleep(1)
        raise GitError("no")

    failures = []
    async with trio.open_nursery() as owner:
        flights: Flights[str, None] = Flights(owner)

        async def ask() -> None:
            with pytest.raises(GitError):
                await flights.share("k", work)
            failures.append(1)

        async with trio.open_nursery() as askers:
            askers.start_soon(ask)
            askers.start_soon(ask)
    assert len(failures) == 2


async def test_who_waits_for_a_flight_hears_of_its_owners_end(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as outside, trio.open_nursery() as owner:
        flights: Flights[str, None] = Flights(owner)

        async def ask() -> None:
            with pytest.raises(Stopped):
                await flights.share("k", trio.sleep_forever)

        outside.start_soon(ask)
        await wait_all_tasks_blocked()
        owner.cancel_scope.cancel()
    with pytest.raises(Stopped):
        await flights.share("k", trio.sleep_forever)


async def test_key_locks_keep_order_and_are_forgotten(autojump_clock: MockClock) -> None:
    locks: KeyLocks[str] = KeyLocks()
    order = []

    async def use(key: str, name: str) -> None:
        async with locks.hold(key):
            order.append(name)
            await trio.sleep(1)

    async def give_up() -> None:
        with trio.move_on_after(0.5):
            await use("a", "gave up")

    async with trio.open_nursery() as users, locks.hold("a"):
        for asker in (give_up, lambda: use("a", "first"), lambda: use("a", "second")):
            users.start_soon(asker)
            await wait_all_tasks_blocked()
        await use("b", "other")
    assert order == ["other", "first", "second"]
    assert len(locks) == 0


# -- the desk

TASK = "0a1b2c3d-0000-4000-8000-00000a1b2c3d"
APP = "https://example.test/org/app.git"


@attrs.define
class FakeClient:
    """Answers what the workspace has; `error` is raised instead."""

    urls: list[str] = attrs.field(factory=lambda: [APP])
    settings: dict[str, Any] | None = None
    error: Exception | None = None
    asked: int = 0

    async def repos(self, workspace_id: str) -> ReposReply:
        self.asked += 1
        await trio.sleep(1)
        if self.error is not None:
            raise self.error
        repos = [Repo(url=url) for url in self.urls]
        return ReposReply(workspace_id=workspace_id, repos=repos, settings=self.settings)


@attrs.define
class Counter:
    """A desk whose git is make-believe: `made` are the checkouts it would have made."""

    desk: Desk
    client: FakeClient
    secret: str
    env_root: Path
    made: list[Wanted] = attrs.field(factory=list)
    refreshed: list[str] = attrs.field(factory=list)
    co_author: list[bool] = attrs.field(factory=list)

    async def ask(self, secret: str | None = None, method: str = "POST", **body: Any) -> Answer:
        told = {
            "url": APP,
            "workspace_id": "ws",
            "workdir": str(self.env_root / "workdir"),
            "ref": "",
            "agent_name": "Demo",
            "task_id": TASK,
            **body,
        }
        secret = self.secret if secret is None else secret
        headers = {"authorization": f"Bearer {secret}"} if secret else {}
        raw = json.dumps({key: value for key, value in told.items() if value is not ...}).encode()
        return await self.desk.answer(
            Asked(method=method, path=desk_module.ROUTE, headers=headers, body=raw)
        )


@asynccontextmanager
async def open_counter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Counter]:
    env_root = tmp_path / "root" / "ws" / "task"
    (env_root / "workdir").mkdir(parents=True)
    client = FakeClient()
    async with trio.open_nursery() as work:
        clones = Clones(Git(env={}), tmp_path / "root", work)
        desk = Desk(client, clones, work)  # type: ignore[arg-type]
        secret = mint_secret()
        counter = Counter(desk, client, secret, env_root)

        async def refresh(_: Clones, workspace_id: str, url: str, **__: Any) -> Path:
            await trio.lowlevel.checkpoint()
            counter.refreshed.append(url)
            return tmp_path / "clone"

        async def check_out(_: Clones, __: Path, wanted: Wanted) -> CheckedOut:
            await trio.lowlevel.checkpoint()
            counter.made.append(wanted)
            return CheckedOut(path=wanted.parent / "app", branch="b")

        monkeypatch.setattr(Clones, "refresh", refresh)
        monkeypatch.setattr(desk_module, "check_out", check_out)
        monkeypatch.setattr(
            desk_module.hooks,
            "arrange",
            lambda _, *, co_author: counter.co_author.append(co_author),
        )
        grant = Grant(
            task_id=TASK, workspace_id="ws", agent_name="Real name", env_root=env_root,
            urls=frozenset({"https://example.test/org/project"}),
        )  # fmt: skip
        with desk.grant(secret, grant):
            yield counter
        work.cancel_scope.cancel()


async def test_a_checkout_believes_the_grant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async with open_counter(tmp_path, monkeypatch) as counter:
        answer = await counter.ask(agent_name="Somebody else", ref=" dev ")
        path = counter.env_root / "workdir"
        assert answer == Answer(status=200, value={"path": str(path / "app"), "branch_name": "b"})
        assert counter.made == [
            Wanted(
                url=APP, ref="dev", parent=path, agent_name="Real name", task_id=TASK,
                env_root=counter.env_root, helper=desk_module.HELPER,
            )
        ]  # fmt: skip


async def test_who_may_not_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async with open_counter(tmp_path, monkeypatch) as counter:
        for secret in ("", "wrong", "\xfc"):
            assert (await counter.ask(secret)).status == 401
        for body in ({"workspace_id": "other"}, {"task_id": "another"}):
            assert (await counter.ask(**body)).status == 403
        assert (await counter.ask(method="GET")).status == 405
        assert counter.made == []
        assert counter.client.asked == 0
    assert (await counter.ask()).status == 401, "the task has ended"


async def test_bad_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async with open_counter(tmp_path, monkeypatch) as counter:
        for name in ("url", "workspace_id", "workdir"):
            for value in ("", "  ", None, ...):
                answer = await counter.ask(**{name: value})
                assert (answer.status, answer.text) == (400, f"{name} is required\n")
        assert (await counter.ask(ref=5)).text.startswith("invalid request body")
        headers = {"authorization": f"Bearer {counter.secret}"}
        for raw in (b"", b"{", b"[]", b"\xff"):
            asked = Asked(method="POST", path=desk_module.ROUTE, headers=headers, body=raw)
            answer = await counter.desk.answer(asked)
            assert (answer.status, answer.text[:20]) == (400, "invalid request body")


async def test_only_the_tasks_own_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async with open_counter(tmp_path, monkeypatch) as counter:
        work = counter.env_root / "workdir"
        (work / "link").symlink_to(tmp_path)
        (work / "app" / ".git" / "x").mkdir(parents=True)
        twin = counter.env_root.with_name("task2")
        twin.mkdir()
        outside = ["/", str(tmp_path), str(twin), f"{work}/../../../ws2", str(work / "link")]
        for place in outside:
            assert (await counter.ask(workdir=place)).status == 403, place
        assert (await counter.ask(workdir=str(work / "app" / ".git"))).status == 403
        for place in ("workdir", str(work / "missing"), f"{work}\0"):
            assert (await counter.ask(workdir=place)).status == 400, place
        assert counter.made == []
        assert (await counter.ask(workdir=str(counter.env_root))).status == 200


async def test_from_within_a_checkout_that_one_is_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async with open_counter(tmp_path, monkeypatch) as counter:
        inside = counter.env_root / "workdir" / "app" / "src"
        inside.mkdir(parents=True)
        (inside.parent / ".git").write_text("gitdir: elsewhere")
        assert (await counter.ask(workdir=str(inside))).status == 200
        assert counter.made[0].parent == counter.env_root / "workdir"


async def test_which_repositories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async with open_counter(tmp_path, monkeypatch) as counter:
        for url in ("https://example.test/org/other", "ext::sh -c x", "-u", "/etc"):
            answer = await counter.ask(url=url)
            assert (answer.status, answer.text) == (
                400,
                "repo is not configured for this workspace\n",
            )
        assert counter.made == []
        assert (await counter.ask(url="https://example.test/org/project")).status == 200
        # another spelling of it is cloned by the address that was configured
        assert (await counter.ask(url="git@example.test:org/app")).status == 200
        assert counter.refreshed[-1] == APP


async def test_the_workspace_is_asked_every_time_but_once_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async with open_counter(tmp_path, monkeypatch) as counter:
        async with trio.open_nursery() as eight:
            for _ in range(8):
                eight.start_soon(counter.ask)
        assert counter.client.asked == 1
        counter.client.settings = {"co_authored_by_enabled": False}
        await counter.ask()
        assert counter.client.asked == 2
        assert counter.co_author == [True] * 8 + [False]


async def test_a_server_that_cannot_be_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async with open_counter(tmp_path, monkeypatch) as counter:
        counter.client.settings = {"co_authored_by_enabled": False}
        await counter.ask()
        counter.client.error = Transient("GET repos", 0, "no answer")
        answer = await counter.ask()
        assert answer.status == 500
        assert answer.text.startswith("refresh workspace repos: ")
        # what the task was given itself needs no server, and the last settings count
        assert (await counter.ask(url="https://example.test/org/project")).status == 200
        assert counter.co_author[-1] is False
        counter.client.error = Rejected("GET repos", 404, "workspace not found")
        assert (await counter.ask(url="https://example.test/org/project")).status == 500


@pytest.mark.parametrize(("code", "tries"), [(None, 1), (128, 2)])
async def test_git_failing_without_a_reason_is_tried_again_on_a_mended_clone(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: MockClock,
    code: int | None,
    tries: int,
) -> None:
    async with open_counter(tmp_path, monkeypatch) as counter:
        runs = []

        async def fail(*_: Any) -> CheckedOut:
            runs.append(1)
            await trio.lowlevel.checkpoint()
            raise GitError("https://u:pw@h/r: unable to read tree", code=code)

        monkeypatch.setattr(desk_module, "check_out", fail)
        answer = await counter.ask()
        assert (answer.status, answer.text) == (500, "https://h/r: unable to read tree\n")
        assert len(runs) == tries
