"""Who may do what: the one table of rights, and the functions that read it.

Endpoints, lists and the audiences of events all decide by it, and `docs/security.md` is printed from
it. Pure: it is given who calls and the few facts about the thing that matter, and says yes, or
raises the error to answer with. Which route asks for which right stands in `rights_map.py`.

A right is a name like `agent.update`: an object and an action. A thing that not everybody may see has
rows of its own: of a private agent's run `run.read` is decided by the row of `private run`, of a
chat's run by that of `chat run`.
"""

from __future__ import annotations

import enum
from typing import Final

import attrs

from server.errors import DomainError, Forbidden, NotFound


class People(enum.Enum):
    """Which people have a right, by their role in the workspace and by whom the thing belongs to."""

    EVERYONE = "everyone"
    """Without signing in."""
    USERS = "users"
    """Whoever is signed in, also outside the workspace."""
    MEMBERS = "members"
    MANAGERS = "managers"
    """Owners, admins, and the member to whom the thing belongs."""
    ADMINS = "admins"
    """Owners and admins."""
    OWNERS = "owners"
    SELF = "self"
    """The member to whom the thing belongs, whatever the others' roles."""
    HOLDER = "holder"
    """The user to whom the thing belongs, whatever workspace they are in."""
    NOBODY = "nobody"


class Agents(enum.Enum):
    """What an agent may do with its task's token. Never more than a plain member."""

    ALL = "all"
    """With whatever of this kind it may read."""
    WORK = "work"
    """With its own work: what it made, and its task's issue with the parent and children of it.

    A task without an issue (a chat, an autopilot's) is about whatever it is told: any issue.
    """
    CIRCLE = "circle"
    """With itself, the agents of its squads and, if it is private itself, its owner's others."""
    SETTING = "setting"
    """Not unless the workspace's owner lets agents do it (`settings.agents_may`)."""
    NEVER = "never"


class Machines(enum.Enum):
    """What a machine may do with a token of its own (`mdt_`)."""

    OWN = "own"
    """With what belongs to the daemon id that the token is bound to."""
    HERE = "here"
    """With what belongs to the workspace that the token is bound to."""
    NEVER = "never"


@attrs.frozen
class Rule:
    """One row: who may do this. `hidden`: the 404 text for others, where even knowing is too much."""

    object: str
    action: str
    people: People
    agents: Agents
    machines: Machines = Machines.NEVER
    hidden: str = ""
    note: str = ""


EVERYONE, USERS, MEMBERS, MANAGERS, ADMINS, OWNERS, SELF, HOLDER, NOBODY = People
ALL, WORK, CIRCLE, SETTING, NEVER = Agents
OWN, HERE, OFF = Machines

_NO_RUNTIME, _NO_TASK, _NO_WORKSPACE = "runtime not found", "task not found", "workspace not found"
"""Daemons act on these texts (spec 01 §1.5)."""

