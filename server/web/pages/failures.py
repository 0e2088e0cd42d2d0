"""Why a run failed, in words, and what its reader can do about it. Pure.

The protocol names reasons (spec 01 §3.13) and the set is open: an unknown one falls back to its
family, and the agent's own error text is always shown beside these words.
"""

from __future__ import annotations

from typing import Final

import attrs

from shared import failure


@attrs.frozen
class Words:
    """What happened, and what to do now."""

    happened: str
    remedy: str


_FALLBACK: Final = Words(
    "The run failed.", "Open the transcript to see how far it got, then run it again."
)

_WORDS: Final[dict[str, Words]] = {
    failure.QUEUED_EXPIRED: Words(
        "No machine took the task in time.",
        "Check on the Runtimes page that the agent's machine is online, then run it again.",
    ),
    failure.RUNTIME_OFFLINE: Words(
        "The machine went offline during the run.",
        "Bring the machine back (bullpen up). If no new attempt was queued, run it again.",
    ),
    failure.RUNTIME_RECOVERY: Words(
        "The daemon on the machine restarted during the run.",
        "Usually a new attempt is queued by itself. If not, run it again.",
    ),
    failure.TIMEOUT: Words(
        "The run took longer than it may.",
        "Split the issue into smaller ones, or raise the limit on the machine.",
    ),
    failure.ITERATION_LIMIT: Words(
        "The agent reached its limit of turns.",
        "Split the issue into smaller ones and run it again with a fresh session.",
    ),
    failure.AGENT_BLOCKED: Words(
        "The agent could not go on without help.", "Read its last words and answer in a comment."
    ),
    failure.API_INVALID_REQUEST: Words(
        "The model refused the request as invalid.",
        "Run it again: it starts with a fresh session.",
    ),
    failure.AGENT_FALLBACK_MESSAGE: Words(
        "The agent ended with a stock phrase instead of an answer.",
        "Run it again: it starts with a fresh session.",
    ),
    failure.CODEX_SEMANTIC_INACTIVITY: Words(
        "The agent stopped making progress.", "Run it again: it starts with a fresh session."
    ),
    failure.IDLE_WATCHDOG: Words(
        "The agent was silent for too long and was stopped.",
        "Open the transcript for the last thing it did, then run it again.",
    ),
    failure.LOCAL_DIRECTORY_ERROR: Words(
        "The work directory could not be used.",
        "Check that the directory exists on the machine and can be written.",
    ),
    failure.CANCELLED: Words("The run was stopped.", "Run it again when you want it to go on."),
    failure.AUTH: Words(
        "The agent program is not signed in, or its access was refused.",
        "Sign the agent program in on its machine, then run it again.",
    ),
    failure.QUOTA: Words(
        "The account's usage limit is reached.",
        "Wait until the limit resets or top the account up, then run it again.",
    ),
    failure.CAPACITY: Words(
        "The model provider is overloaded or limits the rate.", "Wait a little and run it again."
    ),
    failure.SERVER_ERROR: Words(
        "The model provider had an error of its own.", "Wait a little and run it again."
    ),
    failure.NETWORK: Words(
        "The machine could not reach the model provider.",
        "Check the machine's network connection and proxy, then run it again.",
    ),
    failure.PROCESS_FAILURE: Words(
        "The agent program crashed.", "Run it again; if it happens each time, update the program."
    ),
    failure.EMPTY_OUTPUT: Words(
        "The agent ended without saying anything.",
        "Open the transcript to see what it did, then run it again.",
    ),
    failure.AGENT_TIMEOUT: Words(
        "The agent ran out of time.", "Split the issue into smaller ones and run it again."
    ),
    failure.CONTEXT_OVERFLOW: Words(
        "The conversation no longer fits the model.",
        "Split the issue, or run it again with a fresh session.",
    ),
    failure.MISSING_CONFIG: Words(
        "The agent program lacks a setting it needs.",
        "Set the missing variable on the machine, then run it again.",
    ),
    failure.MODEL_NOT_FOUND: Words(
        "The chosen model does not exist or is not available.",
        "Choose another model for the agent on the Agents page.",
    ),
    failure.VERSION_UNSUPPORTED: Words(
        "The agent program is too old.", "Update it on its machine, then run it again."
    ),
    failure.MISSING_EXECUTABLE: Words(
        "The agent program was not found on the machine.", "Install it there, then run it again."
    ),
}


def explain(reason: str) -> Words:
    """Say in words what a failure reason means; never fails."""
    return _WORDS.get(reason, _FALLBACK)
