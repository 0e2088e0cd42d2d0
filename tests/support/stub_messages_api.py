"""A stand-in for the Anthropic Messages API on loopback, told by the conversation what to answer.

Runs as a program (`python -m tests.support.stub_messages_api --port 0`, prints its base URL) or
inside a test (`open_stub`). It looks at the last thing a person wrote, or a tool brought, that
holds markers, and answers one marker a call:

    [[sh: COMMAND]]       a tool call that runs the command
    [[sh-bg: COMMAND]]    the same in the background
    [[agent-bg: PROMPT]]  a sub-agent in the background; ((…)) in its prompt are its markers
    [[say: TEXT]]         the answer in words, ending the turn
    [[text: TEXT]]        words before the next tool call
    [[think: TEXT]]       thinking before it
    [[http: CODE]]        an error, always;  [[http: CODE N]]  the first N times
    [[quota: SECONDS]]    an error: the quota is used up, and back after so long
    [[hang]]              no answer while the connection lasts
    [[drop]]              half an answer, then the connection is cut

`{out}` in TEXT is the last tool result, `{turn}` the number of the user's turn; `$ISSUE` in COMMAND
is the issue that the conversation names. A prompt without markers that says `issue get REF` makes
it read that issue first, so an issue's description can hold the script. An API key naming a status
(`key-401`) is answered with it. Everything asked is kept in `requests`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import attrs
import h11
import trio

_MARKER = re.compile(
    r"\[\[\s*(sh-bg|sh|agent-bg|say|text|think|http|quota|hang|drop)\b\s*:?\s*(.*?)\s*\]\]",
    re.DOTALL,
)
_UUID = r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}"
_ISSUE = re.compile(rf"issue get ({_UUID}|[A-Z][A-Z0-9]*-\d+)")
_KEY = re.compile(r"key-(\d{3})")
_TURN_ENDERS = {"say", "http", "quota", "hang", "drop"}
_ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "api_error",
    529: "overloaded_error",
}


@attrs.frozen
class Marker:
    word: str
    argument: str


@attrs.frozen
class Plan:
    """What to answer to one call."""

    blocks: list[dict[str, Any]] = attrs.field(factory=list)
    error: int = 0
    quota: int = 0
    hang: bool = False
    drop: bool = False


@attrs.define
class Stub:
    """A running stub. `requests` are the bodies received, oldest first."""

    url: str
    requests: list[dict[str, Any]] = attrs.field(factory=list)
    errors_sent: dict[str, int] = attrs.field(factory=dict)
    asked: trio.Event = attrs.field(factory=trio.Event)  # set when the first call arrives


def plan(body: dict[str, Any], errors_sent: dict[str, int]) -> Plan:
    """Decide what to answer to a conversation; `errors_sent` counts errors per script."""
    messages = body.get("messages", [])
    start = max((i for i, m in enumerate(messages) if _is_turn(m)), default=0)
    turn = sum(map(_is_turn, messages))
    script: list[Marker] = []
    steps = 0  # tool calls made since the script was found
    last_result = ""
    for message in messages[start:]:
        for kind, text in _parts(message):
            if kind == "tool_result":
                last_result = text
                steps += bool(script)
            if not script and message.get("role") == "user":
                script = [Marker(*found) for found in _MARKER.findall(text)]
    if not script:
        named = _ISSUE.search(_all_text(messages[start:]))
        if named and not last_result:
            return Plan(blocks=[_tool(f"bullpen issue get {named[1]} --output json")])
        return Plan(blocks=[{"type": "text", "text": f"stub answer, turn {turn}"}])
    issue = _ISSUE.search(_all_text(messages))
    fill = {"{out}": last_result, "{turn}": str(turn), "$ISSUE": issue[1] if issue else ""}
    return _next(script, steps, fill, errors_sent)


def _next(script: list[Marker], steps: int, fill: dict[str, str], sent: dict[str, int]) -> Plan:
    blocks: list[dict[str, Any]] = []
    tools = 0
    for marker in script:
        text = marker.argument
        for name, value in fill.items():
            text = text.replace(name, value)
        match marker.word:
            case "text" if tools == steps:
                blocks.append({"type": "text", "text": text})
            case "think" if tools == steps:
                blocks.append({"type": "thinking", "thinking": text, "signature": "c3R1Yg=="})
            case "sh" | "sh-bg":
                if tools == steps:
                    background = marker.word == "sh-bg"
                    return Plan(blocks=[*blocks, _tool(text, background=background)])
                tools += 1
            case "agent-bg":
                if tools == steps:
                    return Plan(blocks=[*blocks, _sub_agent(text)])
                tools += 1
            case "say" if tools == steps:
                return Plan(blocks=[*blocks, {"type": "text", "text": text}])
            case "http" if tools == steps:
                code, _, times = text.replace(":", " ").partition(" ")
                key = f"{steps}:{text}"
                sent[key] = sent.get(key, 0) + 1
                if not times or sent[key] <= int(times):
                    return Plan(error=int(code))
            case "quota" if tools == steps:
                return Plan(error=429, quota=int(text))
            case "hang" if tools == steps:
                return Plan(hang=True)
            case "drop" if tools == steps:
                return Plan(drop=True)
    return Plan(blocks=[*blocks, {"type": "text", "text": f"stub done, turn {fill['{turn}']}"}])


def _tool(command: str, *, background: bool = False) -> dict[str, Any]:
    arguments: dict[str, Any] = {"command": command, "description": "scripted by the stub"}
    if background:
        arguments["run_in_background"] = True
    identity = f"toolu_stub_{uuid.uuid4().hex[:16]}"
    return {"type": "tool_use", "id": identity, "name": "Bash", "input": arguments}


def _sub_agent(prompt: str) -> dict[str, Any]:
    arguments = {
        "description": "scripted by the stub",
        "prompt": prompt.replace("((", "[[").replace("))", "]]"),
        "subagent_type": "general-purpose",
        "run_in_background": True,
    }
    identity = f"toolu_stub_{uuid.uuid4().hex[:16]}"
    return {"type": "tool_use", "id": identity, "name": "Agent", "input": arguments}


def _is_turn(message: dict[str, Any]) -> bool:
    """Whether a person's words begin a turn, as opposed to tool results coming back."""
    return message.get("role") == "user" and all(k != "tool_result" for k, _ in _parts(message))


