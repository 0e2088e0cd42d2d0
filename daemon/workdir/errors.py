"""What can be wrong with a task's place to work. ◇"""

from __future__ import annotations


class PrepareError(Exception):
    """The working directory cannot be made; the text is meant for the task's error field.

    `reason` is the failure reason if it is known; otherwise it is classified from the text.
    """

    def __init__(self, text: str, *, reason: str = "") -> None:
        super().__init__(text)
        self.reason = reason