TABLE: Final = (
    # object, action                 people       agents
    Rule("server", "look", EVERYONE, ALL, OWN, note="health, sign-in pages, styles"),
    Rule("server", "measure", NOBODY, NEVER, note="who has the metrics token"),
    Rule("session", "begin", EVERYONE, ALL, OWN, note="with a code or a link"),
    Rule("session", "end", EVERYONE, ALL, OWN, note="the caller's own cookie"),
    Rule("account", "read", USERS, ALL, note="the caller's own"),
    Rule("account", "update", USERS, NEVER, note="the caller's own"),
    Rule("credential", "read", HOLDER, NEVER),
    Rule("credential", "create", USERS, NEVER, note="tokens, sessions, sign-in links"),
    Rule("credential", "renew", USERS, ALL, note="of the caller's own token alone"),
    Rule("credential", "delete", HOLDER, NEVER),
    # --- the workspace ---
    Rule("workspace", "create", USERS, NEVER),
    Rule("workspace", "read", MEMBERS, ALL, hidden=_NO_WORKSPACE),
    Rule("page", "read", MEMBERS, NEVER, OFF, _NO_WORKSPACE, "in a browser"),
    Rule("workspace", "listen", MEMBERS, NEVER, note="the live feed; by the rows below"),
    Rule("workspace", "update", ADMINS, NEVER),
    Rule("workspace", "widen agents", OWNERS, NEVER, note="settings.agents_may"),
    Rule("workspace", "delete", OWNERS, NEVER),
    Rule("workspace", "leave", MEMBERS, NEVER),
    Rule("member", "read", MEMBERS, ALL),
    Rule("member", "manage", ADMINS, NEVER, note="invite, change a role, remove"),
    Rule("member", "manage owners", OWNERS, NEVER, note="make, demote, remove an owner"),
    Rule("invitation", "read", ADMINS, NEVER),
    Rule("invitation", "answer", HOLDER, NEVER, hidden="invitation not found"),
    # --- work ---
    Rule("issue", "read", MEMBERS, ALL),
    Rule("issue", "create", MEMBERS, ALL),
    Rule("issue", "update", MEMBERS, WORK, note="status, labels, metadata, followers"),
    Rule("issue", "rewrite", MEMBERS, WORK, note="title, description; agents: of what they made"),
    Rule("issue", "delete", MEMBERS, WORK, note="agents: what they made and nobody wrote into"),
    Rule("issue", "quick-create", MEMBERS, NEVER),
    Rule("comment", "create", MEMBERS, WORK),
    Rule("comment", "update", MANAGERS, WORK, note="agents: what they wrote"),
    Rule("comment", "delete", MANAGERS, WORK, note="agents: what they wrote, unanswered"),
    Rule("comment", "resolve", MEMBERS, WORK),
    Rule("comment", "react", MEMBERS, ALL),
    Rule("attachment", "read", MEMBERS, ALL),
    Rule("private attachment", "read", SELF, WORK, OFF, "attachment not found", "of a chat"),
    Rule("attachment", "create", MEMBERS, WORK),
    Rule("attachment", "delete", MANAGERS, WORK, note="agents: what they uploaded"),
    Rule("label", "read", MEMBERS, ALL),
    Rule("label", "write", MEMBERS, SETTING),
    Rule("project", "read", MEMBERS, ALL),
    Rule("project", "write", MEMBERS, SETTING, note="create, update, resources"),
    Rule("project", "delete", ADMINS, NEVER),
    Rule("repository password", "set", MEMBERS, NEVER, note="in an address, where none is yet"),
    Rule("repository password", "replace", ADMINS, NEVER),
    Rule("repository password", "read", SELF, NEVER, HERE, note="who has a machine here, for it"),
    # --- agents and what they do ---
    Rule("agent", "read", MEMBERS, ALL),
    Rule("private agent", "read", MANAGERS, CIRCLE),
    Rule("agent", "use", MEMBERS, ALL, note="assign, mention, chat, rerun, automate"),
    Rule("private agent", "use", MANAGERS, CIRCLE),
    Rule("agent", "create", MEMBERS, ALL, note="an agent's are its owner's, and private"),
    Rule("agent", "update", MANAGERS, NEVER, note="what it runs: see runtime, configure"),
    Rule("agent", "share", MANAGERS, NEVER, note="open it to the workspace"),
    Rule("agent", "read mcp", MANAGERS, NEVER, note="also hidden by always_redact_env"),
    Rule("agent", "archive", MANAGERS, NEVER, note="archive, restore, cancel all its runs"),
    Rule("agent", "set skills", MANAGERS, NEVER),
    Rule("agent", "read environment", ADMINS, NEVER),
    Rule("agent", "set environment", MANAGERS, NEVER, note="and runtime, configure"),
    Rule("run", "see", MEMBERS, ALL, note="that it is there, and how it stands"),
    Rule("private run", "see", MEMBERS, ALL, note="on an issue that can be read"),
    Rule("chat run", "see", SELF, NEVER),
    Rule("run", "read", MEMBERS, ALL, note="transcript, progress, result"),
    Rule("private run", "read", MANAGERS, CIRCLE),
    Rule("chat run", "read", SELF, NEVER),
    Rule("run", "cancel", MEMBERS, WORK),
    Rule("private run", "cancel", MANAGERS, WORK),
    Rule("chat run", "cancel", SELF, NEVER),
    Rule("run", "rerun", MEMBERS, WORK, note="and the agent must be open to who asks"),
    Rule("run", "evaluate", NOBODY, WORK, note="a squad's leader, in its own run"),
    Rule("usage", "read", MEMBERS, ALL),
    Rule("private usage", "read", MANAGERS, CIRCLE, note="left out of lists by agent"),
    Rule("squad", "read", MEMBERS, ALL),
    Rule("squad", "write", ADMINS, NEVER),
    Rule("skill", "read", MEMBERS, ALL),
    Rule("skill", "create", MEMBERS, SETTING),
    Rule("skill", "write", MANAGERS, NEVER, note="update, delete, files"),
    Rule("autopilot", "read", MEMBERS, ALL),
    Rule("private autopilot", "read", MANAGERS, CIRCLE, note="of a private agent"),
    Rule("autopilot", "create", MEMBERS, SETTING, note="for an agent they may use"),
    Rule("autopilot", "write", MEMBERS, SETTING, note="change, trigger, delete, webhook"),
    Rule("private autopilot", "write", MANAGERS, NEVER, note="or who made it"),
    Rule("webhook", "call", EVERYONE, ALL, OWN, note="who has the address or secret"),
    # --- a person's own ---
    Rule("chat", "create", MEMBERS, NEVER, note="with an agent they may use"),
    Rule("chat", "read", SELF, NEVER),
    Rule("chat", "write", SELF, NEVER),
    Rule("inbox", "read", SELF, NEVER),
    Rule("inbox", "write", SELF, NEVER),
    Rule("pin", "read", SELF, NEVER),
    Rule("pin", "write", SELF, NEVER),
    # --- machines ---
    Rule("runtime", "read", MEMBERS, ALL),
    Rule("runtime", "use", MEMBERS, WORK, note="agents: their own and their owner's"),
    Rule("private runtime", "use", SELF, WORK, note="its owner opens it, or nobody does"),
    Rule("runtime", "configure", MEMBERS, NEVER, note="arguments, MCP, environment there"),
    Rule("private runtime", "configure", SELF, NEVER, note="it is their machine that runs it"),
    Rule("runtime", "update", MANAGERS, NEVER, note="visibility, removal"),
    Rule("runtime", "open", SELF, NEVER, note="make it public"),
    Rule("runtime", "hand over", MANAGERS, NEVER, note="the machine, to another member"),
    Rule("runtime", "give along", SELF, NEVER, note="their agents and directories on it"),
    Rule("runtime", "ask models", MEMBERS, NEVER, note="models, ping"),
    Rule("private runtime", "ask models", SELF, NEVER, note="models, ping"),
    Rule("runtime", "ask update", SELF, NEVER),
    Rule("runtime", "ask skills", SELF, NEVER, note="reads files of the person's home"),
    Rule("runtime", "name directory", SELF, NEVER, note="a project's local_directory"),
    Rule("profile", "read", MEMBERS, ALL),
    Rule("profile", "write", ADMINS, NEVER),
    Rule("machine token", "read", ADMINS, NEVER),
    Rule("machine token", "write", ADMINS, NEVER),
    # --- the daemon's side; whoever else asks hears the protocol's own 404 ---
    Rule("machine", "register", MEMBERS, NEVER, OWN, _NO_WORKSPACE, "a machine of theirs"),
    Rule("machine", "act", SELF, NEVER, OWN, _NO_RUNTIME, "claim, beat, recover, leave"),
    Rule("machine", "report", SELF, NEVER, OWN, _NO_TASK, "start, rows, usage, end"),
    Rule("machine", "read workspace", MEMBERS, NEVER, HERE, _NO_WORKSPACE),
    Rule("machine", "check directory", SELF, NEVER, OWN, "not found", "whose is closed"),
)

