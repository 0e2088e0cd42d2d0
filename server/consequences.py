"""What follows from a change, to be told after its transaction has committed.

Units of work return these beside their value; back in Trio the endpoint gives them to
`Hub.announce`. A unit that fails tells nobody.
"""

from __future__ import annotations

import attrs

from shared.wire.event import Event


@attrs.frozen
class TaskAvailable:
    """A runtime has something to claim: its daemon's socket gets a wake-up frame."""

    runtime_id: str
    task_id: str


@attrs.frozen
class ProfilesChanged:
    """The workspace's runtime profiles changed: its daemons fetch them again."""

    workspace_id: str
    profile_id: str = ""


@attrs.frozen
class TokensRevoked:
    """These token hashes are dead: whoever cached what they stand for forgets it."""

    hashes: tuple[str, ...]


@attrs.frozen
class Counted:
    """Something that the metrics of this process count, and nobody else hears of."""

    name: str
    times: int = 1


Consequence = Event | TaskAvailable | ProfilesChanged | TokensRevoked | Counted
