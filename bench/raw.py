"""A keep-alive HTTP client that costs almost nothing, so that the server is what is measured.

It sends prepared bytes and reads answers by their Content-Length; it knows no redirects, chunks or
TLS. For anything but a load loop use a real client.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

import trio


class Connection:
    """One connection; one request at a time."""

    def __init__(self, stream: trio.SocketStream, host: str, token: str) -> None:
        self._stream = stream
        self._head = f"Host: {host}\r\nAuthorization: Bearer {token}\r\n"
        self._rest = b""

    async def post(self, path: str, body: Any = None) -> Any:
        """POST a JSON value and return the decoded answer. Raises RuntimeError on status >= 400."""
        payload = json.dumps({} if body is None else body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\n{self._head}Content-Type: application/json\r\n"
            f"Content-Length: {len(payload)}\r\n\r\n"
        )
        await self._stream.send_all(head.encode() + payload)
        return await self._answer(path)

    async def _answer(self, path: str) -> Any:
        data = self._rest
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += await self._more()
        head = data[:end].decode("latin-1").lower()
        status = int(head.split(" ", 2)[1])
        length = 0
        for line in head.split("\r\n")[1:]:
            name, _, value = line.partition(":")
            if name == "content-length":
                length = int(value)
        data = data[end + 4 :]
        while len(data) < length:
            data += await self._more()
        body, self._rest = data[:length], data[length:]
        if status >= 400:
            raise RuntimeError(f"{path}: {status} {body[:300]!r}")
        return json.loads(body) if body.strip() else None

    async def _more(self) -> bytes:
        chunk = await self._stream.receive_some(65536)
        if not chunk:
            raise RuntimeError("the server closed the connection")
        return bytes(chunk)

    async def aclose(self) -> None:
        await self._stream.aclose()


async def connect(url: str, token: str) -> Connection:
    parts = urlsplit(url)
    assert parts.hostname is not None
    stream = await trio.open_tcp_stream(parts.hostname, parts.port or 80)
    return Connection(stream, parts.netloc, token)
