"""An S3 server on the loopback interface, and a proxy before it that can misbehave."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import logging
import socket
import struct
import threading
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

#: Settings of the usual kind, as a user's shell has them.
KEY, SECRET = "AKIAACAVDLTEST", "s3cret-acavdl-test"
BUSY = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code>'
    b"<Message>Please reduce your request rate.</Message></Error>"
)


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """Run moto's server; yield its URL."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def environ(endpoint: str) -> dict[str, str]:
    """Return the variables that lead a process to the server."""
    return {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_EC2_METADATA_DISABLED": "true",
        # The sandbox is reached by a proxy; this server is not.
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        # Nothing of the machine's own.
        "AWS_CONFIG_FILE": "/nonexistent",
        "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
    }


@dataclass
class Faults:
    """What a proxy does to requests: `choose` names a fault by method, path and its number.

    ``503``: refused; ``reset``: the connection is reset; ``lost``: the request is carried out, and
    its answer lost; ``hang``: nothing ever comes back; ``slow``: half a second each.
    """

    choose: Callable[[str, str, int], str | None] = lambda *_: None
    count: int = 0
    done: Counter[str] = field(default_factory=Counter)
    over: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self, method: str, path: str) -> str | None:
        with self.lock:
            self.count += 1
            fault = self.choose(method, path, self.count)
            if fault:
                self.done[fault] += 1
            return fault


@contextlib.contextmanager
def fault_proxy(endpoint: str, faults: Faults) -> Iterator[str]:
    """Run a reverse proxy before an HTTP server; yield its URL."""
    upstream = urllib.parse.urlsplit(endpoint)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 60

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = faults.next(self.command, self.path)
            if fault == "503":
                self.answer(503, {"Content-Type": "application/xml"}, BUSY)
                return
            if fault == "hang":
                faults.over.wait(300)
                self.reset()
                return
            if fault == "reset":
                self.reset()
                return
            if fault == "slow":
                faults.over.wait(0.5)
            connection = http.client.HTTPConnection(upstream.netloc, timeout=60)
            with contextlib.closing(connection):
                headers = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
                content = answer.read()
            if fault == "lost":
                self.reset()
                return
            skipped = ("connection", "transfer-encoding", "content-length", "date", "server")
            kept = {k: v for k, v in answer.getheaders() if k.lower() not in skipped}
            size = answer.getheader("Content-Length")
            self.answer(answer.status, kept, content, size=size)

        do_PUT = do_POST = do_DELETE = do_HEAD = do_GET  # noqa: N815

        def answer(
            self, status: int, headers: dict[str, str], body: bytes, *, size: str | None = None
        ) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            length = size if self.command == "HEAD" and size else str(len(body))
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def reset(self) -> None:
            self.close_connection = True
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()
            # What is written after this goes nowhere.
            self.wfile = open("/dev/null", "wb")  # noqa: SIM115, PTH123

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        faults.over.set()
        server.shutdown()
        server.server_close()
