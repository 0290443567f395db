"""A loopback origin that the unmodified YouTube extractor talks to.

A forward proxy on 127.0.0.1 answers ``CONNECT`` to YouTube's hosts itself, with a certificate of a
CA made for the run (`acavdl.sandbox.ca`), and 403 to all else. It never opens a connection. Each
port stands for an egress: the client's address, as the site sees it.

The server is a child process (``python -m acavdl.sandbox.origin``): what it costs can be told from
what its clients cost, and it ends when its standard input does, so it outlives nobody.
"""

from __future__ import annotations

import contextlib
import functools
import hmac
import http.client
import json
import logging
import os
import random
import re
import secrets
import select
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from email.utils import formatdate
from fractions import Fraction
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from acavdl.sandbox import innertube
from acavdl.sandbox.catalog import Fault, Video, clashes, parse
from acavdl.sandbox.media import DEMO_MASTERS, Master, MasterSpec, Rendition, make_masters
from acavdl.sandbox.virtual import Body, file_body, find_box, parse_sidx, stretched_body

logger = logging.getLogger(__name__)

#: Hosts that are answered for; a leading dot stands for any subdomain.
HOSTS = ("www.youtube.com", ".googlevideo.com", "youtubei.googleapis.com", "i.ytimg.com")

#: What requests are counted under.
KINDS = ("page", "player", "next", "media", "subtitles", "other")

#: Faults that an egress can be made to refuse with.
REFUSALS = (
    Fault.BOT_CHECK,
    Fault.CAPTCHA,
    Fault.RATE_LIMITED,
    Fault.OTHER_VIDEO,
    Fault.PAGE_429,
    Fault.PAGE_503,
    Fault.PLAYER_429,
    Fault.PLAYER_503,
    Fault.MEDIA_403,
    Fault.MEDIA_429,
    Fault.MEDIA_503,
)

#: Rate of `Fault.MEDIA_SLOW`, and of `Fault.PLAYER_TRICKLES`, bytes per second.
SLOW_RATE = 50_000.0
TRICKLE_RATE = 20.0

#: Part of an answer after which `Fault.MEDIA_STALLS` falls silent.
STALL_AT = 0.3

_START_TIMEOUT = 30.0  # seconds until the child is given up
_STOP_TIMEOUT = 10.0
_IDLE_TIMEOUT = 300.0  # seconds that a connection may idle, or a client may take no bytes
_PIECE = 1 << 20  # bytes handed to a socket at once
_HEAD_LIMIT = 65_536
_PACE = 0.1  # seconds between two pieces of a paced answer


# --- what a request is answered with ----------------------------------------------------------


@dataclass(frozen=True)
class _Request:
    method: str
    target: str
    headers: Mapping[str, str]  # names in lower case
    body: bytes = b""
    keep_alive: bool = True

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @functools.cached_property
    def query(self) -> dict[str, str]:
        pairs = parse_qs(self.target.partition("?")[2], keep_blank_values=True)
        return {name: values[-1] for name, values in pairs.items()}


@dataclass(frozen=True)
class _Ending:
    """How an answer breaks off: after how much of the body, and how."""

    share: float
    how: str  # "stall", "close" or "reset"


@dataclass(frozen=True)
class _Reply:
    """An answer; `length` bytes of body come from `chunks`."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    length: int = 0
    chunks: Callable[[], Iterator[bytes | memoryview]] = lambda: iter(())
    rate: float | None = None  # bytes per second
    ending: _Ending | None = None
    silent: bool = False  # never answer at all


def _reply(
    status: int, data: bytes = b"", mime: str = "text/plain; charset=utf-8", **headers: str
) -> _Reply:
    named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return _Reply(
        status, (("Content-Type", mime), *named), len(data), lambda: iter((data,) if data else ())
    )


def _document(document: innertube.Document, request: _Request) -> _Reply:
    if "gzip" in request.headers.get("accept-encoding", ""):
        return _reply(200, document.gzipped(), document.mime, Content_Encoding="gzip")
    return _reply(200, document.plain(), document.mime)


_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_QUERY_RANGE = re.compile(r"(\d+)-(\d*)")


@dataclass(frozen=True)
class Span:
    """The bytes ``[start, stop)`` of a body, and the status that tells so."""

    start: int
    stop: int
    status: int


def span(size: int, header: str | None, query: str | None) -> Span | None:
    """Tell which bytes of a body are asked for.

    Parameters
    ----------
    size
        Of the whole body, bytes.
    header
        Value of ``Range`` (:rfc:`9110` section 14.2). One range; several, and what cannot be
        read, count as none, as a server is free to do.
    query
        Value of the ``range`` parameter that the media hosts take: ``first-last``. It comes before
        the header, and is answered with 200.

    Returns
    -------
    Span or None
        None if nothing of it is within the body (416).
    """
    if query is not None and (found := _QUERY_RANGE.fullmatch(query)):
        start = int(found[1])
        stop = min(int(found[2]) + 1, size) if found[2] else size
        return Span(start, stop, 200) if start < stop else None
    found = _RANGE.fullmatch(header.strip()) if header is not None else None
    if found is None or not (found[1] or found[2]):
        return Span(0, size, 200)
    if not found[1]:
        start, stop = max(size - int(found[2]), 0), size
    else:
        start = int(found[1])
        stop = min(int(found[2]) + 1, size) if found[2] else size
        if found[2] and int(found[2]) < start:
            return Span(0, size, 200)
    return Span(start, stop, 206) if start < stop else None


# --- what there is to serve -------------------------------------------------------------------


@dataclass(frozen=True)
class _File:
    stream: innertube.Stream
    body: Body


class _Library:
    """The masters' files, opened when they are first asked for."""

    def __init__(self, masters: Mapping[str, Master]) -> None:
        self._masters = masters
        self._files: dict[str, dict[int, _File]] = {}
        self._lock = threading.Lock()

    def files(self, code: str) -> Mapping[int, _File]:
        """Return a master's files by itag."""
        with self._lock:
            if code not in self._files:
                master = self._masters[code]
                opened = (_open(r, master.spec.virtual) for r in master.renditions)
                self._files[code] = {f.stream.rendition.itag: f for f in opened}
            return self._files[code]