_BY_NAME: Final = {(rule.object, rule.action): rule for rule in TABLE}

WIDER: Final = frozenset({"issue"} | {rule.object for rule in TABLE if rule.agents is SETTING})
"""What `settings.agents_may` may name. Of these kinds agents may then do what a plain member may,
except what is marked NEVER; with `issue` they may work on every issue, and comment there."""


@attrs.frozen(kw_only=True)
class Caller:
    """Who asks. An agent's `user_id` is its owner's; a machine's is empty.

    `role`: the user's in the workspace; None for who is no member of it.
    """

    user_id: str = ""
    role: str | None = None
    agent_id: str | None = None
    task_id: str | None = None
    issue_id: str | None = None
    """What the agent's task is about, if it is about an issue."""
    daemon_id: str | None = None
    agents_may: frozenset[str] = frozenset()
    """What the workspace's owner lets agents do beyond the table."""

    @property
    def is_agent(self) -> bool:
        return self.agent_id is not None

    @property
    def is_machine(self) -> bool:
        return self.daemon_id is not None

    @property
    def gate(self) -> str | None:
        """For SQL's `agent_open`: who looks; None for who sees all private agents."""
        if self.agent_id is not None:
            return self.agent_id
        return None if self.role in _ADMINS else self.user_id


_ADMINS: Final = ("owner", "admin")
_ROLES: Final = ("owner", "admin", "member")


