"""What everybody who works for a runtime needs to know of it. Pure."""

from __future__ import annotations

import attrs

from daemon.agents.contract import Program


@attrs.frozen(kw_only=True)
class RuntimeInfo:
    """A row of the server that binds this daemon, a workspace and an agent program.

    `owner_id` is the user to whom the machine belongs.
    """

    id: str
    workspace_id: str
    provider: str
    program: Program
    profile_id: str = ""
    owner_id: str = ""