def _open(rendition: Rendition, virtual: float | None) -> _File:
    if virtual is None:
        stream = innertube.Stream(
            rendition,
            rendition.size,
            rendition.duration,
            rendition.init_range,
            rendition.index_range,
        )
        return _File(stream, file_body(rendition.path))
    body = stretched_body(rendition, virtual)
    # The index of three hours takes 30 kB.
    head = b"".join(body.read(0, min(body.size, 1 << 20)))
    box = find_box(head, "sidx")
    index = parse_sidx(head, box)
    stream = innertube.Stream(
        rendition,
        body.size,
        sum(index.durations) / index.timescale,
        (0, box.start - 1),
        (box.start, box.stop - 1),
    )
    return _File(stream, body)


class _Noise:
    """Random bytes of any length: a block again and again."""

    def __init__(self) -> None:
        self._block = memoryview(random.randbytes(_PIECE))

    def read(self, start: int, stop: int) -> Iterator[memoryview]:
        at = start
        while at < stop:
            offset = at % _PIECE
            piece = self._block[offset : offset + min(_PIECE - offset, stop - at)]
            yield piece
            at += len(piece)


# --- counting ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stats:
    """What the origin has done since it started, or since the last reset.

    Attributes
    ----------
    requests, bytes
        Requests, and bytes of bodies sent, by kind (see `KINDS`).
    egress_requests, egress_bytes
        The same by egress.
    videos
        Requests by video id and kind.
    connections
        TLS connections by egress.
    forbidden
        Requests to hosts that are not answered for.
    cpu_seconds
        CPU time of the origin's process (user and system) since the reset.
    """

    requests: Mapping[str, int]
    bytes: Mapping[str, int]
    egress_requests: tuple[int, ...]
    egress_bytes: tuple[int, ...]
    videos: Mapping[str, Mapping[str, int]]
    connections: tuple[int, ...]
    forbidden: int
    cpu_seconds: float


class _Counters:
    def __init__(self, egresses: int) -> None:
        self._egresses = egresses
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        with self._lock:
            self._requests: Counter[tuple[str, int]] = Counter()
            self._bytes: Counter[tuple[str, int]] = Counter()
            self._videos: dict[str, Counter[str]] = {}
            self._connections: Counter[int] = Counter()
            self._forbidden = 0
            self._cpu = time.process_time()

    def request(self, kind: str, egress: int, video_id: str | None) -> None:
        with self._lock:
            self._requests[kind, egress] += 1
            if video_id:
                self._videos.setdefault(video_id, Counter())[kind] += 1

    def sent(self, kind: str, egress: int, count: int) -> None:
        with self._lock:
            self._bytes[kind, egress] += count

    def connection(self, egress: int) -> None:
        with self._lock:
            self._connections[egress] += 1

    def forbid(self) -> None:
        with self._lock:
            self._forbidden += 1

    def stats(self) -> Stats:
        with self._lock:
            return Stats(
                requests={k: _total(self._requests, kind=k) for k in KINDS},
                bytes={k: _total(self._bytes, kind=k) for k in KINDS},
                egress_requests=self._each(lambda n: _total(self._requests, egress=n)),
                egress_bytes=self._each(lambda n: _total(self._bytes, egress=n)),
                videos={v: dict(kinds) for v, kinds in self._videos.items()},
                connections=self._each(lambda n: self._connections[n]),
                forbidden=self._forbidden,
                cpu_seconds=time.process_time() - self._cpu,
            )

    def _each(self, count: Callable[[int], int]) -> tuple[int, ...]:
        return tuple(count(n) for n in range(self._egresses))


