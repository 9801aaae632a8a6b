"""A network that breaks on purpose: an HTTP proxy on loopback that injects one fault into a request that a script names.

It stands between boto3 and the real server and passes bytes on as they are, the Host header among them, which the
signature covers. What comes back from ``happened`` did happen: a fault that finds nothing to break (no body to cut)
is not recorded.
"""

from __future__ import annotations

import random
import re
import select
import socket
import socketserver
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader
from itertools import chain
from typing import Literal
from urllib.parse import unquote, urlsplit

from support.s3 import ACCESS_KEY, SECRET_KEY

Fault = Literal[
    "reset",  # the connection is reset before the request is passed on
    "500",  # these six are answered by the proxy; the server hears nothing
    "503",
    "429",
    "400 expired",  # the credentials' time is over
    "403 skewed",  # the clocks differ
    "200",  # an error under a status of success, as S3 words what befalls it late
    "upload cut",  # the server gets half of the body and then nobody is there
    "upload flipped",  # one byte of the body changes on its way to the server
    "deaf",  # the server hears nothing of If-None-Match, as if it did not know it
    "duplicate",  # the server gets the request twice, the client the second reply
    "lost",  # the server has done it, the connection is reset before the reply
    "late 500",  # the server has done it and the client is told it failed
    "garbage",  # the server has done it and the reply is no HTTP
    "stall",  # the server has done it and no reply comes while the client waits
    "pause",  # half of the reply's body comes, then nothing while the client waits
    "cut",  # half of the reply's body comes, then the connection ends in good order
    "flipped",  # one byte of the reply's body changes on its way to the client
    "flipped alike",  # the same, and the same byte each time, as a broken cache or disk does
    "twice",  # the reply comes twice
    "drip",  # the reply begins byte by byte
]
Script = Callable[["Request"], Fault | None]

REFUSALS = {"500": "InternalError", "503": "SlowDown", "429": "TooManyRequests", "200": "InternalError"}
REFUSALS |= {"400 expired": "ExpiredToken", "403 skewed": "RequestTimeTooSkewed"}
ERRORS = REFUSALS | {"late 500": "InternalError"}
PIECE = 1 << 16
"""Bytes passed on at once."""
DRIPS, DRIP = 60, 0.01
"""So many single bytes, with so many seconds between them."""
PATIENCE = 20.0
"""Seconds that a stall lasts if the client does not hang up before."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a script decides on."""

    method: str
    path: str
    """Decoded, with the bucket, without the query."""
    query: str
    headers: dict[str, str]
    """Names in lower case."""


def calm(_request: Request) -> Fault | None:
    """No fault at all."""
    return None


def at(fault: Fault, *, nth: int = 1, times: int = 1, method: str = "", path: str = "", query: str = "") -> Script:
    """A fault in `times` requests from the nth of a method whose path and query contain these words."""
    seen, counting = 0, threading.Lock()

    def script(request: Request) -> Fault | None:
        nonlocal seen
        if method not in ("", request.method) or path not in request.path or query not in request.query:
            return None
        with counting:
            seen += 1
            return fault if nth <= seen < nth + times else None

    return script


def always(fault: Fault, *, method: str = "", path: str = "", query: str = "") -> Script:
    """A fault in every request that matches."""
    return at(fault, times=1 << 62, method=method, path=path, query=query)


def first_of(*scripts: Script) -> Script:
    """What the first of these scripts that has a fault for a request says."""
    return lambda request: next((fault for script in scripts if (fault := script(request))), None)


def at_random(faults: Iterable[Fault], share: float, seed: int) -> Script:
    """A fault in a share of all requests, drawn from these."""
    choices, draw, drawing = list(faults), random.Random(seed), threading.Lock()

    def script(_request: Request) -> Fault | None:
        with drawing:
            return draw.choice(choices) if draw.random() < share else None

    return script


