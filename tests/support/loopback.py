"""A listener on the loopback that answers every GET and remembers what was asked."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def open_listener() -> Iterator[tuple[str, queue.SimpleQueue[str]]]:
    """Its address, and the paths that came in."""
    called: queue.SimpleQueue[str] = queue.SimpleQueue()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            called.put(self.path)
            self.send_response(200)
            self.send_header("content-type", "text/html")
            page = b'<link rel="icon" href="data:,">ok'
            self.send_header("content-length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        listening = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        listening.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/callback", called
        finally:
            server.shutdown()
            listening.join()
