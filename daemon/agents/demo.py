"""The demo agent: a small program that speaks claude's protocol and does a small but real job.

It ships with Bullpen so that the whole loop can be seen working where no agent program is
installed. It is no model: it reads its issue through the `bullpen` command with its task's token,
sets it in progress, writes a file of notes, looks at it with a real shell command, posts a comment
saying what it did, and sets the issue in review. Woken by a comment it answers in that thread and
leaves the status alone. Every word of it says that it is a demo, and it reports no tokens, because
it uses none.

Lines of the issue's description (or of the comment) that begin with `demo:` are a script, run in
order in place of the look at the notes; they make the demo useful for trying things out:

    demo: say TEXT               say something
    demo: think TEXT             think something
    demo: lines N [every S]      say N lines, S seconds apart (0.01)
    demo: sleep S                be silent for S seconds
    demo: sh COMMAND             run a shell command in the work directory, see below
    demo: fail TEXT              end the task as failed, with this text

A shell command is run only if the machine's owner asked for the task and alone wrote the text it
stands in (nobody else has changed it); the daemon names the owner in `MULTICA_DEMO_OWNER` where the first is so.

The pause between steps is 0.2 s, or `MULTICA_DEMO_PACE` seconds. Standard input carries the prompt
and, at any time, the interrupt request; `--resume` continues a session known in the work directory.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NoReturn

VERSION: Final = "0.1.0"
MODEL: Final = "demo"

_UUID: Final = r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}"
_ISSUE: Final = re.compile(rf"\bissue get ({_UUID}|[A-Za-z][A-Za-z0-9]*-\d+)")
_PARENT: Final = re.compile(rf"--parent ({_UUID})")
_SCRIPT: Final = re.compile(r"^[\s>]*demo:\s*([a-z]+)[ \t]*(.*?)\s*$", re.MULTILINE)
_LINES: Final = re.compile(r"(\d+)(?:\s+every\s+([\d.]+)\s*s?)?")
_SESSIONS: Final = Path(".bullpen-demo")
_NOTES: Final = "demo-notes.md"
_LINES_LIMIT: Final = 100_000
_OWNER: Final = "MULTICA_DEMO_OWNER"
_NOT_YOURS: Final = (
    "I run shell commands for the owner of my machine only: who asks must be the owner,"
    " and the text must be the owner's."
)


class Interrupted(Exception):
    """The daemon asked for the end of this turn."""


class Failed(Exception):
    """The task cannot be done; the text says why."""


class Demo:
    """One run of the program: its streams, its session and the steps it takes."""

    def __init__(self, session: str, turn: int, pace: float) -> None:
        self._session = session
        self._turn = turn
        self._pace = pace
        self._steps = 0
        self._requests: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def run(self) -> int:
        """Take the prompt, do the job, tell the result; returns the exit code."""
        prompt = self._wait_for_prompt()
        self._emit(
            "system",
            subtype="init",
            cwd=str(Path.cwd()),
            model=MODEL,
            tools=["Bash", "Write"],
            mcp_servers=[],
            permissionMode="bypassPermissions",
            demo_version=VERSION,
        )
        try:
            answer = self._work(prompt)
        except Interrupted:
            self._result("error_during_execution", errors=["interrupted"], reason="aborted_tools")
            return 1
        except Failed as error:
            self._result("error_during_execution", errors=[str(error)], reason="completed")
            return 1
        self._result("success", result=answer, reason="completed")
        return 0

    def _work(self, prompt: str) -> str:
        found = _ISSUE.search(prompt)
        if found is None:
            self._run_script(prompt, is_trusted=bool(os.environ.get(_OWNER)))
            answer = "This is Bullpen's demo agent. No issue was named, so there was nothing to do."
            self._say(answer)
            return answer
        issue = found[1]
        parent = _PARENT.search(prompt)
        self._think("I am the demo agent, a script and no model. First I read the issue.")
        text = self._tool_bullpen("issue", "get", issue, "--output", "json")
        try:
            details = json.loads(text)
        except ValueError:
            raise Failed(f"the issue could not be read: {text.strip()}") from None
        if parent is not None:
            return self._answer_comment(issue, parent[1], prompt, details)
        return self._do_issue(issue, details)

    def _do_issue(self, issue: str, details: dict[str, Any]) -> str:
        title, description = str(details.get("title", "")), str(details.get("description") or "")
        self._say(f"Demo agent here. I take on “{title}”.")
        self._tool_bullpen("issue", "status", issue, "in_progress")
        self._think("I write down what the issue asks for.")
        notes = self._write_notes(str(details.get("identifier") or issue), title, description)
        is_trusted = _is_owners_text(details, "creator")
        if not self._run_script(description, is_trusted=is_trusted):
            self._tool_shell(f"wc -w -l {shlex.quote(notes)} && ls -l")
        words, sentences = len(description.split()), _count_sentences(description)
        report = (
            f"**Demo agent** (a script that ships with Bullpen, not a model): I read this issue,"
            f" wrote `{notes}` in my work directory with its title and its {words} words in"
            f" {sentences} sentence{'' if sentences == 1 else 's'}, and looked at it with a shell"
            f" command ({self._steps} steps in all). Please review; a comment here makes me answer."
        )
        self._comment(issue, report)
        self._tool_bullpen("issue", "status", issue, "in_review")
        answer = f"Demo done: notes written to {notes}, comment posted, issue set in review."
        self._say(answer)
        return answer

    def _answer_comment(self, issue: str, parent: str, prompt: str, details: dict[str, Any]) -> str:
        thread = self._tool_bullpen(
            "issue", "comment", "list", issue, "--thread", parent, "--output", "json"
        )
        comment = _find_comment(thread, parent)
        asked = str(comment.get("content", ""))
        is_trusted = _is_owners_text(comment, "author")
        self._run_script(asked or prompt, is_trusted=is_trusted)
        status = details.get("status", "unknown")
        answer = (
            f"**Demo agent**: I read your comment of {len(asked.split())} words on"
            f" “{details.get('title', '')}”. I am a script and cannot do what it asks, but this is"
            f" how an agent's answer arrives. The issue stays {status}."
        )
        self._comment(issue, answer, parent)
        self._say("Demo done: comment answered.")
        return "Demo done: comment answered."

    def _run_script(self, text: str, *, is_trusted: bool) -> bool:
        """Run the script lines of a text; say whether there were any."""
        lines = _SCRIPT.findall(text)
        for word, argument in lines:
            match word:
                case "say":
                    self._say(argument)
                case "think":
                    self._think(argument)
                case "lines" if found := _LINES.fullmatch(argument):
                    every = float(found[2]) if found[2] else 0.01
                    for number in range(1, min(int(found[1]), _LINES_LIMIT) + 1):
                        self._emit_block({"type": "text", "text": f"demo line {number}\n"})
                        self._pause(every)
                case "sleep" if argument.replace(".", "", 1).isdigit():
                    self._pause(float(argument))
                case "sh" if is_trusted:
                    self._tool_shell(argument)
                case "sh":
                    self._say(_NOT_YOURS)
                case "fail":
                    raise Failed(argument or "the demo was told to fail")
                case _:
                    self._say(f"I do not understand the script line “demo: {word} {argument}”.")
        return bool(lines)

    def _write_notes(self, identifier: str, title: str, description: str) -> str:
        points = [line.strip() for line in description.splitlines() if line.strip()]
        listed = "\n".join(f"- {point}" for point in points) or "- (no description)"
        text = f"# {identifier}: {title}\n\nWritten by the demo agent.\n\n{listed}\n"
        with self._tool("Write", {"file_path": _NOTES, "content": text}) as call:
            data = text.encode("utf-8", "replace")
            Path(_NOTES).write_bytes(data)
            call.output = f"{len(data)} bytes written to {_NOTES}"
        return _NOTES

    def _comment(self, issue: str, text: str, parent: str = "") -> None:
        command = ["issue", "comment", "add", issue, "--content-stdin", "--output", "json"]
        self._tool_bullpen(*command, *(["--parent", parent] if parent else []), stdin=text)

    def _tool_bullpen(self, *arguments: str, stdin: str = "") -> str:
        """Run the `bullpen` command. Raises Failed when it fails: the loop is broken then."""
        program = shutil.which("bullpen") or str(Path(sys.executable).parent / "bullpen")
        shown = shlex.join(["bullpen", *arguments])
        with self._tool("Bash", {"command": shown}) as call:
            code, output = self._execute([program, *arguments], stdin)
            call.output, call.is_error = output, code != 0
        if code:
            raise Failed(f"`{shown}` ended with {code}: {output.strip()[-500:]}")
        return output

    def _tool_shell(self, command: str) -> None:
        with self._tool("Bash", {"command": command}) as call:
            code, output = self._execute(["/bin/sh", "-c", command], "")
            call.output = output if code == 0 else f"Exit code {code}\n{output}"
            call.is_error = code != 0

    def _execute(self, argv: Sequence[str], stdin: str) -> tuple[int, str]:
        """Run a program while listening for the interrupt. Returns (exit code, its output)."""
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # as real agents' tool shells do
            )
        except OSError as error:
            raise Failed(f"cannot run {argv[0]}: {error}") from error
        text: bytes | None = stdin.encode("utf-8", "replace")
        while True:
            try:
                output, _ = process.communicate(text, timeout=0.05)
                return process.returncode, output.decode("utf-8", "replace")
            except subprocess.TimeoutExpired:
                text = None
            try:
                self._pause(0)
            except Interrupted:
                os.killpg(process.pid, 9)
                process.communicate()
                raise

    @contextmanager
    def _tool(self, name: str, arguments: dict[str, Any]) -> Iterator[_Outcome]:
        """Announce a tool call, and tell its result unless the turn ends in between."""
        self._steps += 1
        call = f"demo_{uuid.uuid4().hex[:16]}"
        self._emit_block({"type": "tool_use", "id": call, "name": name, "input": arguments})
        self._pause(self._pace)
        outcome = _Outcome()
        yield outcome
        block = {"type": "tool_result", "tool_use_id": call, "content": outcome.output}
        content = [{**block, "is_error": outcome.is_error}]
        self._emit("user", message={"role": "user", "content": content}, parent_tool_use_id=None)
        self._pause(self._pace)

    def _say(self, text: str) -> None:
        self._emit_block({"type": "text", "text": text})
        self._pause(self._pace)

    def _think(self, text: str) -> None:
        self._emit_block({"type": "thinking", "thinking": text})
        self._pause(self._pace)

    def _emit_block(self, block: dict[str, Any]) -> None:
        message = {
            "id": f"msg_demo_{uuid.uuid4().hex[:12]}",
            "model": MODEL,
            "role": "assistant",
            "content": [block],
        }
        self._emit("assistant", message=message, parent_tool_use_id=None)

    def _result(self, subtype: str, *, reason: str, **more: Any) -> None:
        self._emit(
            "result",
            subtype=subtype,
            is_error=subtype != "success",
            num_turns=self._turn,
            terminal_reason=reason,
            total_cost_usd=0,
            usage={"input_tokens": 0, "output_tokens": 0},
            modelUsage={},
            **more,
        )

    def _emit(self, kind: str, **fields: Any) -> None:
        event = {"type": kind, **fields, "session_id": self._session, "uuid": str(uuid.uuid4())}
        _write(event)

    def _pause(self, seconds: float) -> None:
        """Wait, unless the daemon interrupts. Raises Interrupted."""
        deadline = time.monotonic() + seconds
        while True:
            left = deadline - time.monotonic()
            try:
                event = (
                    self._requests.get(timeout=left) if left > 0 else self._requests.get_nowait()
                )
            except queue.Empty:
                return
            if event is not None and _is_interrupt(event):
                reply = {"subtype": "success", "request_id": event.get("request_id")}
                _write({"type": "control_response", "response": reply})
                raise Interrupted

    def _wait_for_prompt(self) -> str:
        while (event := self._requests.get()) is not None:
            if event.get("type") == "user":
                return "\n".join(_texts(event))
            if _is_interrupt(event):
                break
        sys.exit("demo: standard input ended before a prompt came")

    def _listen(self) -> None:
        for line in sys.stdin:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict):
                self._requests.put(event)
        self._requests.put(None)


class _Outcome:
    """What came of a tool call; filled in while it is under way."""

    output = ""
    is_error = False


def _write(event: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(event) + "\n")  # ASCII: nothing in it can fail to be encoded
    sys.stdout.flush()


def _texts(event: dict[str, Any]) -> Iterator[str]:
    content = event.get("message", {}).get("content", [])
    if isinstance(content, str):
        yield content
        return
    for block in content:
        if block.get("type") == "text":
            yield block.get("text", "")


def _is_interrupt(event: dict[str, Any]) -> bool:
    return (
        event.get("type") == "control_request"
        and event.get("request", {}).get("subtype") == "interrupt"
    )


def _find_comment(listing: str, comment: str) -> dict[str, Any]:
    """Find a comment in what `comment list --output json` printed; {} if it is not there."""
    try:
        rows = json.loads(listing)
    except ValueError:
        return {}
    for row in rows if isinstance(rows, list) else []:
        if isinstance(row, dict) and row.get("id") == comment:
            return row
    return {}


def _is_owners_text(thing: dict[str, Any], writer: str) -> bool:
    """Whether the machine's owner, who also asked for the task, alone wrote an issue or comment.

    A member may have changed the owner's words; the server then says so beside them.
    """
    owner = os.environ.get(_OWNER)
    wrote = (thing.get(f"{writer}_type"), thing.get(f"{writer}_id"))
    return bool(owner) and wrote == ("member", owner) and not thing.get("edited_by_others")


def _count_sentences(text: str) -> int:
    return len([part for part in re.split(r"[.!?]+(?:\s|$)|\n+", text) if part.strip()])


def _open_session(resume: str) -> tuple[str, int]:
    """Return (session id, number of this turn), kept in the work directory as claude does."""
    session = resume or str(uuid.uuid4())
    file = _SESSIONS / f"{session}.json"
    if resume and not (re.fullmatch(_UUID, resume) and file.is_file()):
        _refuse(resume)
    turn = json.loads(file.read_text(encoding="utf-8"))["turns"] + 1 if resume else 1
    _SESSIONS.mkdir(exist_ok=True)
    file.write_text(json.dumps({"turns": turn}), encoding="utf-8")
    return session, turn


def _refuse(session: str) -> NoReturn:
    said = f"No conversation found with session ID: {session}"
    _write(
        {
            "type": "result",
            "subtype": "error_during_execution",
            "is_error": True,
            "num_turns": 0,
            "session_id": session,
            "errors": [said],
        }
    )
    sys.exit(said)


def _pace() -> float:
    try:
        return min(10.0, max(0.0, float(os.environ.get("MULTICA_DEMO_PACE", ""))))
    except ValueError:
        return 0.2


def main() -> int:
    """Run the demo agent as a program."""
    parser = argparse.ArgumentParser(prog="bullpen demo agent", description="Bullpen's demo agent")
    parser.add_argument("--version", action="version", version=f"demo {VERSION}")
    parser.add_argument("--resume", default="")
    arguments, _ = parser.parse_known_args()
    session, turn = _open_session(arguments.resume)
    return Demo(session, turn, _pace()).run()


if __name__ == "__main__":
    sys.exit(main())