def _total(
    counter: Counter[tuple[str, int]], *, kind: str | None = None, egress: int | None = None
) -> int:
    return sum(
        count
        for (its_kind, its_egress), count in counter.items()
        if kind in (None, its_kind) and egress in (None, its_egress)
    )


# --- the site ---------------------------------------------------------------------------------

# The smallest picture there is: a JPEG of one grey pixel.
_PICTURE = bytes.fromhex(
    "ffd8ffe000104a46494600010100000100010000ffdb004300080606070605080707070909080a0c140d0c0b0b0c19"
    "12130f141d1a1f1e1d1a1c1c20242e2720222c231c1c2837292c30313434341f27393d38323c2e333432ffc0000b08"
    "000100010101011100ffc40014000100000000000000000000000000000009ffc40014100100000000000000000000"
    "000000000000ffda0008010100003f0054dfffd9"
)
_SORRY = (
    "<html><head><title>Sorry...</title></head><body>We're sorry... but your computer or network "
    "may be sending automated queries.</body></html>"
)


class _Site:
    """Answers requests: the catalogue, the media and what was seen so far."""

    def __init__(self, masters: Mapping[str, Master], counters: _Counters) -> None:
        self._specs = tuple(master.spec for master in masters.values())
        self._library = _Library(masters)
        self._noise = _Noise()
        self.counters = counters
        self._lock = threading.Lock()
        self._refused: dict[int, Fault] = {}
        self.reset()

    def reset(self) -> None:
        """Zero the counters, and forget which videos were asked for."""
        self.counters.reset()
        with self._lock:
            self._extractions: Counter[str] = Counter()
            self._seen: set[tuple[str, str]] = set()

    def refuse(self, egress: int, fault: Fault | None) -> None:
        """Let an egress answer everything with `fault` from now on; None ends it."""
        with self._lock:
            if fault is None:
                self._refused.pop(egress, None)
            else:
                self._refused[egress] = fault

    def answer(self, request: _Request, host: str, egress: int) -> tuple[str, _Reply]:
        """Answer a request; the kind that it counts under comes with the answer."""
        kind, video_id = _classify(request, host)
        self.counters.request(kind, egress, video_id)
        refusal = self._refused.get(egress)
        video = parse(video_id, self._specs) if video_id else None
        if (status := self._http_fault(video, kind, refusal)) is not None:
            return kind, _error(status)
        if video is None:
            return kind, self._no_video(request, host, kind)
        if kind == "media":
            return kind, self._media(request, video, egress, refusal)
        if kind == "player":
            return kind, self._player(request, video, egress, refusal or video.fault)
        if kind == "subtitles":
            return kind, self._subtitles(request, video)
        return kind, self._page(request, host, kind, video, refusal or video.fault)

    def _http_fault(self, video: Video | None, kind: str, refusal: Fault | None) -> int | None:
        """Return the status that a request fails with before anybody looks at it."""
        if refusal in _EVERYWHERE:
            return _EVERYWHERE[refusal]
        if video is None or video.fault is None:
            return None
        if video.fault is Fault.FIRST_503:
            with self._lock:
                first = (video.video_id, kind) not in self._seen
                self._seen.add((video.video_id, kind))
            return 503 if first else None
        # The stages of HTTP have the names of the kinds.
        return _EVERYWHERE.get(video.fault) if video.fault.stage == kind else None

    def _no_video(self, request: _Request, host: str, kind: str) -> _Reply:
        if host == "i.ytimg.com":
            return _reply(200, _PICTURE, "image/jpeg")
        if kind != "other":
            return _error(403 if kind == "media" else 400)
        script = next((make for path, make in _SCRIPTS if request.path.startswith(path)), None)
        if script is not None:
            return _document(script(), request)
        if host == "www.youtube.com" and request.path in ("/", "/tv"):
            return _document(innertube.small_page("", embedded=False), request)
        return _error(404)

    def _streams(self, video: Video) -> tuple[innertube.Stream, ...]:
        return tuple(file.stream for file in self._library.files(video.master).values())

    def _details(self, video: Video) -> innertube.Details:
        # The site shows the duration of the video, not of the audio, which is a bit longer.
        streams = self._streams(video)
        shown = next((s for s in streams if s.has_video), streams[0])
        return innertube.describe(video, shown.duration)

    def _page(
        self, request: _Request, host: str, kind: str, video: Video, fault: Fault | None
    ) -> _Reply:
        details = self._details(video)
        if kind == "next":
            return _document(innertube.next_answer(details), request)
        if kind == "page":
            return _document(innertube.watch_page(video, details, time.time(), fault), request)
        if host == "manifest.googlevideo.com":
            expires = innertube.expiry(time.time())
            return _document(innertube.hls_manifest(video.video_id, expires), request)
        return _document(innertube.small_page(video.video_id, embedded=True), request)

    def _player(self, request: _Request, video: Video, egress: int, fault: Fault | None) -> _Reply:
        if fault is Fault.PLAYER_HANGS:
            return _Reply(200, silent=True)
        with self._lock:
            self._extractions[video.video_id] += 1
            generation = self._extractions[video.video_id]
        now = time.time()
        grant = innertube.Grant(
            address=_address(egress),
            expires=innertube.expiry(now),
            generation=generation,
            client=_client_name(request),
        )
        answer = innertube.player(
            video, self._details(video), self._streams(video), grant, now=now, fault=fault
        )
        reply = _document(answer, request)
        return replace(reply, rate=TRICKLE_RATE) if fault is Fault.PLAYER_TRICKLES else reply

    def _subtitles(self, request: _Request, video: Video) -> _Reply:
        query = request.query
        if video.fault is Fault.SUBTITLES_NOISE:
            return _reply(200, random.randbytes(4096), "application/json; charset=UTF-8")
        automatic = query.get("kind") == "asr"
        document = innertube.timedtext(
            innertube.caption_lines(
                self._details(video).duration, query.get("lang", "en"), automatic=automatic
            ),
            query.get("fmt", "srv1"),
            automatic=automatic,
        )
        reply = _error(404) if document is None else _document(document, request)
        breaks_off = video.fault is Fault.SUBTITLES_CUT
        return replace(reply, ending=_Ending(0.5, "close")) if breaks_off else reply

    def _media(self, request: _Request, video: Video, egress: int, refusal: Fault | None) -> _Reply:
        query = request.query
        fault = refusal or video.fault
        if not _granted(query, egress, time.time()):
            return _error(403)
        if fault is Fault.MEDIA_EXPIRED and query.get("ei", "").startswith("000001"):
            return _error(403)
        if fault is Fault.MEDIA_HTML:
            return _reply(200, _SORRY.encode(), "text/html; charset=utf-8")
        if fault is Fault.MEDIA_REDIRECT and "redirect_counter" not in query:
            other = f"https://rr7---sn-4g5lznl6.googlevideo.com{request.target}"
            return _reply(302, Location=f"{other}&redirect_counter=1&cms_redirect=yes")
        itag = query.get("itag", "")
        file = self._library.files(video.master).get(int(itag) if itag.isdecimal() else -1)
        if file is None:
            return _error(404)
        return self._file(request, query, file, fault)

    def _file(
        self, request: _Request, query: Mapping[str, str], file: _File, fault: Fault | None
    ) -> _Reply:
        size = file.stream.size
        ignored = fault is Fault.MEDIA_NO_RANGE
        asked = (
            Span(0, size, 200)
            if ignored
            else span(size, request.headers.get("range"), query.get("range"))
        )
        if asked is None:
            return _reply(416, Content_Range=f"bytes */{size}")
        headers = [
            ("Content-Type", file.stream.rendition.mime),
            ("Accept-Ranges", "none" if ignored else "bytes"),
            ("Cache-Control", "private, max-age=21288"),
            ("X-Content-Type-Options", "nosniff"),
        ]
        if asked.status == HTTPStatus.PARTIAL_CONTENT:
            headers.append(("Content-Range", f"bytes {asked.start}-{asked.stop - 1}/{size}"))
        source = self._noise if fault is Fault.MEDIA_NOISE else file.body
        return _Reply(
            asked.status,
            tuple(headers),
            asked.stop - asked.start,
            lambda: source.read(asked.start, asked.stop),
            rate=SLOW_RATE if fault is Fault.MEDIA_SLOW else None,
            ending=_ENDINGS.get(fault) if fault else None,
        )


