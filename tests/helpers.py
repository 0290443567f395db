"""What the tests share that is no fixture."""

from __future__ import annotations

import contextlib
import csv
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from acavdl.config import Config, Distribution, Reading, Storage
from acavdl.errors import Outcome
from acavdl.sandbox import Fault

#: Where the fault needs a deadline to end, it is this one (seconds per clip).
TIMEOUT = 8.0

QUICK = Config(
    Reading(timeout=TIMEOUT, retries=1, rate_limit=None),
    Storage(number_sample_per_shard=40),
    Distribution(processes_count=2, thread_count=16),
)


def write_csv(
    path: Path,
    rows: Sequence[tuple[object, ...]],
    header: Sequence[str] = ("videoID", "start", "end"),
) -> Path:
    """Write a clip table."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


#: What each fault of the site must be told as. Those that end well are "ok".
EXPECTED = {
    Fault.BOT_CHECK: Outcome.BOT_CHECK,
    Fault.CAPTCHA: Outcome.BOT_CHECK,
    Fault.PRIVATE: Outcome.PRIVATE,
    Fault.REMOVED_UPLOADER: Outcome.REMOVED_UPLOADER,
    Fault.REMOVED_POLICY: Outcome.REMOVED_POLICY,
    Fault.COPYRIGHT: Outcome.COPYRIGHT,
    Fault.ACCOUNT_TERMINATED: Outcome.ACCOUNT_TERMINATED,
    Fault.UNAVAILABLE: Outcome.UNAVAILABLE,
    Fault.GEO_BLOCKED: Outcome.GEO_BLOCKED,
    Fault.AGE_GATED: Outcome.AGE_GATED,
    Fault.MEMBERS_ONLY: Outcome.MEMBERS_ONLY,
    Fault.PAID: Outcome.PAID,
    Fault.RATE_LIMITED: Outcome.RATE_LIMITED,
    Fault.UPCOMING: Outcome.UPCOMING,
    Fault.LIVE_NO_RECORDING: Outcome.LIVE_NO_RECORDING,
    Fault.CLIENT_UNSUPPORTED: Outcome.CLIENT_UNSUPPORTED,
    Fault.OTHER_VIDEO: Outcome.BOT_CHECK,
    Fault.LIVE: Outcome.LIVE,
    Fault.DRM: Outcome.DRM,
    Fault.SABR_ONLY: Outcome.NO_FORMATS,
    Fault.NO_PROGRESSIVE: Outcome.OK,
    Fault.NO_AUDIO: Outcome.NO_AUDIO,
    Fault.NO_VIDEO: Outcome.NO_VIDEO,
    Fault.AD_WAIT: Outcome.OK,
    Fault.PAGE_429: Outcome.HTTP_429,
    Fault.PAGE_503: Outcome.HTTP_5XX,
    Fault.PLAYER_429: Outcome.HTTP_429,
    Fault.PLAYER_503: Outcome.HTTP_5XX,
    Fault.PLAYER_HANGS: Outcome.TIMEOUT,
    Fault.PLAYER_TRICKLES: Outcome.TIMEOUT,
    Fault.FIRST_503: Outcome.OK,
    Fault.MEDIA_403: Outcome.HTTP_403_MEDIA,
    Fault.MEDIA_404: Outcome.HTTP_404_MEDIA,
    Fault.MEDIA_429: Outcome.HTTP_429,
    Fault.MEDIA_503: Outcome.HTTP_5XX,
    Fault.MEDIA_EXPIRED: Outcome.OK,
    Fault.MEDIA_STALLS: Outcome.TIMEOUT,
    Fault.MEDIA_CUT: Outcome.NETWORK,
    Fault.MEDIA_RESET: Outcome.NETWORK,
    Fault.MEDIA_NOISE: Outcome.CORRUPT,
    Fault.MEDIA_HTML: Outcome.CORRUPT,
    Fault.MEDIA_REDIRECT: Outcome.OK,
    Fault.MEDIA_SLOW: Outcome.TIMEOUT,
    Fault.MEDIA_NO_RANGE: Outcome.OK,
    # Where nobody asks for subtitles.
    Fault.SUBTITLES_NONE: Outcome.OK,
    Fault.SUBTITLES_AUTOMATIC: Outcome.OK,
    Fault.SUBTITLES_TOKEN: Outcome.OK,
    Fault.SUBTITLES_404: Outcome.OK,
    Fault.SUBTITLES_429: Outcome.OK,
    Fault.SUBTITLES_503: Outcome.OK,
    Fault.SUBTITLES_CUT: Outcome.OK,
    Fault.SUBTITLES_NOISE: Outcome.OK,
}


@dataclass
class Peer:
    """A server whose connections are each served by `serve`, in a thread."""

    serve: Callable[[Peer, socket.socket], None]
    port: int = 0
    busy: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)
    heads: list[bytes] = field(default_factory=list)

    def head(self, sock: socket.socket) -> bytes:
        """Read a request (without body), byte by byte so that nothing behind it is taken."""
        data = b""
        while not data.endswith(b"\r\n\r\n"):
            byte = sock.recv(1)
            if not byte:
                raise ConnectionError
            data += byte
        self.heads.append(data)
        return data

    def trickle(self, sock: socket.socket, byte: bytes = b"x") -> None:
        """Send a byte ever so often, until the client is gone."""
        self.busy.set()
        while not self.over.wait(0.05):
            sock.sendall(byte)

    def fall_silent(self, sock: socket.socket) -> None:
        self.busy.set()
        self.over.wait()


@contextlib.contextmanager
def peer(serve: Callable[[Peer, socket.socket], None]) -> Iterator[Peer]:
    """Run a server on an ephemeral port until the end of the block."""
    made = Peer(serve)
    threads: list[threading.Thread] = []
    socks: list[socket.socket] = []

    def handle(sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            serve(made, sock)

    def accept() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            socks.append(sock)
            threads.append(threading.Thread(target=handle, args=(sock,)))
            threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        made.port = listener.getsockname()[1]
        acceptor = threading.Thread(target=accept)
        acceptor.start()
        try:
            yield made
        finally:
            made.over.set()
            listener.shutdown(socket.SHUT_RDWR)
            acceptor.join()
            for sock in socks:
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)
            for thread in threads:
                thread.join()


def answers(peer: Peer, sock: socket.socket) -> None:
    """Answer all requests of a connection with the connection's port."""
    while True:
        peer.head(sock)
        body = str(sock.getpeername()[1]).encode()
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
        if len(peer.heads) > 1:
            # The second answer is held back until the test says so.
            peer.busy.wait(60)
        sock.sendall(body)