class Proxy(socketserver.ThreadingTCPServer):
    """The proxy; use it as ``with running_proxy(endpoint) as proxy``."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, upstream: str) -> None:
        address = urlsplit(upstream)
        self.upstream = (str(address.hostname), int(address.port or 80))
        self.script: Script = calm
        self.seen: list[Request] = []
        self.happened: list[Fault] = []
        super().__init__(("127.0.0.1", 0), _Connection)

    @property
    def endpoint(self) -> str:
        """Where a client finds it."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    @contextmanager
    def injecting(self, script: Script) -> Iterator[None]:
        """Faults inside the block, none outside; ``happened`` and ``seen`` are of the last block."""
        self.seen, self.happened, self.script = [], [], script
        try:
            yield
        finally:
            self.script = calm

    def handle_error(self, request: object, client_address: object) -> None:
        """A connection that breaks is what this is for; a bug of the proxy is not."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


@contextmanager
def running_proxy(upstream: str) -> Iterator[Proxy]:
    """A proxy in front of the server at `upstream`, on a free port."""
    with Proxy(upstream) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            thread.join()


@dataclass(slots=True)
class _Message:
    """One request or reply on its way: a head, and a body whose framing is kept."""

    head: bytes
    stream: BufferedReader
    bodiless: bool = False

    @property
    def first(self) -> list[str]:
        return self.head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")

    @property
    def headers(self) -> dict[str, str]:
        lines = self.head.decode("latin-1").split("\r\n")[1:]
        pairs = (line.partition(":") for line in lines if line)
        return {name.lower(): value.strip() for name, _, value in pairs}

    @property
    def ends(self) -> bool:
        """Whether the connection ends with it."""
        return "close" in self.headers.get("connection", "").lower()

    def body(self) -> Iterator[bytes]:
        """The bytes after the head as they come. A chunk comes in one piece, its middle is data."""
        headers = self.headers
        if self.bodiless:
            return
        if "chunked" in headers.get("transfer-encoding", "").lower():
            size = -1
            while size:
                line = self.stream.readline()
                size = int(line.split(b";")[0], 16)
                yield line + self.stream.read(size + 2)
            return
        left = int(headers.get("content-length", "0"))
        while left:
            piece = self.stream.read1(min(PIECE, left))
            if not piece:
                raise ConnectionResetError
            left -= len(piece)
            yield piece


class _Connection(socketserver.BaseRequestHandler):
    """One connection of a client, and the one to the server that goes with it."""

    server: Proxy
    request: socket.socket

    def setup(self) -> None:
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.client = self.request.makefile("rb")
        self._connect()

    def _connect(self) -> None:
        self.out = socket.create_connection(self.server.upstream)
        self.out.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.answers = self.out.makefile("rb")

    def _leave(self) -> None:
        self.answers.close()
        self.out.close()

    def finish(self) -> None:
        self._leave()
        self.client.close()

    def handle(self) -> None:
        going = True
        while going and (head := _head(self.client)):
            message = _Message(head, self.client)
            method, target, _ = message.first
            url = urlsplit(target)
            request = Request(method, unquote(url.path), url.query, message.headers)
            self.server.seen.append(request)
            going = self._pass(message, self.server.script(request)) and not message.ends

    def _pass(self, message: _Message, fault: Fault | None) -> bool:
        """One request and its reply; False if the connection cannot go on."""
        if fault == "reset":
            return self._reset(fault)
        if fault and fault in REFUSALS:
            return self._refuse(message, fault)
        reply = self._forward(message, fault)
        if reply is None:
            return False
        if fault and fault in {"lost", "garbage", "stall", "late 500"}:
            for _ in reply.body():
                pass
            return self._instead(fault)
        return self._relay(reply, fault) and not reply.ends

    # --- to the server -------------------------------------------------------------------------------

    def _forward(self, message: _Message, fault: Fault | None) -> _Message | None:
        """Pass the request on; the server's final reply, or None if the fault took it."""
        waits = "100-continue" in message.headers.get("expect", "").lower()
        if waits and fault in {"duplicate", "deaf", "upload cut", "upload flipped"}:
            self.request.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")  # the body is needed, whatever the server says
        elif waits:
            self.out.sendall(message.head)
            reply = self._reply(message)
            if b" 100 " not in reply.head.split(b"\r\n", 1)[0]:
                return reply
            self.request.sendall(reply.head)
            return self._send(message.body(), message)
        if fault == "deaf" and "if-none-match" in message.headers:
            self._happened(fault)
            return self._send([_unconditional(message)], message)
        if fault == "duplicate":
            whole = b"".join(chain([message.head], message.body()))
            for _ in self._send([whole], message).body():
                pass
            self._happened(fault)
            self._leave()
            self._connect()
            return self._send([whole], message)
        body = message.body()
        if fault == "upload cut" and (half := _half(body)):
            self.out.sendall(message.head + half)
            self._reset(fault)
            return None
        if fault == "upload flipped" and (piece := next(body, b"")):
            self._happened(fault)
            body = chain([_flip(piece)], body)
        return self._send(chain([message.head], body), message)

    def _send(self, pieces: Iterable[bytes], message: _Message) -> _Message:
        with suppress(ConnectionError):  # a server that has answered early does not read on
            for piece in pieces:
                self.out.sendall(piece)
        reply = self._reply(message)
        while reply.first[1].startswith("1"):
            reply = self._reply(message)
        return reply

    def _reply(self, message: _Message) -> _Message:
        head = _head(self.answers)
        if not head:
            raise ConnectionResetError
        status = head.split(b" ", 2)[1]
        return _Message(head, self.answers, message.first[0] == "HEAD" or status in {b"100", b"204", b"304"})

    # --- to the client -------------------------------------------------------------------------------

    def _relay(self, reply: _Message, fault: Fault | None) -> bool:
        if fault == "twice":
            whole = b"".join(chain([reply.head], reply.body()))
            self._happened(fault)
            self.request.sendall(whole * 2)
            return True
        body = reply.body()
        if fault in {"pause", "cut"} and (half := _half(body)):
            self._happened(fault)
            self.request.sendall(reply.head + half)
            if fault == "pause":
                self._until_hangup()
            return False
        if fault in {"flipped", "flipped alike"} and (piece := next(body, b"")):
            self._happened(fault)
            body = chain([_flip(piece, len(piece) // 2 if fault == "flipped alike" else None)], body)
        pieces: Iterable[bytes] = chain([reply.head], body)
        if fault == "drip":
            self._happened(fault)
            for byte in reply.head[:DRIPS]:
                self.request.sendall(bytes([byte]))
                time.sleep(DRIP)
            pieces = chain([reply.head[DRIPS:]], body)
        for piece in pieces:
            self.request.sendall(piece)
        return True

    def _refuse(self, message: _Message, fault: Fault) -> bool:
        waits = "expect" in message.headers  # then no body comes, and nothing after it
        for _ in () if waits else message.body():
            pass
        self._answer(fault)
        return not waits

    def _instead(self, fault: Fault) -> bool:
        if fault == "lost":
            return self._reset(fault)
        if fault == "late 500":
            self._answer(fault)
            return True
        self._happened(fault)
        if fault == "garbage":
            self.request.sendall(b"\x16\x03\x01 what is this\r\n\r\n")
        else:
            self._until_hangup()
        return False

    def _answer(self, fault: Fault) -> None:
        """An error as S3 words it."""
        self._happened(fault)
        status = re.sub(r"\D", "", fault)
        body = f"<?xml version='1.0'?><Error><Code>{ERRORS[fault]}</Code><Message>Please try again.</Message></Error>"
        head = f"HTTP/1.1 {status} Trouble\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
        self.request.sendall((head + body).encode())

    def _reset(self, fault: Fault) -> bool:
        self._happened(fault)
        self.client.close()
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.request.close()
        return False

    def _until_hangup(self) -> None:
        select.select([self.request], [], [], PATIENCE)

    def _happened(self, fault: Fault) -> None:
        self.server.happened.append(fault)


def _head(stream: BufferedReader) -> bytes:
    """All up to the empty line; nothing if the other side has left."""
    lines = []
    while line := stream.readline():
        lines.append(line)
        if line == b"\r\n":
            return b"".join(lines)
    return b""


def _unconditional(message: _Message) -> bytes:
    """A write without If-None-Match, signed anew: the signature covers that header."""
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    headers = {n: v for n, v in message.headers.items() if n not in {"if-none-match", "authorization", "expect", "connection"}}
    method, target, _ = message.first
    request = AWSRequest(method, f"http://{headers['host']}{target}", headers, b"".join(message.body()))
    request.context["signing"] = {}
    S3SigV4Auth(Credentials(ACCESS_KEY, SECRET_KEY), "s3", "us-east-1").add_auth(request)
    lines = [f"{method} {target} HTTP/1.1", *(f"{n}: {v}" for n, v in request.headers.items()), "", ""]
    return "\r\n".join(lines).encode("latin-1") + request.data


def _half(body: Iterator[bytes]) -> bytes:
    """Half of what comes first of a body."""
    piece = next(body, b"")
    return piece[: len(piece) // 2]


def _flip(piece: bytes, place: int | None = None) -> bytes:
    """One byte is another; without a place one in the middle third, which differs from time to time, as noise does."""
    place = random.randrange(len(piece) // 3, len(piece) * 2 // 3 + 1) if place is None else place
    return piece[:place] + bytes([piece[place] ^ 1]) + piece[place + 1 :]