_SCRIPTS = (("/iframe_api", innertube.iframe_api), ("/s/player/", innertube.player_script))

#: Statuses that the faults of HTTP stand for. A refusing egress answers every request with them.
_EVERYWHERE = {
    Fault.PAGE_429: 429,
    Fault.PAGE_503: 503,
    Fault.PLAYER_429: 429,
    Fault.PLAYER_503: 503,
    Fault.MEDIA_403: 403,
    Fault.MEDIA_404: 404,
    Fault.MEDIA_429: 429,
    Fault.MEDIA_503: 503,
    Fault.SUBTITLES_404: 404,
    Fault.SUBTITLES_429: 429,
    Fault.SUBTITLES_503: 503,
}

_ENDINGS = {
    Fault.MEDIA_STALLS: _Ending(STALL_AT, "stall"),
    Fault.MEDIA_CUT: _Ending(0.5, "close"),
    Fault.MEDIA_RESET: _Ending(0.5, "reset"),
}


def _error(status: int) -> _Reply:
    phrase = HTTPStatus(status).phrase
    return _reply(status, f"<html><title>{status} {phrase}</title></html>".encode(), "text/html")


def _address(egress: int) -> str:
    # The addresses of RFC 5737, which are nobody's.
    return f"192.0.2.{egress + 1}"


