"""The run's CA: accepted where it may speak, refused elsewhere."""

import datetime as dt
import os
import ssl
import stat

import pytest
from cryptography import x509

from acavdl.sandbox.ca import BACKDATE, LEAF_NAMES, VALIDITY, Authority, Leaf, server_context


@pytest.fixture(scope="module")
def authority():
    return Authority()


def shake_hands(server, client, host):
    """Let a client and a server context talk until both are content."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=host),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(10):
        for end in list(ends):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            ends.remove(end)
        if not ends:
            return
    pytest.fail("the handshake came to no end")


def trusting(authority):
    context = ssl.create_default_context(cadata=authority.certificate.decode())
    # The default from Python 3.13 on.
    context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


@pytest.mark.parametrize(
    "host",
    ["www.youtube.com", "youtubei.googleapis.com", "i.ytimg.com", "rr3---sn-abc.googlevideo.com"],
)
def test_the_hosts_of_the_site_are_vouched_for(authority, tmp_path, host):
    server = server_context(authority.leaf(), tmp_path)
    shake_hands(server, trusting(authority), host)


@pytest.mark.parametrize("host", ["example.com", "notyoutube.com", "www.googleapis.com", "com"])
def test_a_name_outside_the_constraints_is_refused(authority, tmp_path, host):
    server = server_context(authority.leaf([host]), tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree violation"):
        shake_hands(server, trusting(authority), host)


def test_one_forbidden_name_spoils_a_leaf(authority, tmp_path):
    server = server_context(authority.leaf(["www.youtube.com", "example.com"]), tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree violation"):
        shake_hands(server, trusting(authority), "www.youtube.com")


def test_the_leaf_is_good_for_its_own_names_only(authority, tmp_path):
    server = server_context(authority.leaf(), tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake_hands(server, trusting(authority), "music.youtube.com")


def test_each_run_has_a_ca_of_its_own(authority, tmp_path):
    server = server_context(Authority().leaf(), tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(server, trusting(authority), "www.youtube.com")


def test_certificates_are_short_lived(tmp_path):
    now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    authority = Authority(now)
    for pem in (authority.certificate, authority.leaf().certificate):
        certificate = x509.load_pem_x509_certificate(pem)
        assert certificate.not_valid_before_utc == now - BACKDATE
        assert certificate.not_valid_after_utc == now + VALIDITY
    assert dt.timedelta(days=10) >= VALIDITY
    server = server_context(authority.leaf(), tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        shake_hands(server, trusting(authority), "www.youtube.com")


def test_the_certificate_of_the_ca_holds_no_key(authority):
    assert b"PRIVATE KEY" not in authority.certificate


def test_the_key_is_on_disk_while_it_is_loaded_and_private(authority, tmp_path, monkeypatch):
    seen = []
    load = ssl.SSLContext.load_cert_chain

    def watched(self, path, *args):
        seen.append(stat.S_IMODE(path.stat().st_mode))
        load(self, path, *args)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", watched)
    old = os.umask(0)
    try:
        server_context(authority.leaf(), tmp_path)
    finally:
        os.umask(old)
    assert seen == [0o600]
    assert list(tmp_path.iterdir()) == []


def test_the_key_is_deleted_when_it_cannot_be_loaded(authority, tmp_path):
    broken = Leaf(certificate=authority.leaf().certificate, key=b"no key at all\n")
    with pytest.raises(ssl.SSLError):
        server_context(broken, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_leaf_names_what_the_origin_answers_for(authority):
    certificate = x509.load_pem_x509_certificate(authority.leaf().certificate)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert tuple(names.get_values_for_type(x509.DNSName)) == LEAF_NAMES