def _parts(message: dict[str, Any]) -> Iterator[tuple[str, str]]:
    content = message.get("content", "")
    if isinstance(content, str):
        yield "text", content
        return
    for block in content:
        kind = block.get("type", "")
        if kind == "text":
            yield kind, block.get("text", "")
        elif kind == "tool_result":
            yield kind, _result_text(block.get("content", ""))


def _result_text(content: Any) -> str:
    text = content if isinstance(content, str) else "".join(b.get("text", "") for b in content)
    try:
        value = json.loads(text)
    except ValueError:
        return text
    # An issue as JSON: its description holds the script, unescaped.
    return (
        str(value["description"]) if isinstance(value, dict) and value.get("description") else text
    )


def _all_text(messages: list[dict[str, Any]]) -> str:
    return "\n".join(
        text for message in messages for kind, text in _parts(message) if kind == "text"
    )


def _reply(body: dict[str, Any], blocks: list[dict[str, Any]]) -> dict[str, Any]:
    tool = any(block["type"] == "tool_use" for block in blocks)
    return {
        "id": f"msg_stub_{uuid.uuid4().hex[:16]}",
        "type": "message",
        "role": "assistant",
        "model": body.get("model", "stub"),
        "content": blocks,
        "stop_reason": "tool_use" if tool else "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 100 + len(body.get("messages", [])),
            "cache_creation_input_tokens": 7,
            "cache_read_input_tokens": 5,
            "output_tokens": 20,
        },
    }