def _granted(query: Mapping[str, str], egress: int, now: float) -> bool:
    """Tell whether a media URL works from here and now."""
    expires = query.get("expire", "")
    return query.get("ip") == _address(egress) and expires.isdecimal() and now < int(expires)


def _classify(request: _Request, host: str) -> tuple[str, str | None]:
    """Return the kind of a request and the id of the video that it is about."""
    path = request.path
    if host.endswith(".googlevideo.com") and path != "/videoplayback":
        found = re.search(r"/id/([\w-]{11})\.", path)
        return "other", found[1] if found else None
    kind, name = _PATHS.get(path, ("other", ""))
    match kind:
        case "player" | "next":
            video_id = str(_posted(request).get("videoId", ""))
        case "other":
            video_id = path.removeprefix("/embed/") if path.startswith("/embed/") else ""
        case _:
            video_id = request.query.get(name, "").removeprefix("o-")
    return kind, video_id or None


#: Kind of the requests to a path, and the parameter that holds the video's id.
_PATHS = {
    "/watch": ("page", "v"),
    "/youtubei/v1/player": ("player", ""),
    "/youtubei/v1/next": ("next", ""),
    "/api/timedtext": ("subtitles", "v"),
    "/videoplayback": ("media", "id"),
}


def _posted(request: _Request) -> dict[str, Any]:
    try:
        value = json.loads(request.body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _client_name(request: _Request) -> str:
    context = _posted(request).get("context")
    client = context.get("client") if isinstance(context, dict) else None
    name = client.get("clientName") if isinstance(client, dict) else None
    return name if isinstance(name, str) else "WEB"


# --- the wire ---------------------------------------------------------------------------------


class _ClosedError(Exception):
    """The client is gone, or talks something else than HTTP/1.1."""


class _Reader:
    """Reads requests from a socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = bytearray()

    def request(self) -> _Request:
        head = self._until(b"\r\n\r\n").decode("latin-1")
        first, *lines = head.split("\r\n")
        parts = first.split(" ")
        if len(parts) != 3:
            raise _ClosedError
        method, target, version = parts
        pairs = (line.partition(":") for line in lines if line)
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        length = headers.get("content-length", "0")
        body = self._exactly(int(length)) if length.isdecimal() else b""
        close = headers.get("connection", "").lower() == "close" or version == "HTTP/1.0"
        return _Request(method, target, headers, body, keep_alive=not close)

    def _until(self, mark: bytes) -> bytes:
        while (at := self._buffer.find(mark)) < 0:
            if len(self._buffer) > _HEAD_LIMIT:
                raise _ClosedError
            self._more()
        return self._take(at + len(mark))

    def _exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            self._more()
        return self._take(count)

    def _more(self) -> None:
        got = self._sock.recv(65_536)
        if not got:
            raise _ClosedError
        self._buffer += got

    def _take(self, count: int) -> bytes:
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken


class _Pacer:
    """Sends pieces no faster than a rate; one per answer."""

    def __init__(
        self, sock: socket.socket, rate: float | None, sent: Callable[[int], None]
    ) -> None:
        self._sock = sock
        self._rate = rate
        self._sent = sent
        self._due = time.monotonic()

    def send(self, data: bytes | memoryview) -> None:
        size = _PIECE if self._rate is None else min(_PIECE, max(1, int(self._rate * _PACE)))
        with memoryview(data) as view:
            for at in range(0, len(view), size):
                piece = view[at : at + size]
                if self._rate is not None:
                    self._due += len(piece) / self._rate
                    time.sleep(max(0.0, self._due - time.monotonic()))
                self._sock.sendall(piece)
                self._sent(len(piece))


class _Server:
    """Accepts connections: a port for each egress, a thread for each connection."""

    def __init__(
        self, site: _Site, context: ssl.SSLContext, latency: float, bandwidth: float | None
    ) -> None:
        self._site = site
        self._context = context
        self._latency = latency
        self._bandwidth = bandwidth

    def proxy(self, sock: socket.socket, egress: int) -> None:
        """Serve a connection to an egress' port."""
        request = _Reader(sock).request()
        if request.method != "CONNECT":
            self._plain(sock, request)
            return
        host, _, port = request.target.rpartition(":")
        if port != "443" or not _answered(host):
            self._site.counters.forbid()
            sock.sendall(_whole(_error(403)))
            return
        sock.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        with self._context.wrap_socket(sock, server_side=True) as tls:
            self._site.counters.connection(egress)
            self._converse(tls, host, egress)

    def _plain(self, sock: socket.socket, request: _Request) -> None:
        parts = urlsplit(request.target)
        if parts.scheme == "http" and _answered(parts.hostname or ""):
            location = parts._replace(scheme="https", netloc=parts.hostname or "").geturl()
            sock.sendall(_whole(_reply(301, Location=location)))
            return
        self._site.counters.forbid()
        sock.sendall(_whole(_error(403)))

    def _converse(self, tls: ssl.SSLSocket, host: str, egress: int) -> None:
        reader = _Reader(tls)
        keep = True
        while keep:
            request = reader.request()
            if self._latency:
                time.sleep(self._latency)
            kind, reply = self._site.answer(request, host, egress)
            keep = self._send(tls, request, reply, kind, egress)
        # A farewell, for which the client need not wait: read what is sent is all it has to do.
        tls.settimeout(0)
        with contextlib.suppress(OSError, ValueError):
            tls.unwrap()

    def _send(
        self, tls: ssl.SSLSocket, request: _Request, reply: _Reply, kind: str, egress: int
    ) -> bool:
        """Send an answer; return whether the connection can be used on."""
        if reply.silent:
            _wait_for_end(tls)
            return False
        head = _head(reply, keep_alive=request.keep_alive)
        if request.method == "HEAD":
            tls.sendall(head)
            return request.keep_alive
        tls.sendall(head)
        rates = [rate for rate in (reply.rate, self._bandwidth) if rate is not None]
        pacer = _Pacer(
            tls, min(rates, default=None), lambda n: self._site.counters.sent(kind, egress, n)
        )
        stop = reply.length if reply.ending is None else int(reply.length * reply.ending.share)
        for chunk in _first(reply.chunks(), stop):
            pacer.send(chunk)
        if reply.ending is None:
            return request.keep_alive
        if reply.ending.how == "stall":
            _wait_for_end(tls)
        if reply.ending.how == "reset":
            # No lingering: closing discards what is queued and sends RST.
            tls.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            raise _ClosedError
        return False


def _first(chunks: Iterator[bytes | memoryview], count: int) -> Iterator[bytes | memoryview]:
    for chunk in chunks:
        if count <= 0:
            return
        yield chunk[:count]
        count -= len(chunk)


def _head(reply: _Reply, *, keep_alive: bool) -> bytes:
    lines = [
        f"HTTP/1.1 {reply.status} {HTTPStatus(reply.status).phrase}",
        f"Date: {formatdate(usegmt=True)}",
        "Server: acavdl-sandbox",
        f"Content-Length: {reply.length}",
        f"Connection: {'keep-alive' if keep_alive else 'close'}",
    ]
    lines += [f"{name}: {value}" for name, value in reply.headers]
    return "\r\n".join((*lines, "", "")).encode("latin-1")


def _whole(reply: _Reply) -> bytes:
    """Return an answer after which the connection is closed."""
    return b"".join((_head(reply, keep_alive=False), *reply.chunks()))


def _answered(host: str) -> bool:
    host = host.lower()
    return any(host == known or (known[0] == "." and host.endswith(known)) for known in HOSTS)


def _wait_for_end(sock: socket.socket) -> None:
    """Wait until the client sends something or goes away, as nobody would answer it."""
    poll = select.poll()
    poll.register(sock, select.POLLIN | select.POLLHUP | select.POLLERR)
    poll.poll()


def _listen() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0), backlog=1024)