@attrs.frozen(kw_only=True)
class Thing:
    """The facts about a thing that rights depend on.

    `kind` is "" or what makes it a case of its own: `private`, `chat`. `people` and `agents`: to
    whom it belongs. `mine`: for an agent, that the store found it among its work or in its circle.
    """

    kind: str = ""
    people: tuple[str | None, ...] = ()
    agents: tuple[str | None, ...] = ()
    mine: bool = False
    daemon_id: str | None = None


GROUPS: Final = {"owners": ("owner",), "admins": _ADMINS}
"""The roles of those who hear what is for owners, or for admins too."""

KINDS: Final = ("", "private", "chat")

NOTHING: Final = Thing()


def rule_of(right: str, kind: str = "") -> Rule:
    """The row of a right; of a special kind of thing its own, if the table has one."""
    name, _, action = right.partition(".")
    found = _BY_NAME.get((f"{kind} {name}", action)) if kind else None
    return found or _BY_NAME[name, action]


def may(caller: Caller | None, right: str, thing: Thing = NOTHING) -> bool:
    """Tell whether the caller (None: nobody known) has the right to the thing."""
    rule = rule_of(right, thing.kind)
    if caller is None:
        return rule.people is People.EVERYONE
    if caller.is_machine:
        if rule.people is People.EVERYONE:
            return True
        if rule.machines is HERE:
            return True  # its entrance has compared the workspaces
        return rule.machines is OWN and caller.daemon_id == thing.daemon_id
    if caller.is_agent:
        return _agent_may(rule, caller, thing)
    return _person_may(rule, caller.role, owns=caller.user_id in thing.people)


def _person_may(rule: Rule, role: str | None, *, owns: bool) -> bool:
    match rule.people:
        case People.EVERYONE | People.USERS:
            return True
        case People.MEMBERS:
            return role in _ROLES
        case People.MANAGERS:
            return role in _ADMINS or (owns and role in _ROLES)
        case People.ADMINS:
            return role in _ADMINS
        case People.OWNERS:
            return role == "owner"
        case People.SELF:
            return owns and role in _ROLES
        case People.HOLDER:
            return owns
        case People.NOBODY:
            return False


