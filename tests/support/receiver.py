"""Somebody whom alerts are sent to: a real HTTP server on loopback that keeps what it is told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ARRIVES_WITHIN = 60.0
"""Seconds; a second or two on an idle machine."""


@dataclass
class Receiver:
    """What has arrived so far."""

    address: str
    messages: list[dict[str, str]] = field(default_factory=list)

    def waits_for(self, subject: str, count: int = 1) -> list[str]:
        """Bodies of the messages under a subject, once there are as many."""
        deadline = time.monotonic() + ARRIVES_WITHIN
        while True:
            found = [message["body"] for message in self.messages if message["subject"] == subject]
            if len(found) >= count or time.monotonic() > deadline:
                return found
            time.sleep(0.1)


@contextmanager
def running_receiver() -> Iterator[Receiver]:
    """Listen on a free port until the end of the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.server.receiver.messages.append(json.loads(body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.receiver = Receiver(f"http://127.0.0.1:{server.server_port}/hook")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