def _accept(listener: socket.socket, serve: Callable[[socket.socket], None]) -> None:
    """Serve each connection in a thread of its own, for ever."""
    while True:
        try:
            sock, _ = listener.accept()
        except OSError:
            # Out of descriptors, most likely: those in use have to be given back first.
            logger.warning("no connection could be accepted", exc_info=True)
            time.sleep(0.1)
            continue
        threading.Thread(target=_handle, args=(sock, serve), daemon=True).start()


def _handle(sock: socket.socket, serve: Callable[[socket.socket], None]) -> None:
    with sock:
        sock.settimeout(_IDLE_TIMEOUT)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            serve(sock)
        except (OSError, _ClosedError):
            # The client went away, or refused our certificate: its business.
            logger.debug("a connection ended", exc_info=True)


# --- control ----------------------------------------------------------------------------------


def _control(sock: socket.socket, site: _Site, token: str) -> None:
    """Serve a request to the control port: one to a connection."""
    request = _Reader(sock).request()
    given = request.headers.get("authorization", "")
    if not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
        sock.sendall(_whole(_error(403)))
        return
    result: Any = None
    if request.path == "/stats":
        result = asdict(site.counters.stats())
    elif request.path == "/reset":
        site.reset()
    else:
        posted = _posted(request)
        name = posted.get("fault")
        site.refuse(int(posted["egress"]), None if name is None else Fault(name))
    data = json.dumps(result).encode()
    sock.sendall(_whole(_reply(200, data, "application/json")))


# --- the child --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Config:
    """What the child is told, one line of JSON on its standard input."""

    egresses: int
    latency: float
    bandwidth: float | None
    token: str
    folder: str
    masters: tuple[Master, ...] = field(default=())

    def dump(self) -> str:
        return json.dumps(asdict(self), default=str)

    @classmethod
    def load(cls, text: str) -> Self:
        values = json.loads(text)
        masters = tuple(_master(value) for value in values.pop("masters"))
        return cls(**values, masters=masters)


