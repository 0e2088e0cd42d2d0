"""What every page has in common: the visitor, one read, a template, and headers.

A page gives `show` a unit that reads what it needs; the visitor's workspace and its people are
read in the same crossing. Whoever is not signed in is sent to /login; what does not exist gets a
page that says so. Wakes for a request, owns nothing, ends with its answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import attrs
import jinja2
from markupsafe import Markup
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from server.errors import DomainError, NotFound, Unauthenticated
from server.rights import Caller
from server.store import people
from server.store.queries import Connection
from server.web import auth
from server.web.context import services
from server.web.pages import assets, markdown, view
from shared import times
from shared.wire.team import FullWorkspace, Member, User

_NOT_SLUGS: Final = "api|auth|ws|static|health|healthz|readyz|login|metrics"

HEADERS: Final = {"Cache-Control": "private, no-cache"}
"""Beside the security headers every answer carries: a page is always asked for again."""


class _Slug(StringConvertor):
    """A workspace's slug; never the first word of an address that is no page."""

    regex = rf"(?!(?:{_NOT_SLUGS})(?:/|$))[a-z0-9]+(?:-[a-z0-9]+)*"


register_url_convertor("slug", _Slug())


@attrs.frozen(kw_only=True)
class Visit:
    """Who looks at which workspace, and everyone they can see there."""

    user: User
    workspace: FullWorkspace
    workspaces: list[FullWorkspace]
    member: Member
    people: view.Directory
    agents: list[Any]
    now: datetime

    @property
    def viewer(self) -> Caller:
        """The reader as the table of rights knows them."""
        return _viewer(self.member)


Read = Callable[[Connection, Visit], Awaitable[Mapping[str, Any]]]
"""A page's own part of the read: what its template needs beyond the visit."""


async def show(request: Request, template: str, section: str, read: Read) -> Response:
    """Answer with a page of the workspace in the path, read in one crossing."""
    back = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    try:
        actor = await auth.human(request)
    except Unauthenticated:
        return RedirectResponse(f"/login?next={quote(back)}", 303)
    except DomainError as error:
        return problem("This page is for people", error.text, 403)

    async def unit(conn: Connection) -> tuple[Visit, Mapping[str, Any]]:
        visit = await _visit(conn, actor.user_id, request.path_params["slug"])
        return visit, await read(conn, visit)

    try:
        visit, values = await services(request).database.read(unit)
    except NotFound as error:
        return problem("Not here", f"There is no such page: {error.text}.", 404)
    return page(
        template,
        page=section if template != "issue.html" else "issue",
        section=section,
        user=visit.user,
        me=view.person("member", visit.user.id, visit.user.name),
        workspace=visit.workspace,
        workspaces=visit.workspaces,
        people=visit.people,
        now=visit.now,
        markdown_here=partial(
            markdown.render, slug=visit.workspace.slug, prefix=visit.workspace.issue_prefix
        ),
        **values,
    )


async def _visit(conn: Connection, user_id: str, slug: str) -> Visit:
    workspaces = await people.workspaces_of(conn, user_id)
    workspace = next((each for each in workspaces if each.slug == slug), None)
    user = await people.get_user(conn, user_id)
    if workspace is None or user is None:
        raise NotFound("workspace not found")
    members = await people.list_members(conn, workspace.id)
    member = next((each for each in members if each.user_id == user_id), None)
    if member is None:
        raise NotFound("workspace not found")
    agents = await people.list_agents(conn, workspace.id, _viewer(member), include_archived=True)
    runtimes = await people.list_runtimes(conn, workspace.id)
    return Visit(
        user=user,
        workspace=workspace,
        workspaces=workspaces,
        member=member,
        people=view.Directory(members, agents, runtimes),
        agents=agents,
        now=times.now(),
    )


def _viewer(member: Member) -> Caller:
    return Caller(user_id=member.user_id, role=member.role)


def page(
    template: str, *, status: int = 200, headers: Mapping[str, str] | None = None, **values: Any
) -> Response:
    """Render a template with the page headers and those given."""
    values.setdefault("now", times.now())
    text = _templates.get_template(template).render(
        now_stamp=times.fine_stamp(values["now"]), **values
    )
    return HTMLResponse(text, status, {**HEADERS, **(headers or {})})


def problem(heading: str, text: str, status: int) -> Response:
    """Answer with a page that says what is wrong and leads back."""
    return page(
        "error.html", status=status, page="error", heading=heading, text=text, back="/",
        back_label="To your issues",
    )  # fmt: skip


@jinja2.pass_context
def _markdown(context: jinja2.runtime.Context, text: str) -> Markup:
    rendered: Markup = context["markdown_here"](text)
    return rendered


def _make() -> jinja2.Environment:
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    env.filters["markdown"] = _markdown
    env.filters["ago"] = view.ago
    env.filters["full_time"] = view.full_time
    env.filters["machine"] = view.machine
    env.globals.update(
        asset=assets.asset,
        modules=assets.modules(),
        statuses=view.STATUSES,
        priorities=view.PRIORITIES,
        run_states=view.RUN_STATES,
        workspace=None,
    )
    return env


_templates: Final = _make()
