"""A reverse proxy on loopback as people put before a server: it takes a path prefix off, as nginx's
`location /bullpen/ { proxy_pass http://127.0.0.1:8080/; }` does, and passes websockets on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import attrs
import trio


@attrs.define(eq=False)
class ReverseProxy:
    """`url` is what people open; `target` the port behind it, set before the first request."""

    url: str
    prefix: str
    target: int = 0
    refused: list[str] = attrs.field(factory=list)
    """Paths asked for outside the prefix: a browser would have met another site there."""
    lies: tuple[str, ...] = ()
    """Parts of paths that are answered with a page of its own: 404, as from a proxy that has lost
    what is behind it."""
    lied: int = 0
    """How often it did."""

    async def serve(self, near: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with near:
                await self._serve(near)

    async def _serve(self, near: trio.SocketStream) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            if not (more := await near.receive_some(65536)):
                return
            data += more
        head, _, rest = data.partition(b"\r\n\r\n")
        line, *lines = head.decode("latin-1").split("\r\n")
        method, path, version = line.split(" ")
        if not path.startswith(self.prefix + "/"):
            self.refused.append(path)
            await near.send_all(b"HTTP/1.1 404 Elsewhere\r\ncontent-length: 0\r\n\r\n")
            return
        if any(part in path for part in self.lies):
            self.lied += 1
            page = b"404 page not found\n"
            await near.send_all(
                b"HTTP/1.1 404 Not Found\r\ncontent-type: text/plain\r\nconnection: close\r\n"
                b"content-length: %d\r\n\r\n%b" % (len(page), page)
            )
            return
        upgrade = any(one.lower().startswith("upgrade:") for one in lines)
        if not upgrade:  # one request a connection keeps this simple
            lines = [one for one in lines if not one.lower().startswith("connection:")]
            lines.append("connection: close")
        head = "\r\n".join([f"{method} {path.removeprefix(self.prefix)} {version}", *lines]).encode(
            "latin-1"
        )
        async with await trio.open_tcp_stream("127.0.0.1", self.target) as far:
            await far.send_all(head + b"\r\n\r\n" + rest)
            async with trio.open_nursery() as both:
                both.start_soon(_copy, near, far)
                await _copy(far, near)
                both.cancel_scope.cancel()


async def _copy(source: trio.SocketStream, target: trio.SocketStream) -> None:
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        async for data in source:
            await target.send_all(data)


@asynccontextmanager
async def open_reverse_proxy(prefix: str) -> AsyncIterator[ReverseProxy]:
    """A proxy that listens until the block is left."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    proxy = ReverseProxy(url=f"http://127.0.0.1:{port}{prefix}", prefix=prefix)
    async with trio.open_nursery() as serving:
        await serving.start(trio.serve_listeners, proxy.serve, [listener])
        yield proxy
        serving.cancel_scope.cancel()