def _master(value: dict[str, Any]) -> Master:
    spec = value["spec"]
    spec |= {"fps": Fraction(spec["fps"]), "itags": tuple(spec["itags"])}
    return Master(MasterSpec(**spec), tuple(_rendition(r) for r in value["renditions"]))


def _rendition(value: dict[str, Any]) -> Rendition:
    def pair(name: str) -> tuple[int, int] | None:
        return None if value[name] is None else (value[name][0], value[name][1])

    fps = value["fps"]
    changed = {
        "path": Path(value["path"]),
        "fps": None if fps is None else Fraction(fps),
        "init_range": pair("init_range"),
        "index_range": pair("index_range"),
    }
    return Rendition(**(value | changed))


def _serve(config: _Config) -> dict[str, Any]:
    """Start to serve; return what the parent is told."""
    from acavdl.sandbox.ca import Authority, server_context

    folder = Path(config.folder)
    authority = Authority()
    context = server_context(authority.leaf(), folder)
    (folder / "ca.pem").write_bytes(authority.certificate)
    del authority
    site = _Site({m.spec.code: m for m in config.masters}, _Counters(config.egresses))
    server = _Server(site, context, config.latency, config.bandwidth)
    innertube.warm_up()
    listeners = [_listen() for _ in range(config.egresses)]
    for egress, listener in enumerate(listeners):
        _start(listener, functools.partial(server.proxy, egress=egress))
    control = _listen()
    _start(control, lambda sock: _control(sock, site, config.token))
    return {
        "ports": [listener.getsockname()[1] for listener in listeners],
        "control": control.getsockname()[1],
    }


def _start(listener: socket.socket, serve: Callable[[socket.socket], None]) -> None:
    threading.Thread(target=_accept, args=(listener, serve), daemon=True).start()


def _wait_for_parent() -> None:
    """Wait until standard input ends, or the parent does.

    A child that the parent forks later holds the pipe's other end too, so its end alone would
    not do.
    """
    parent = os.getppid()
    poll = select.poll()
    poll.register(sys.stdin, select.POLLIN | select.POLLHUP)
    while os.getppid() == parent:
        if poll.poll(1000) and not sys.stdin.read(1):
            return


def main() -> None:
    """Run the origin's process."""
    # Ctrl-C goes to the whole group; the parent says when it is over.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    config = _Config.load(sys.stdin.readline())
    try:
        ready = _serve(config)
        sys.stdout.write(json.dumps(ready) + "\n")
        sys.stdout.flush()
        _wait_for_parent()
    finally:
        shutil.rmtree(config.folder, ignore_errors=True)
    # Threads that are still sending are not waited for.
    os._exit(0)


# --- the parent -------------------------------------------------------------------------------


class SandboxError(RuntimeError):
    """The origin did not start, or does not answer."""


