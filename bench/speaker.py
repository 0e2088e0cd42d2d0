"""The timed agent: speaks just enough of Claude Code's stream-JSON to be run as one.

Every text says when it was written; BENCH_LINES and BENCH_EVERY say how many and how far apart.
"""

from __future__ import annotations

import json
import os
import sys
import time
import uuid


def say(event: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def main() -> None:
    sys.stdin.readline()
    session = str(uuid.uuid4())
    say({"type": "system", "subtype": "init", "session_id": session, "model": "timed"})
    for number in range(int(os.environ.get("BENCH_LINES", "0"))):
        time.sleep(float(os.environ.get("BENCH_EVERY", "0.7")))
        # A tool call each time: consecutive texts may be merged, calls never are.
        call = {
            "type": "tool_use",
            "id": f"call-{number}",
            "name": "Clock",
            "input": {"at": time.time_ns()},
        }
        say(
            {
                "type": "assistant",
                "session_id": session,
                "message": {"id": f"m{number}", "model": "timed", "content": [call]},
            }
        )
        result = {"type": "tool_result", "tool_use_id": call["id"], "content": "ok"}
        say({"type": "user", "session_id": session, "message": {"content": [result]}})
    say(
        {
            "type": "result",
            "subtype": "success",
            "is_error": False,
            "result": "done talking",
            "session_id": session,
            "usage": {"input_tokens": 1, "output_tokens": 1},
        }
    )


if __name__ == "__main__":
    main()
