"""Where agents ask for repositories: `POST /repo/checkout` on the daemon's door (spec 01 §6.3).

A task gets a secret of its own for as long as its agent runs; the agent's command line sends it
along. It says which task is asking, so nothing the request claims has to be believed: the directory
must lie in that task's own, and the repository must be one of its workspace's or its project's. A
request without such a secret is refused, for it cannot be told from another program's.

`open_desk` owns the nursery in which clones are made and fetched. It is opened before the pool of
tasks and closed after it.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import structlog
import trio

from daemon import threads
from daemon.client import ApiError, Transient
from daemon.control import Answer, Asked
from daemon.repos import hooks
from daemon.repos.access import Access, access_to
from daemon.repos.checkouts import CheckedOut, Wanted, adopt, check_out, lender_of
from daemon.repos.clones import Clones
from daemon.repos.flights import Flights, Stopped
from daemon.repos.git import Git, GitError, git_environment
from daemon.repos.kept import Owner, note
from daemon.repos.names import clone_name, repo_name
from daemon.repos.places import Place, place_of
from shared.addresses import split_address
from shared.wire.runtime import ReposReply

if TYPE_CHECKING:
    from daemon.client import Client

log = structlog.get_logger(__name__)

ROUTE: Final = "/repo/checkout"
CREDENTIAL: Final = "/repo/credential"
HELPER: Final = "!bullpen repo credential"
"""The credential helper in checkouts: it asks here, with the task's secret."""

SECRET: Final = "MULTICA_CHECKOUT_SECRET"
"""The variable that hands a task's secret to its agent."""


