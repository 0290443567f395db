"""A certificate authority that lives for one run and can vouch for YouTube's names only.

The sandbox answers for ``www.youtube.com`` and the media hosts over TLS, and its clients verify as
they do in the wild. That takes a CA of our own; the name constraints (:rfc:`5280` section 4.2.1.10)
see to it that a client that trusts the CA can be told nothing about any other site, whoever gets
hold of the key. The key exists in memory only, for as long as the leaf takes to sign.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

#: DNS subtrees that the CA may sign for; a subtree covers the name itself and everything below it.
PERMITTED = ("youtube.com", "googlevideo.com", "youtubei.googleapis.com", "ytimg.com")

#: Names in the leaf that the origin serves with.
LEAF_NAMES = (
    "www.youtube.com",
    "youtubei.googleapis.com",
    "i.ytimg.com",
    "*.googlevideo.com",
)

#: How long a certificate is valid, and how far it is backdated for clocks that are behind.
VALIDITY = dt.timedelta(days=7)
BACKDATE = dt.timedelta(hours=1)


@dataclass(frozen=True)
class Leaf:
    """A server certificate and its private key, both PEM."""

    certificate: bytes
    key: bytes


class Authority:
    """A CA made afresh; its private key never leaves this object.

    Parameters
    ----------
    now
        The moment from which the validity counts (timezone-aware); the current time if left out.
    """

    def __init__(self, now: dt.datetime | None = None) -> None:
        self._now = now or dt.datetime.now(dt.UTC)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("acavdl sandbox CA")
        self._certificate = (
            _builder(self._name, self._name, self._key.public_key(), self._now)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(ca=True), critical=True)
            .add_extension(_constraints(), critical=True)
            .add_extension(_authority_id(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )

    @property
    def certificate(self) -> bytes:
        """The CA's certificate (PEM): what a client is told to trust."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def leaf(self, names: Sequence[str] = LEAF_NAMES) -> Leaf:
        """Sign a server certificate.

        Parameters
        ----------
        names
            DNS names for the certificate. Names outside `PERMITTED` are signed too: it is the
            client that has to refuse them, and the tests look at just that.

        Returns
        -------
        Leaf
            The certificate and a key of its own.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _builder(_name("acavdl sandbox"), self._name, key.public_key(), self._now)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(
                x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False
            )
            .add_extension(_authority_id(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return Leaf(
            certificate=certificate.public_bytes(serialization.Encoding.PEM),
            key=key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
        )


def server_context(leaf: Leaf, private: Path) -> ssl.SSLContext:
    """Make a TLS server context for `leaf`.

    OpenSSL reads keys from files alone, so the key is in `private` for as long as the loading
    takes, and is deleted before this returns, whatever happens.

    Parameters
    ----------
    leaf
        What to serve with.
    private
        An existing directory that nobody else can enter (mode 0700).

    Returns
    -------
    ssl.SSLContext
        TLS 1.2 or newer, no client certificates.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    path = private / "leaf.pem"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(leaf.key + leaf.certificate)
        context.load_cert_chain(path)
    finally:
        path.unlink(missing_ok=True)
    return context


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: dt.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + VALIDITY)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _authority_id(key: ec.EllipticCurvePublicKey) -> x509.AuthorityKeyIdentifier:
    # VERIFY_X509_STRICT, the default from Python 3.13 on, asks for it in each certificate.
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key)


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _constraints() -> x509.NameConstraints:
    # A type of name that is not mentioned is free, so addresses are excluded one and all.
    return x509.NameConstraints(
        permitted_subtrees=[x509.DNSName(name) for name in PERMITTED],
        excluded_subtrees=[
            x509.IPAddress(ipaddress.ip_network("0.0.0.0/0")),
            x509.IPAddress(ipaddress.ip_network("::/0")),
        ],
    )
