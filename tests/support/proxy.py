"""A TCP proxy on loopback that stands between a daemon and its server, in every way a network does.

It can cut them off silently, answer in the server's place, or swallow what opens a websocket.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

_WEBSOCKET: Final = b"GET /api/daemon/ws"


class Proxy:
    """Forwards. Cut, it accepts and swallows; healed, it resets what it held."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._cut = self._closed = self._stalls = False
        self._page = b""
        self._held: list[socket.socket] = []
        self.strange_answers = self.stalled = 0
        self._pairs: list[tuple[socket.socket, ...]] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._address: tuple[str, int] = self._listener.getsockname()
        self.url = f"http://127.0.0.1:{self._address[1]}"

    def cut(self) -> None:
        """Let nothing through from now on, and tell nobody."""
        self._cut = True

    def stand_in(self, status: str, text: str) -> None:
        """Answer every request in the server's place from now on, with plain text."""
        self._page = (
            f"HTTP/1.1 {status}\r\ncontent-type: text/plain\r\n"
            f"content-length: {len(text)}\r\nconnection: close\r\n\r\n{text}"
        ).encode()
        self._drop()

    def stall_websockets(self) -> None:
        """End the websockets there are, and leave the requests for new ones unanswered."""
        self._stalls = True
        self._drop()

    def heal(self, *, answer: bool = True) -> None:
        """Forward again; connections of the bad time are reset.

        Requests for a websocket that were left unanswered are passed on now, or never.
        """
        self._cut = self._stalls = False
        self._page = b""
        self._drop()
        held, self._held = self._held, []
        for near in held:
            if answer:
                self._start(self._serve, near)
            else:
                self._pairs.append((near,))

    def run(self) -> None:
        """Accept until `close`."""
        with self._listener:
            while True:
                near, _ = self._listener.accept()
                if self._closed:
                    near.close()
                    return
                self._start(self._serve, near)

    def close(self) -> None:
        """End every connection. `run` ends, if it has begun."""
        self._closed = True
        self._pairs += [(near,) for near in self._held]
        socket.create_connection(self._address).close()
        self._drop()
        for thread in self._threads:
            thread.join(5)

    def _serve(self, near: socket.socket) -> None:
        if self._page:
            self._answer(near)
            return
        try:
            asked = near.recv(len(_WEBSOCKET), socket.MSG_PEEK) if self._stalls else b""
            if asked == _WEBSOCKET:
                self.stalled += 1
                self._held.append(near)
                return
            far = socket.create_connection(("127.0.0.1", self._target))
        except OSError:
            near.close()
            return
        self._pairs.append((near, far))
        self._start(self._forward, near, far)
        self._start(self._forward, far, near)

    def _answer(self, near: socket.socket) -> None:
        """Read one request whole and answer it with the page."""
        with near, contextlib.suppress(OSError):
            near.settimeout(5)
            data = b""
            while b"\r\n\r\n" not in data:
                if not (more := near.recv(65536)):
                    return
                data += more
            head, _, rest = data.partition(b"\r\n\r\n")
            found = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
            missing = int(found[1]) - len(rest) if found else 0
            while missing > 0 and (more := near.recv(65536)):
                missing -= len(more)
            self.strange_answers += 1
            near.sendall(self._page)

    def _start(self, work: Callable[..., None], *sockets: socket.socket) -> None:
        thread = threading.Thread(target=work, args=sockets)
        self._threads.append(thread)
        thread.start()

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if not self._cut:
                    sink.sendall(data)
        if not self._cut:
            _shut(source, sink)

    def _drop(self) -> None:
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            _shut(*pair)
            for end in pair:
                end.close()


def _shut(*ends: socket.socket) -> None:
    for end in ends:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@contextmanager
def open_proxy(port: int) -> Iterator[Proxy]:
    """A proxy to a port of this machine, for as long as the block lasts."""
    proxy = Proxy(port)
    thread = threading.Thread(target=proxy.run)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.close()
        thread.join(5)