class Refused(Exception):
    """The request is not answered with a checkout; `status` says whose fault it is."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@attrs.frozen(kw_only=True)
class Grant:
    """What one task may check out, and where."""

    task_id: str
    workspace_id: str
    agent_name: str
    env_root: Path
    issue_id: str = ""
    urls: frozenset[str] = frozenset()
    refs: Mapping[str, str] = attrs.field(factory=dict)
    """Where to start from, by address, if the agent does not say."""
    userinfos: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    """User and password by address, of a server that knows no other way to tell them."""


class Desk:
    """Answers checkouts. One per daemon; `clones` and the grants are shared by all its tasks."""

    def __init__(self, client: Client, clones: Clones, nursery: trio.Nursery) -> None:
        self.clones = clones
        self._client = client
        self._grants: dict[str, Grant] = {}
        self._reads: Flights[str, ReposReply] = Flights(nursery)
        self._settings: dict[str, dict[str, Any] | None] = {}
        self._userinfos: dict[str, dict[str, str]] = {}

    @contextmanager
    def grant(self, secret: str, grant: Grant) -> Iterator[None]:
        """Let whoever has the secret check out, until the block is left."""
        key = _digest(secret)
        self._grants[key] = grant
        try:
            yield
        finally:
            del self._grants[key]

    async def answer(self, asked: Asked) -> Answer:
        """Decide on a request and do what it asks for. Never raises for the asker's sake."""
        if asked.method != "POST":
            return Answer(status=405, text="method not allowed\n")
        try:
            grant = self._who(asked)
            wanted, url = _read(asked.body, grant)
            done = await self._check_out(grant, wanted, url)
        except Refused as refusal:
            return Answer(status=refusal.status, text=f"{refusal}\n")
        except (GitError, Stopped, OSError) as error:
            log.warning("checkout failed", error=str(error))
            return Answer(status=500, text=f"{error}\n")
        told: dict[str, Any] = {"path": str(done.path), "branch_name": done.branch}
        told |= {key: text for key, text in (("saved", done.saved), ("note", done.note)) if text}
        return Answer(status=200, value=told)

    def _who(self, asked: Asked) -> Grant:
        given = asked.headers.get("authorization", "")
        grant = self._grants.get(_digest(given.removeprefix("Bearer ")))
        if grant is None:
            raise Refused(
                401,
                "unauthorized: check out with the `bullpen` command of a running task; it sends "
                "the task's secret along",
            )
        return grant

    async def _check_out(self, grant: Grant, wanted: Wanted, url: str) -> CheckedOut:
        allowed, settings = await self._allowed(grant, url)
        co_author = hooks.co_author_wanted(settings)
        clones = self.clones
        access = self._access(grant, allowed)
        wanted = attrs.evolve(
            wanted,
            url=allowed,
            default_ref=grant.refs.get(allowed, ""),
            submodules=wanted.submodules and hooks.submodules_wanted(settings),
            access=access,
            helper=HELPER,
        )
        clone = await clones.refresh(grant.workspace_id, allowed, access=access)
        try:
            done = await self._check_out_of(clone, wanted, co_author=co_author)
        except GitError as error:
            if error.code is None:  # we said no, not git
                raise
            # git fails where we see no reason: mend the clone if it is damaged, and try once more
            log.info("checkout failed; looking at the clone", clone=clone.name, error=str(error))
            clone = await clones.refresh(grant.workspace_id, allowed, suspect=True, access=access)
            done = await self._check_out_of(clone, wanted, co_author=co_author)
        if done.saved:
            note(clone, done.saved, Owner(task_id=grant.task_id, issue_id=grant.issue_id))
        log.info("checked out", task_id=grant.task_id, clone=clone.name, branch=done.branch)
        return done

    async def _check_out_of(self, clone: Path, wanted: Wanted, *, co_author: bool) -> CheckedOut:
        async with self.clones.hold(clone):
            done = await check_out(self.clones, clone, wanted)
        await threads.in_thread(partial(hooks.arrange, done.path, co_author=co_author))
        if changed := self.clones.mended.pop(clone, ""):
            told = f"the daemon's clone of it is mended: {changed}"
            done = attrs.evolve(done, note="; ".join(text for text in (done.note, told) if text))
        return done

    async def prepare(self, grant: Grant) -> None:
        """Look after the checkouts that are in a task's directory already; failing only warns.

        Those of an older version become repositories of their own, and what is borrowed is right.
        """
        for place in await threads.in_thread(partial(_checkouts_in, grant.env_root)):
            clone = await threads.in_thread(partial(lender_of, self.clones, place))
            if clone is None or place.tree is None or clone.parent.name != grant.workspace_id:
                continue
            url = (await self.clones.address(clone)) or ""
            wanted = Wanted(
                url=url,
                ref="",
                parent=place.tree.parent,
                agent_name=grant.agent_name,
                task_id=grant.task_id,
                env_root=grant.env_root,
                issue_id=grant.issue_id,
            )
            try:
                async with self.clones.hold(clone):
                    await adopt(self.clones, clone, place, wanted)
            except (GitError, OSError) as error:
                log.warning("checkout left as it is", path=str(place.tree), error=str(error))

    def _access(self, grant: Grant, url: str) -> Access | None:
        """How a repository's server is reached, as far as the server has told."""
        known = {**grant.userinfos, **self._userinfos.get(grant.workspace_id, {})}
        return access_to(url, known.get(url, ""))

    async def credential(self, asked: Asked) -> Answer:
        """Tell an agent's git the password of a repository its task may check out, and no other.

        The body is what git asks a credential helper, as an object: protocol, host, path.
        """
        if asked.method != "POST":
            return Answer(status=405, text="method not allowed\n")
        try:
            grant = self._who(asked)
            sent = _strings(asked.body)
            path = sent.get("path", "").strip("/")
            url = f"{sent.get('protocol', '')}://{sent.get('host', '')}/{path}"
            if not path:
                raise Refused(400, "path is required")
            allowed, _ = await self._allowed(grant, url)
            access = self._access(grant, allowed)
        except Refused as refusal:
            return Answer(status=refusal.status, text=f"{refusal}\n")
        if access is None or access.server != url.removesuffix(f"/{path}").lower():
            return Answer(status=404, text="no password is known for this repository\n")
        return Answer(status=200, value={"username": access.user, "password": access.password})

    async def _allowed(self, grant: Grant, url: str) -> tuple[str, dict[str, Any] | None]:
        """Return the repository's address as it is configured, and the workspace's settings.

        The workspace is asked every time, once for all that ask together, because a switch in its
        settings counts at once. Raises Refused.
        """
        urls: Iterable[str] = grant.urls
        read = partial(self._client.repos, grant.workspace_id)
        try:
            reply = await self._reads.share(grant.workspace_id, read)
        except ApiError as error:
            known = _configured(url, grant.urls)
            if not isinstance(error, Transient) or not known:
                raise Refused(500, f"refresh workspace repos: {error}") from error
            log.warning("workspace not asked; its last settings count", error=str(error))
        else:
            self._settings[grant.workspace_id] = reply.settings
            split = dict(split_address(repo.url.strip()) for repo in reply.repos)
            told = {url: userinfo for url, userinfo in split.items() if userinfo}
            self._userinfos[grant.workspace_id] = told | reply.credentials
            urls = {*grant.urls, *split}
        found = _configured(url, urls)
        if not found:
            raise Refused(400, "repo is not configured for this workspace")
        return found, self._settings.get(grant.workspace_id)


