"""A mail server on the loopback that takes what it is given, as far as one client needs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email import message_from_bytes, policy
from email.message import EmailMessage

import attrs
import trio


@attrs.define
class MailServer:
    """What came in. `refuse` makes it turn every mail away."""

    port: int
    refuse: bool = False
    mails: list[EmailMessage] = attrs.field(factory=list)

    async def handle(self, stream: trio.SocketStream) -> None:
        """One connection: answer every line, collect what follows DATA."""
        buffer, data = b"", None
        await stream.send_all(b"220 here\r\n")
        async for chunk in stream:
            buffer += chunk
            while b"\r\n" in buffer:
                line, _, buffer = buffer.partition(b"\r\n")
                if data is not None and line != b".":
                    data += line.removeprefix(b".") + b"\r\n"
                    continue
                if data is not None:
                    self.mails.append(message_from_bytes(data, policy=policy.default))  # type: ignore[arg-type]
                    data = None
                word = line[:4].upper()
                if word == b"DATA":
                    data = b""
                if word == b"MAIL" and self.refuse:
                    await stream.send_all(b"550 no\r\n")
                elif word == b"QUIT":
                    await stream.send_all(b"221 bye\r\n")
                    return
                else:
                    await stream.send_all(b"354 go on\r\n" if word == b"DATA" else b"250 ok\r\n")


@asynccontextmanager
async def open_mail_server() -> AsyncIterator[MailServer]:
    """Listen on a free loopback port."""
    async with trio.open_nursery() as connections:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        server = MailServer(listeners[0].socket.getsockname()[1])
        await connections.start(trio.serve_listeners, server.handle, listeners)
        yield server
        connections.cancel_scope.cancel()