def _events(reply: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Cut a reply into the events of a stream."""
    usage = {**reply["usage"], "output_tokens": 1}
    yield {
        "type": "message_start",
        "message": {**reply, "content": [], "stop_reason": None, "usage": usage},
    }
    for index, block in enumerate(reply["content"]):
        empty: dict[str, Any]
        match block["type"]:
            case "text":
                empty, deltas = {"type": "text", "text": ""}, _text_deltas(block["text"])
            case "thinking":
                empty = {"type": "thinking", "thinking": "", "signature": ""}
                deltas = [
                    {"type": "thinking_delta", "thinking": block["thinking"]},
                    {"type": "signature_delta", "signature": block["signature"]},
                ]
            case _:
                empty = {**block, "input": {}}
                partial = json.dumps(block["input"])
                deltas = [{"type": "input_json_delta", "partial_json": partial}]
        yield {"type": "content_block_start", "index": index, "content_block": empty}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    yield {
        "type": "message_delta",
        "delta": {"stop_reason": reply["stop_reason"], "stop_sequence": None},
        "usage": {"output_tokens": reply["usage"]["output_tokens"]},
    }
    yield {"type": "message_stop"}


def _text_deltas(text: str) -> list[dict[str, Any]]:
    return [{"type": "text_delta", "text": text[i : i + 40]} for i in range(0, len(text), 40)]


def _quota_headers(seconds: int) -> list[tuple[str, str]]:
    if not seconds:
        return []
    prefix = "anthropic-ratelimit-unified"
    return [
        (f"{prefix}-status", "rejected"),
        (f"{prefix}-reset", str(int(time.time()) + seconds)),
        (f"{prefix}-representative-claim", "five_hour"),
        ("x-should-retry", "false"),
    ]


class _Connection:
    """One client connection; h11 frames it, this answers it."""

    def __init__(self, stub: Stub, stream: trio.SocketStream) -> None:
        self._stub = stub
        self._stream = stream
        self._h11 = h11.Connection(h11.SERVER)

    async def run(self) -> None:
        try:
            while True:
                await self._one()
                if self._h11.our_state is not h11.DONE:
                    return
                self._h11.start_next_cycle()
        except (h11.ProtocolError, trio.BrokenResourceError, trio.ClosedResourceError):
            return

    async def _event(self) -> Any:
        while (event := self._h11.next_event()) is h11.NEED_DATA:
            self._h11.receive_data(await self._stream.receive_some(65536))
        return event

    async def _one(self) -> None:
        request = await self._event()
        if not isinstance(request, h11.Request):
            raise trio.ClosedResourceError
        data = bytearray()
        while isinstance(event := await self._event(), h11.Data):
            data += event.data
        path = request.target.decode().partition("?")[0]
        headers = {name.decode(): value.decode() for name, value in request.headers}
        if request.method != b"POST":
            await self._json(200, {})
        elif path.endswith("/count_tokens"):
            await self._json(200, {"input_tokens": 100})
        elif path.endswith("/v1/messages"):
            await self._message(json.loads(data), headers)
        else:
            await self._json(404, _error_body(404))

    async def _message(self, body: dict[str, Any], headers: dict[str, str]) -> None:
        self._stub.requests.append(body)
        self._stub.asked.set()
        key = headers.get("x-api-key") or headers.get("authorization", "")
        if refused := _KEY.search(key):
            await self._json(int(refused[1]), _error_body(int(refused[1])))
            return
        answer = plan(body, self._stub.errors_sent)
        if answer.hang:
            while await self._stream.receive_some(65536):
                pass
            raise trio.ClosedResourceError
        if answer.error:
            await self._json(answer.error, _error_body(answer.error), _quota_headers(answer.quota))
        elif answer.drop:
            await self._stream_reply(_reply(body, [{"type": "text", "text": "cut"}]), cut=True)
        elif body.get("stream"):
            await self._stream_reply(_reply(body, answer.blocks))
        else:
            await self._json(200, _reply(body, answer.blocks))

    async def _json(self, status: int, value: Any, more: Sequence[tuple[str, str]] = ()) -> None:
        data = json.dumps(value).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(data)))]
        headers += [("request-id", "req_stub"), *more]
        if status in {400, 401, 403, 404}:
            headers += [("x-should-retry", "false")]
        await self._send(h11.Response(status_code=status, headers=headers))
        await self._send(h11.Data(data=data))
        await self._send(h11.EndOfMessage())

    async def _stream_reply(self, reply: dict[str, Any], *, cut: bool = False) -> None:
        headers = [("content-type", "text/event-stream"), ("request-id", "req_stub")]
        await self._send(h11.Response(status_code=200, headers=headers))
        for number, event in enumerate(_events(reply)):
            if cut and number == 3:
                raise trio.ClosedResourceError
            text = f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"
            await self._send(h11.Data(data=text.encode()))
        await self._send(h11.EndOfMessage())

    async def _send(self, event: Any) -> None:
        await self._stream.send_all(self._h11.send(event) or b"")


def _error_body(status: int) -> dict[str, Any]:
    kind = _ERRORS.get(status, "api_error")
    return {"type": "error", "error": {"type": kind, "message": f"stub says {status}"}}


@asynccontextmanager
async def open_stub(port: int = 0) -> AsyncIterator[Stub]:
    """Serve on loopback while the block runs."""
    listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
    stub = Stub(f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}")

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await _Connection(stub, stream).run()

    async with trio.open_nursery() as connections:
        await connections.start(trio.serve_listeners, serve, listeners)
        yield stub
        connections.cancel_scope.cancel()


def claude_environment(url: str, *, home: str, path: str, key: str = "key-ok") -> dict[str, str]:
    """Return the variables that make claude talk to a stub and to nobody else."""
    return {
        "PATH": path,
        "HOME": home,
        "LANG": "C.UTF-8",
        "IS_SANDBOX": "1",
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_API_KEY": key,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_MAX_RETRIES": "1",
        "DISABLE_AUTOUPDATER": "1",
        "DISABLE_TELEMETRY": "1",
        "DISABLE_ERROR_REPORTING": "1",
    }


async def _main() -> None:
    parser = argparse.ArgumentParser(description="A stand-in for the Anthropic Messages API.")
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    async with open_stub(arguments.port) as stub:
        print(stub.url, flush=True)
        await trio.sleep_forever()


if __name__ == "__main__":
    try:
        trio.run(_main)
    except KeyboardInterrupt:
        sys.exit(130)