def _checkouts_in(env_root: Path) -> list[Place]:
    """The repositories in a task's directory and one level further in."""
    found = []
    for work in sorted(env_root.glob("workdir")):
        trees = [work, *sorted(work.glob("*"))]
        places = (place_of(tree) for tree in trees if tree.is_dir() and not tree.is_symlink())
        found += [place for place in places if place is not None]
    return found


def mint_secret() -> str:
    """Make a task's secret."""
    return secrets.token_urlsafe(24)


def _digest(secret: str) -> str:
    """What a secret is looked up by: how long a lookup takes says nothing of the secret."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


def _configured(url: str, urls: Iterable[str]) -> str:
    """The address among those configured that names the same repository; "" if none does."""
    known = sorted(urls)
    if url in known:
        return url
    name = clone_name(url)
    return next((each for each in known if each and clone_name(each) == name), "")


def _read(body: bytes, grant: Grant) -> tuple[Wanted, str]:
    """Check a request's body against the grant. Raises Refused."""
    told = _strings(body)
    told["url"] = split_address(told.get("url", ""))[0]
    for name in ("url", "workspace_id", "workdir"):
        if not told.get(name):
            raise Refused(400, f"{name} is required")
    if told["workspace_id"] != grant.workspace_id or told.get("task_id", "") not in (
        "",
        grant.task_id,
    ):
        raise Refused(403, "the secret is another task's")
    wanted = Wanted(
        url=told["url"],
        ref=told.get("ref", ""),
        parent=_parent(told["workdir"], told["url"], grant.env_root),
        agent_name=grant.agent_name,
        task_id=grant.task_id,
        env_root=grant.env_root.resolve(),
        issue_id=grant.issue_id,
        submodules=told.get("submodules", "") != "false",
    )
    return wanted, told["url"]


def _strings(body: bytes) -> dict[str, str]:
    """A request's body, an object of strings. Raises Refused."""
    try:
        sent = json.loads(body)
    except ValueError as error:
        raise Refused(400, f"invalid request body: {error}") from error
    if not isinstance(sent, dict) or not all(
        isinstance(value, str | None) for value in sent.values()
    ):
        raise Refused(400, "invalid request body: not an object of strings")
    return {key: (value or "").strip() for key, value in sent.items()}


def _parent(workdir: str, url: str, env_root: Path) -> Path:
    """The directory to check out into, without links. Raises Refused for one outside the task's.

    Whoever stands in a checkout of the repository means that one, not one within it.
    """
    root = env_root.resolve()
    if "\0" in workdir or not Path(workdir).is_absolute():
        raise Refused(400, "workdir is not an absolute path")
    path = Path(workdir).resolve()
    if path != root and root not in path.parents:
        raise Refused(403, f"workdir is not in this task's directory; check out in {env_root}")
    if not path.is_dir():
        raise Refused(400, f"workdir is no directory: {workdir}")
    if ".git" in path.relative_to(root).parts:
        raise Refused(403, "workdir is inside a repository's own files")
    for place in (path, *path.parents):
        if place == root:
            break
        if place.name == repo_name(url) and (place / ".git").exists():
            return place.parent
    return path


@asynccontextmanager
async def open_desk(
    client: Client, root: Path, env: Mapping[str, str] = os.environ
) -> AsyncIterator[Desk]:
    """Open the desk for the clones below a workspaces root; leaving it ends their work."""
    async with trio.open_nursery() as work:
        clones = Clones(Git(env=git_environment(env)), root, work)
        yield Desk(client, clones, work)
        work.cancel_scope.cancel(reason="no task is left that could ask")
