"""Proxies and trust that are the user's own."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import logging
import socket
import ssl
from pathlib import Path

import pytest
import urllib3.exceptions
from cryptography import x509
from helpers import Peer, answers, peer
from urllib3.exceptions import ProxyError

from acavdl.config import Reading
from acavdl.errors import ClipError, Outcome, UsageError
from acavdl.fetch import fetch_file
from acavdl.models import Source
from acavdl.net import Network
from acavdl.resolve import Resolver
from acavdl.sandbox import Sandbox, video_id
from acavdl.sandbox.ca import Authority, server_context

#: Seconds of a budget that is to be used up, and until which its work must have ended. A read
#: alone would give up after 20 s.
SHORT, SOON = 0.4, 8.0

pytestmark = pytest.mark.usefixtures("no_variables")


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
    ("asked", "sent"),
    [
        ("/a/1.2/x.mp4?e=1%2f2&n=..", "/a/1.2/x.mp4?e=1%2f2&n=.."),
        ("/", "/"),
        ("", "/"),
        ("?e=/a", "/?e=/a"),
        ("/a/../b", "/b"),
        ("/a b", "/a%20b"),
        ("/\N{LATIN SMALL LETTER U WITH DIAERESIS}", "/%C3%BC"),
        ("/a?b#c", "/a?b"),
    ],
)
def test_an_address_is_asked_for_as_it_is_or_quoted(
    asked: str, sent: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    authority = Authority()
    context = server_context(authority.leaf(("rr1.googlevideo.com",)), tmp_path)
    (tmp_path / "ca.pem").write_bytes(authority.certificate)

    def tunnels(peer: Peer, sock: socket.socket) -> None:
        peer.head(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        with context.wrap_socket(sock, server_side=True) as tls:
            for _ in range(2):
                peer.head(tls)
                tls.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    with peer(tunnels) as other:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{other.port}")
        with contextlib.closing(Network()) as network:
            for target in (asked, "/next"):
                answer = network.open("GET", f"https://rr1.googlevideo.com{target}")
                assert answer.read() == b"ok"
                answer.release_conn()
    connect, *heads = [head.decode().splitlines() for head in other.heads]
    assert connect[0].startswith("CONNECT rr1.googlevideo.com:443 ")
    assert [lines[0] for lines in heads] == [f"GET {sent} HTTP/1.1", "GET /next HTTP/1.1"]
    assert all("Host: rr1.googlevideo.com" in lines for lines in heads)


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
