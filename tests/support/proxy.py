"""A TCP proxy on loopback that can cut a daemon off from its server, as a network does: silently."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Proxy:
    """Forwards while `open_` is set. Cut, it accepts and swallows; healed, it resets what it held."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._cut = self._closed = False
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._address: tuple[str, int] = self._listener.getsockname()
        self.url = f"http://127.0.0.1:{self._address[1]}"

    def cut(self) -> None:
        """Let nothing through from now on, and tell nobody."""
        self._cut = True

    def heal(self) -> None:
        """Forward again; connections of the cut time are reset."""
        self._cut = False
        self._drop()

    def run(self) -> None:
        """Accept until `close`."""
        with self._listener:
            while True:
                near, _ = self._listener.accept()
                if self._closed:
                    near.close()
                    return
                try:
                    far = socket.create_connection(("127.0.0.1", self._target))
                except OSError:
                    near.close()
                    continue
                self._pairs.append((near, far))
                for ends in ((near, far), (far, near)):
                    thread = threading.Thread(target=self._forward, args=ends)
                    self._threads.append(thread)
                    thread.start()

    def close(self) -> None:
        """End every connection. `run` ends, if it has begun."""
        self._closed = True
        socket.create_connection(self._address).close()
        self._drop()
        for thread in self._threads:
            thread.join(5)

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