def _agent_may(rule: Rule, caller: Caller, thing: Thing) -> bool:
    if rule.people not in {EVERYONE, USERS, HOLDER} and caller.role not in _ROLES:
        return False  # its owner has left
    match rule.agents:
        case Agents.ALL:
            return True
        case Agents.WORK:
            wider = "issue" in caller.agents_may and (rule.object, rule.action) in _WIDE_WORK
            return thing.mine or caller.agent_id in thing.agents or wider
        case Agents.CIRCLE:
            return thing.mine or caller.agent_id in thing.agents
        case Agents.SETTING:
            if rule.object not in caller.agents_may:
                return False
            return _person_may(rule, "member", owns=caller.user_id in thing.people)
        case Agents.NEVER:
            return False


_WIDE_WORK: Final = frozenset(
    {
        *(("issue", "update"), ("issue", "rewrite"), ("attachment", "create")),
        *(("comment", "create"), ("comment", "resolve")),
    }
)


def can_ever(caller: Caller | None, right: str) -> bool:
    """Tell whether there may be things to which the caller has the right.

    What an entrance asks before it knows the thing: no means no, yes means ask again with the facts.
    """
    known = caller or Caller()
    best = Thing(people=(known.user_id,), mine=True, daemon_id=known.daemon_id)
    return any(may(caller, right, attrs.evolve(best, kind=kind)) for kind in KINDS)


def check(caller: Caller | None, right: str, thing: Thing = NOTHING) -> None:
    """Raise what the caller is answered: NotFound where existence is hidden, else Forbidden."""
    if not may(caller, right, thing):
        raise refusal(caller, right, thing)


def refusal(caller: Caller | None, right: str, thing: Thing = NOTHING) -> DomainError:
    """The error for a right the caller does not have; it says who has it, and what to do."""
    rule = rule_of(right, thing.kind)
    by_agent = caller is not None and caller.is_agent
    if rule.hidden and not (by_agent and rule.agents is NEVER):
        return NotFound(rule.hidden)
    if by_agent:
        return Forbidden(_AGENT_REFUSED[rule.agents].format(what=f"{rule.action} {rule.object}"))
    return Forbidden(_REFUSED[rule.people])


_REFUSED: Final = {
    People.EVERYONE: "insufficient permissions",
    People.USERS: "insufficient permissions",
    People.MEMBERS: "only members of the workspace may do this",
    People.MANAGERS: "you do not have access to this: it belongs to another member",
    People.ADMINS: "only owners and admins of the workspace may do this",
    People.OWNERS: "only owners of the workspace may do this",
    People.SELF: "you do not have access to this: it belongs to somebody else",
    People.HOLDER: "you do not have access to this: it belongs to somebody else",
    People.NOBODY: "this endpoint is only available to agents",
}

_AGENT_REFUSED: Final = {
    Agents.ALL: "insufficient permissions",
    Agents.WORK: "an agent may do this with its own work only ({what})",
    Agents.CIRCLE: "you do not have access to this: it belongs to another member",
    Agents.SETTING: "agents may not do this unless an owner allows it (settings.agents_may: {what})",
    Agents.NEVER: "this endpoint is only available to human actors",
}


# --- audiences ------------------------------------------------------------------------------------


@attrs.frozen
class Audience:
    """Who hears of an event in a workspace: everybody there, its admins, or these users."""

    members: bool = False
    admins: bool = False
    owners: bool = False
    users: tuple[str, ...] = ()
    anywhere: bool = False
    """Wherever the users' pages are open, not only in the workspace."""


def audience(right: str, thing: Thing = NOTHING) -> Audience:
    """The people who have the right to a thing, as topics can name them."""
    rule = rule_of(right, thing.kind)
    users = tuple(user for user in thing.people if user)
    match rule.people:
        case People.EVERYONE | People.USERS | People.MEMBERS:
            return Audience(members=True)
        case People.MANAGERS:
            return Audience(admins=True, owners=True, users=users)
        case People.ADMINS:
            return Audience(admins=True, owners=True)
        case People.OWNERS:
            return Audience(owners=True)
        case People.SELF | People.HOLDER:
            return Audience(users=users)
        case People.NOBODY:
            return Audience()
