"""Budgets that reach every socket and child; proxies and trust that are the user's own."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import logging
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import urllib3.exceptions
from cryptography import x509
from urllib3.exceptions import ProxyError

from acavdl.config import Reading
from acavdl.errors import ClipError, Outcome, UsageError
from acavdl.fetch import fetch_file
from acavdl.models import Source
from acavdl.net import Budget, BudgetExceededError, Network, cancel_all
from acavdl.resolve import Resolver
from acavdl.sandbox import Fault, Sandbox, video_id
from acavdl.sandbox.ca import Authority, server_context

#: Seconds of a budget that is to be used up, and until which its work must have ended. A read
#: alone would give up after 20 s.
SHORT, SOON = 0.4, 8.0

VARIABLES = (
    *("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY"),
    *("https_proxy", "http_proxy", "all_proxy", "no_proxy"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
)


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


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


# --- ways never to end ------------------------------------------------------------------------


def never_answers(peer: Peer, sock: socket.socket) -> None:
    peer.head(sock)
    peer.fall_silent(sock)


def trickles_headers(peer: Peer, sock: socket.socket) -> None:
    peer.head(sock)
    sock.sendall(b"HTTP/1.1 200 OK\r\nX-Long: ")
    peer.trickle(sock)


def trickles_body(peer: Peer, sock: socket.socket) -> None:
    peer.head(sock)
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    peer.trickle(sock)


def trickles_chunks(peer: Peer, sock: socket.socket) -> None:
    peer.head(sock)
    sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffff\r\n")
    peer.trickle(sock)


def trickles_last_body(peer: Peer, sock: socket.socket) -> None:
    """http.client lets go of the socket as soon as it reads `Connection: close`."""
    peer.head(sock)
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\nConnection: close\r\n\r\n")
    peer.trickle(sock)


def trickles_until_closed(peer: Peer, sock: socket.socket) -> None:
    peer.head(sock)
    sock.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
    peer.trickle(sock)


def stalls_in_body(peer: Peer, sock: socket.socket) -> None:
    peer.head(sock)
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nhalf")
    peer.fall_silent(sock)


def silent_handshake(peer: Peer, sock: socket.socket) -> None:
    peer.fall_silent(sock)


def trickles_handshake(peer: Peer, sock: socket.socket) -> None:
    sock.sendall(b"\x16\x03\x03\x3f\xff\x02\x00\x3f\xf0")
    peer.trickle(sock, b"\0")


def silent_tunnel(peer: Peer, sock: socket.socket) -> None:
    peer.head(sock)
    peer.fall_silent(sock)


def trickles_tunnel(peer: Peer, sock: socket.socket) -> None:
    peer.head(sock)
    sock.sendall(b"HTTP/1.1 200 OK\r\nX-Long: ")
    peer.trickle(sock)


def tunnel_to_silence(peer: Peer, sock: socket.socket) -> None:
    peer.head(sock)
    sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    peer.fall_silent(sock)


DIRECT = (
    never_answers,
    trickles_headers,
    trickles_body,
    trickles_chunks,
    trickles_last_body,
    trickles_until_closed,
    stalls_in_body,
)
TLS = (silent_handshake, trickles_handshake)
TUNNEL = (silent_tunnel, trickles_tunnel, tunnel_to_silence)
ENDLESS = [
    *[pytest.param(serve, "http://127.0.0.1:{port}/", None, id=serve.__name__) for serve in DIRECT],
    *[pytest.param(serve, "https://127.0.0.1:{port}/", None, id=serve.__name__) for serve in TLS],
    *[
        pytest.param(serve, "https://media.invalid/", "http://127.0.0.1:{port}", id=serve.__name__)
        for serve in TUNNEL
    ],
    pytest.param(
        silent_handshake, "https://media.invalid/", "https://127.0.0.1:{port}", id="tls_proxy"
    ),
]


def read_all(network: Network, url: str) -> None:
    """Send a request and read the answer; an end by force shows as an error or an early end."""
    with contextlib.suppress(urllib3.exceptions.HTTPError, OSError):
        network.open("GET", url).read()


@pytest.mark.parametrize(("serve", "url", "proxy"), ENDLESS)
def test_budget_ends_whatever_blocks(
    serve: Callable[[Peer, socket.socket], None], url: str, proxy: str | None
) -> None:
    with peer(serve) as other, contextlib.closing(_network(proxy, other)) as network:
        begun = time.monotonic()
        with Budget(SHORT).scope() as budget:
            read_all(network, url.format(port=other.port))
            assert budget.exceeded
        assert time.monotonic() - begun < SOON
        assert other.busy.is_set()


@pytest.mark.parametrize(("serve", "url", "proxy"), ENDLESS)
def test_cancel_all_ends_whatever_blocks(
    serve: Callable[[Peer, socket.socket], None], url: str, proxy: str | None
) -> None:
    with peer(serve) as other, contextlib.closing(_network(proxy, other)) as network:

        def work() -> None:
            with Budget(600).scope():
                read_all(network, url.format(port=other.port))

        thread = threading.Thread(target=work)
        thread.start()
        assert other.busy.wait(SOON)
        cancel_all()
        thread.join(SOON)
        assert not thread.is_alive()


def _network(proxy: str | None, other: Peer) -> Network:
    return Network(None if proxy is None else proxy.format(port=other.port))


@pytest.mark.parametrize("fault", [Fault.PLAYER_HANGS, Fault.PLAYER_TRICKLES])
def test_budget_ends_reading_inside_tls_through_a_proxy(online: Sandbox, fault: Fault) -> None:
    body = f'{{"videoId": "{video_id(1, fault=fault)}"}}'.encode()
    with contextlib.closing(Network(online.proxies[0])) as network:
        begun = time.monotonic()
        with Budget(SHORT).scope(), contextlib.suppress(urllib3.exceptions.HTTPError):
            network.open("POST", "https://www.youtube.com/youtubei/v1/player", body=body).read()
        assert time.monotonic() - begun < SOON


# --- scopes ------------------------------------------------------------------------------------


def sleeps_on(seconds: float = 60) -> bool:
    """Start a child in this thread; return whether it was let live to its end."""
    return subprocess.run(["sleep", str(seconds)], check=False).returncode == 0


def test_budget_ends_a_child_process() -> None:
    begun = time.monotonic()
    with Budget(SHORT).scope():
        assert not sleeps_on()
        # What is started later than the first strike, too.
        assert not sleeps_on()
    assert time.monotonic() - begun < SOON


def test_budget_leaves_others_children_alone() -> None:
    """Those of another thread, and those that this thread starts before or after the scope."""
    started = threading.Event()
    over = threading.Event()
    spared: list[int | None] = []

    def other() -> None:
        with subprocess.Popen(["sleep", "60"]) as child:
            started.set()
            over.wait()
            spared.append(child.poll())
            child.kill()

    thread = threading.Thread(target=other)
    thread.start()
    assert started.wait(SOON)
    first = Budget(SHORT)
    with subprocess.Popen(["sleep", "60"]) as earlier, first.scope():
        assert not sleeps_on()
        assert earlier.poll() is None
        earlier.kill()
    with subprocess.Popen(["sleep", "60"]) as later:

        def clock() -> None:
            with Budget(2 * SHORT).scope():
                assert not sleeps_on()

        waiting = threading.Thread(target=clock)
        waiting.start()
        waiting.join(SOON)
        assert first.exceeded
        assert later.poll() is None
        later.kill()
    over.set()
    thread.join(SOON)
    assert spared == [None]


def test_work_within_the_budget_is_left_alone() -> None:
    with Budget(60).scope() as budget:
        assert sleeps_on(0.01)
        assert not budget.exceeded


def test_extended_budget_ends_later() -> None:
    with Budget(SHORT).scope() as budget:
        budget.extend(60)
        assert sleeps_on(2 * SHORT)


def test_budget_goes_on_running_between_its_scopes() -> None:
    budget = Budget(SHORT)
    with budget.scope():
        assert sleeps_on(0)
    with budget.scope():
        assert not sleeps_on()
    with budget.scope():
        assert not sleeps_on()


def test_no_request_begins_after_the_end() -> None:
    with peer(never_answers) as other, contextlib.closing(Network()) as network:
        with Budget(0).scope() as budget, pytest.raises(BudgetExceededError):
            network.open("GET", f"http://127.0.0.1:{other.port}/")
        assert budget.requests == 0
        assert not other.busy.is_set()


def test_inner_budget_ends_with_the_outer_one() -> None:
    with peer(never_answers) as other, contextlib.closing(Network()) as network:
        begun = time.monotonic()
        with Budget(SHORT).scope() as outer:
            with Budget(60).scope():
                read_all(network, f"http://127.0.0.1:{other.port}/")
            assert Budget.current() is outer
        assert time.monotonic() - begun < SOON
        assert Budget.current() is None


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


def test_end_of_an_inner_budget_leaves_the_outer_ones_connection() -> None:
    with peer(answers) as other, contextlib.closing(Network()) as network:
        url = f"http://127.0.0.1:{other.port}/"
        with Budget(60).scope() as outer:
            answer = network.open("GET", url)
            with Budget(SHORT).scope():
                assert not sleeps_on()
            assert len(answer.read()) > 3
            assert outer.requests == 1


def test_pooled_connection_outlives_the_budget_that_opened_it() -> None:
    """The first budget ends while a second one waits for an answer on the same connection."""
    used, asked = threading.Event(), threading.Event()
    bodies: list[bytes] = []
    struck: list[bool] = []

    def first(url: str, network: Network) -> None:
        with Budget(SHORT).scope():
            bodies.append(network.open("GET", url).read())
            used.set()
            asked.wait(SOON)
            struck.append(not sleeps_on())

    def second(url: str, network: Network) -> None:
        with Budget(60).scope():
            answer = network.open("GET", url)
            asked.set()
            bodies.append(answer.read())

    with peer(answers) as other, contextlib.closing(Network()) as network:
        arguments = (f"http://127.0.0.1:{other.port}/", network)
        one = threading.Thread(target=first, args=arguments)
        one.start()
        assert used.wait(SOON)
        two = threading.Thread(target=second, args=arguments)
        two.start()
        one.join(SOON)
        assert struck == [True]
        other.busy.set()
        two.join(SOON)
        assert len(bodies) == 2
        assert bodies[0] == bodies[1]


def test_cancelled_work_can_begin_nothing_new() -> None:
    with peer(answers) as other, contextlib.closing(Network()) as network:
        begun = time.monotonic()
        with Budget(600).scope() as budget:
            cancel_all()
            assert budget.exceeded
            assert not sleeps_on()
            with pytest.raises(BudgetExceededError):
                network.open("GET", f"http://127.0.0.1:{other.port}/")
            budget.extend(600)
            assert not sleeps_on()
        assert time.monotonic() - begun < SOON
    with Budget(600).scope():
        assert sleeps_on(0.01)


# --- proxies -----------------------------------------------------------------------------------


def refuses(peer: Peer, sock: socket.socket) -> None:
    peer.head(sock)
    sock.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"])
def test_proxy_variable_is_honoured(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with peer(refuses) as other:
        monkeypatch.setenv(name, f"http://127.0.0.1:{other.port}")
        with contextlib.closing(Network()) as network, pytest.raises(ProxyError):
            network.open("GET", "https://media.invalid/")
        assert other.heads[0].startswith(b"CONNECT media.invalid:443 ")


def test_no_proxy_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    with peer(refuses) as proxy, peer(answers) as origin:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        url = f"http://127.0.0.1:{origin.port}/"
        with contextlib.closing(Network()) as network:
            assert network.open("GET", url).status == 407
        monkeypatch.setenv("NO_PROXY", "other.invalid, 127.0.0.1")
        with contextlib.closing(Network()) as network:
            assert network.open("GET", url).status == 200


@pytest.mark.parametrize(
    ("exempt", "host", "direct"),
    [
        ("example.org", "example.org", True),
        ("example.org", "a.example.org", True),
        (".example.org", "a.example.org", True),
        ("example.org", "notexample.org", False),
        ("*", "anything.invalid", True),
        ("", "anything.invalid", False),
    ],
)
def test_no_proxy_names_hosts_and_their_subdomains(
    monkeypatch: pytest.MonkeyPatch, exempt: str, host: str, direct: bool
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.invalid:3128")
    monkeypatch.setenv("NO_PROXY", exempt)
    with contextlib.closing(Network()) as network:
        found = network.proxy_for(f"https://{host}/")
    assert found == (None if direct else "http://proxy.invalid:3128")


def test_proxy_option_overrides_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even variables that could not be used; an empty option means no proxy, as yt-dlp has it."""
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "*")
    with peer(refuses) as proxy, peer(answers) as origin:
        url = f"http://127.0.0.1:{origin.port}/"
        with contextlib.closing(Network(f"http://127.0.0.1:{proxy.port}")) as network:
            assert network.open("GET", url).status == 407
        with contextlib.closing(Network("")) as network:
            assert network.open("GET", url).status == 200