class Sandbox:
    """The origin, from the outside: a context manager around its process.

    Parameters
    ----------
    egresses
        Number of ports, each of which is an address of its own to the site.
    latency
        Seconds before each answer.
    bandwidth
        Bytes per second and connection; None for as fast as it goes.
    masters
        What the videos show. Made, if they are not in the cache, before the context is entered.
    cache
        Where the masters are kept; by default where `make_masters` keeps them.

    Raises
    ------
    ValueError
        If a number makes no sense, or a master has the code of a fault.

    Attributes
    ----------
    proxies : tuple of str
        URL of the proxy, for each egress.
    ca_file : Path
        The CA's certificate (PEM), there for as long as the context.
    masters : Mapping of str to Master
        What is served, by code.
    """

    def __init__(
        self,
        *,
        egresses: int = 1,
        latency: float = 0.0,
        bandwidth: float | None = None,
        masters: Sequence[MasterSpec] = DEMO_MASTERS,
        cache: Path | None = None,
    ) -> None:
        if not 1 <= egresses <= 250:
            raise ValueError(f"a sandbox has 1 to 250 egresses, not {egresses}")
        if latency < 0 or (bandwidth is not None and bandwidth <= 0):
            raise ValueError("latency is 0 or more, bandwidth more than 0")
        if not masters or (taken := clashes(masters)):
            raise ValueError(f"no masters, or the codes of faults: {taken if masters else ()}")
        self._egresses = egresses
        self._latency = latency
        self._bandwidth = bandwidth
        self._specs = tuple(masters)
        self._cache = cache
        self._token = secrets.token_urlsafe()
        self._process: subprocess.Popen[str] | None = None
        self._folder: Path | None = None
        self._control = 0
        self.proxies: tuple[str, ...] = ()
        self.ca_file = Path()
        self.masters: Mapping[str, Master] = {}

    def __enter__(self) -> Self:
        self.masters = make_masters(self._specs, self._cache)
        self._folder = Path(tempfile.mkdtemp(prefix="acavdl-sandbox-"))
        try:
            self._start(self._folder)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()

    def _start(self, folder: Path) -> None:
        config = _Config(
            egresses=self._egresses,
            latency=self._latency,
            bandwidth=self._bandwidth,
            token=self._token,
            folder=str(folder),
            masters=tuple(self.masters.values()),
        )
        # The package need not be installed: whoever imported it can start it.
        root = str(Path(__file__).parents[2])
        known = os.environ.get("PYTHONPATH")
        path = os.pathsep.join((root, known)) if known else root
        self._process = subprocess.Popen(
            # -P: nothing in the working directory is taken for a module.
            [sys.executable, "-P", "-m", "acavdl.sandbox.origin"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
            # Ctrl-C in the terminal is for the parent to deal with.
            process_group=0,
        )
        ready = self._tell(self._process, config.dump())
        self._control = ready["control"]
        self.proxies = tuple(f"http://127.0.0.1:{port}" for port in ready["ports"])
        self.ca_file = folder / "ca.pem"

    @staticmethod
    def _tell(process: subprocess.Popen[str], config: str) -> dict[str, Any]:
        if process.stdin is None or process.stdout is None:
            raise SandboxError("the origin has no pipes")
        # The child may be gone already: what it said on its way is on standard error.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(config + "\n")
            process.stdin.flush()
        poll = select.poll()
        poll.register(process.stdout, select.POLLIN | select.POLLHUP)
        if not poll.poll(_START_TIMEOUT * 1000):
            raise SandboxError(f"the origin was not ready after {_START_TIMEOUT:g} s")
        line = process.stdout.readline()
        if not line:
            raise SandboxError(f"the origin ended with {process.wait(_STOP_TIMEOUT)}")
        ready: dict[str, Any] = json.loads(line)
        return ready

    def _stop(self) -> None:
        process, self._process = self._process, None
        folder, self._folder = self._folder, None
        if process is not None:
            _end(process)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def environ(self, egress: int = 0) -> dict[str, str]:
        """Return the variables that lead a program here.

        Parameters
        ----------
        egress
            Through which port.

        Returns
        -------
        dict of str to str
            Proxies, trust, and no exceptions from the proxies.
        """
        proxy = self.proxies[egress]
        bundle = str(self.ca_file)
        return {
            "HTTPS_PROXY": proxy,
            "https_proxy": proxy,
            "HTTP_PROXY": proxy,
            "http_proxy": proxy,
            "SSL_CERT_FILE": bundle,
            "REQUESTS_CA_BUNDLE": bundle,
            "NO_PROXY": "",
            "no_proxy": "",
        }

    def video(self, video_id: str) -> Video:
        """Tell what this sandbox shows under an id."""
        return parse(video_id, self._specs)

    def stats(self) -> Stats:
        """Return what was served since the start or the last reset."""
        values = self._ask("GET", "/stats")
        for name in ("egress_requests", "egress_bytes", "connections"):
            values[name] = tuple(values[name])
        return Stats(**values)

    def reset(self) -> None:
        """Zero the counters, and let once-only faults happen once more."""
        self._ask("POST", "/reset")

    def refuse(self, egress: int, fault: Fault | None) -> None:
        """Let an egress answer everything with `fault`, from now on.

        Parameters
        ----------
        egress
            Which one.
        fault
            One of `REFUSALS`. Those of HTTP are the answer to every request, media and pages
            alike; those of the player are the player's answer, and media URLs still work. None
            ends it.

        Raises
        ------
        ValueError
            If there is no such egress, or nobody refuses with such a fault.
        """
        if not 0 <= egress < self._egresses:
            raise ValueError(f"no egress {egress}")
        if fault is not None and fault not in REFUSALS:
            raise ValueError(f"an egress cannot refuse with {fault}")
        self._ask("POST", "/refuse", {"egress": egress, "fault": fault})

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        if self._process is None:
            raise SandboxError("the sandbox is not running")
        connection = http.client.HTTPConnection("127.0.0.1", self._control, timeout=_START_TIMEOUT)
        headers = {"Authorization": f"Bearer {self._token}"}
        try:
            connection.request(method, path, json.dumps(body), headers)
            answer = connection.getresponse()
            data = answer.read()
        except OSError as error:
            raise SandboxError("the origin does not answer") from error
        finally:
            connection.close()
        if answer.status != HTTPStatus.OK:
            raise SandboxError(f"the origin answered {answer.status}")
        return json.loads(data)


def _end(process: subprocess.Popen[str]) -> None:
    """Let the child end: it does so when its standard input does."""
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
    try:
        process.wait(_STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        logger.warning("the sandbox's process %d had to be killed", process.pid)
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


if __name__ == "__main__":
    main()