SECRETS = ("s3cr%2Ft", "s3cr/t", base64.b64encode(b"user:s3cr/t").decode())


def test_proxy_password_is_sent_and_never_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    video = video_id(1, master="m60")
    with peer(refuses) as other:
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:{SECRETS[0]}@127.0.0.1:{other.port}")
        with contextlib.closing(Network()) as network:
            with pytest.raises(urllib3.exceptions.HTTPError) as raised:
                network.open("GET", "https://media.invalid/")
            resolver = Resolver(network, Reading(ytdlp={"extractor_retries": 0}))
            with contextlib.closing(resolver), pytest.raises(ClipError) as failed:
                resolver.resolve(f"https://www.youtube.com/watch?v={video}")
    assert f"basic {SECRETS[2]}".lower().encode() in other.heads[0].lower()
    assert failed.value.outcome is Outcome.NETWORK
    told = f"{raised.value!r} {raised.value.__cause__!r} {failed.value.detail} {caplog.text}"
    assert "407" in told
    assert not any(secret in told for secret in SECRETS)


def test_proxy_password_stays_outside_of_the_tunnel(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    authority = Authority()
    context = server_context(authority.leaf(("rr1.googlevideo.com",)), tmp_path)
    (tmp_path / "ca.pem").write_bytes(authority.certificate)

    def tunnels(peer: Peer, sock: socket.socket) -> None:
        peer.head(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        with context.wrap_socket(sock, server_side=True) as tls:
            peer.head(tls)
            tls.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    with peer(tunnels) as other:
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:{SECRETS[0]}@127.0.0.1:{other.port}")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        with contextlib.closing(Network()) as network:
            assert network.open("GET", "https://rr1.googlevideo.com/").read() == b"ok"
    assert len(other.heads) == 2
    assert [b"proxy-authorization" in head.lower() for head in other.heads] == [True, False]


@pytest.mark.parametrize(
    "url",
    [
        "socks5://user:s3cret@127.0.0.1:1080",
        "http://user:s3cret/word@127.0.0.1:3128",
        "http://user:s3cret#word@127.0.0.1:3128",
        "http://user:s3cret[word@127.0.0.1:3128",
        "http://user:s3cret@127.0.0.1:port",
        "http://user:s3cret@",
    ],
)
def test_unusable_proxy_is_a_usage_error_without_its_password(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", url)
    with pytest.raises(UsageError, match="proxy") as raised:
        Network()
    assert "s3cret" not in str(raised.value)


# --- trust -------------------------------------------------------------------------------------


def resolve(url: str, reading: Reading) -> Source:
    with (
        contextlib.closing(Network()) as network,
        contextlib.closing(Resolver(network, reading)) as resolver,
    ):
        return resolver.resolve(url)


def hashed_name(certificate: bytes) -> str:
    """Return the file name under which OpenSSL looks for a CA in a folder (``openssl rehash``)."""
    subject = x509.load_pem_x509_certificate(certificate).subject
    canonical = x509.Name([x509.NameAttribute(a.oid, str(a.value).lower()) for a in subject])
    digest = hashlib.sha1(canonical.public_bytes()[2:], usedforsecurity=False).digest()
    return f"{int.from_bytes(digest[:4], 'little'):08x}.0"


@pytest.mark.parametrize(
    ("variable", "folder"),
    [
        ("SSL_CERT_FILE", False),
        ("SSL_CERT_DIR", True),
        ("REQUESTS_CA_BUNDLE", False),
        ("REQUESTS_CA_BUNDLE", True),
        ("CURL_CA_BUNDLE", False),
    ],
)
def test_extraction_and_fetch_trust_what_the_variable_names(
    sandbox: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    variable: str,
    folder: bool,
) -> None:
    certificate = sandbox.ca_file.read_bytes()
    file = tmp_path / hashed_name(certificate)
    file.write_bytes(certificate)
    monkeypatch.setenv("HTTPS_PROXY", sandbox.proxies[0])
    monkeypatch.setenv(variable, str(tmp_path if folder else file))
    with contextlib.closing(Network()) as network:
        with contextlib.closing(Resolver(network, Reading())) as resolver:
            url = f"https://www.youtube.com/watch?v={video_id(3)}"
            source = resolver.resolve(url)
        stream = source.streams[-1]
        assert fetch_file(network, stream, source.headers, tmp_path / "media", 0) == stream.size


def test_unknown_authority_is_refused_by_extraction_and_fetch(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", sandbox.proxies[0])
    url = f"https://www.youtube.com/watch?v={video_id(3)}"
    with monkeypatch.context() as trusting:
        trusting.setenv("SSL_CERT_FILE", str(sandbox.ca_file))
        source = resolve(url, Reading())
    # Not even where the user asks yt-dlp for it is verification off.
    careless = Reading(ytdlp={"nocheckcertificate": True, "extractor_retries": 0})
    with contextlib.closing(Network()) as network:
        with pytest.raises(ClipError) as extraction:
            resolve(url, careless)
        with pytest.raises(ClipError) as fetch:
            fetch_file(network, source.streams[0], source.headers, tmp_path / "media", 0)
    assert extraction.value.outcome is Outcome.TLS
    assert fetch.value.outcome is Outcome.TLS


def test_certificate_for_another_host_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    authority = Authority()
    context = server_context(authority.leaf(("www.youtube.com",)), tmp_path)
    (tmp_path / "ca.pem").write_bytes(authority.certificate)

    def serve(peer: Peer, sock: socket.socket) -> None:
        with contextlib.suppress(ssl.SSLError):
            context.wrap_socket(sock, server_side=True).close()

    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    with (
        peer(serve) as other,
        contextlib.closing(Network()) as network,
        pytest.raises(urllib3.exceptions.SSLError, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        network.open("GET", f"https://localhost:{other.port}/")


@pytest.mark.parametrize(
    "variable", ["SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"]
)
def test_missing_certificates_are_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    monkeypatch.setenv(variable, str(tmp_path / "nowhere.pem"))
    with pytest.raises(UsageError, match=f"{variable} .*nowhere.pem"):
        Network()


def test_file_without_certificates_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "empty.pem").write_text("nothing here\n")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "empty.pem"))
    with pytest.raises(UsageError, match=r"empty\.pem"):
        Network()
