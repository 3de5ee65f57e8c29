"""Certificates and keys, made and read. What is due when is decided in `decide.certificates`."""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from llmbudget.decide.certificates import BACKDATED, CertificateFacts, Validity
from llmbudget.render.certificate import Pair

_ORGANISATION: Final = "LLM Budget"


class NotCertificate(Exception):
    """This is no certificate with its key; the message says what is wrong."""


class Authority:
    """A certificate that signs others, with its key."""

    def __init__(self, pair: Pair) -> None:
        """Read it.

        Raises:
            NotCertificate.
        """
        self.pair = pair
        self.certificate, self._key = _read(pair)

    @classmethod
    def make(cls, now: datetime, life: timedelta) -> Authority:
        """Make a new one."""
        key = ec.generate_private_key(ec.SECP256R1())
        # Each has a name of its own, or clients would take one for the other.
        name = _name(f"{_ORGANISATION} authority {secrets.token_hex(4)}")
        usage = _usage(signs_certificates=True)
        made = (
            _builder(name, key.public_key(), now, now + life)
            .issuer_name(name)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(key, hashes.SHA256())
        )
        return cls(_written(made, key))

    @property
    def validity(self) -> Validity:
        """From when until when it is good."""
        found = self.certificate
        return Validity(found.not_valid_before_utc, found.not_valid_after_utc)

    @property
    def identifier(self) -> bytes:
        """Identifies its key in what it signs."""
        return x509.SubjectKeyIdentifier.from_public_key(self.certificate.public_key()).digest

    def issue(self, names: Iterable[str], now: datetime, life: timedelta) -> Pair:
        """Make a certificate for a server that is called by these names and addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        end = min(now + life, self.validity.not_after)
        alternatives = x509.SubjectAlternativeName([_alternative(name) for name in sorted(names)])
        identifier = x509.AuthorityKeyIdentifier(self.identifier, None, None)
        server = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
        usage = _usage(signs_certificates=False)
        made = (
            _builder(_name("llmbudget-gateway"), key.public_key(), now, end)
            .issuer_name(self.certificate.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(server, critical=False)
            .add_extension(alternatives, critical=False)
            .add_extension(identifier, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return _written(made, key)


def facts_of(pair: Pair) -> CertificateFacts:
    """Read what a server's certificate says.

    Raises:
        NotCertificate: it can't be read, or the key is another's.
    """
    found, _ = _read(pair)
    extensions = found.extensions
    try:
        alternatives = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        issuer = extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    except x509.ExtensionNotFound as error:
        raise NotCertificate(str(error)) from None
    names = {str(alternative.value) for alternative in alternatives}
    return CertificateFacts(
        frozenset(names), issuer.key_identifier or b"", found.not_valid_after_utc
    )


def only_certificates(pem: bytes) -> str:
    """Take the certificates out of a PEM text, and nothing else that may stand there."""
    try:
        found = x509.load_pem_x509_certificates(pem)
    except ValueError:
        return ""
    return "".join(each.public_bytes(Encoding.PEM).decode() for each in found)


def validity_of(pem: bytes) -> Validity:
    """Read from when until when a certificate is good.

    Raises:
        NotCertificate.
    """
    found = _certificate(pem)
    return Validity(found.not_valid_before_utc, found.not_valid_after_utc)


def _builder(
    subject: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, _ORGANISATION),
            x509.NameAttribute(NameOID.COMMON_NAME, common),
        ]
    )


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _written(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Pair(certificate.public_bytes(Encoding.PEM), text)


def _read(pair: Pair) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    certificate, key = _certificate(pair.certificate), _key(pair.key)
    if key.public_key() != certificate.public_key():
        raise NotCertificate("the key is not the certificate's")
    return certificate, key


def _certificate(pem: bytes) -> x509.Certificate:
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise NotCertificate("the certificate can't be read") from None
    return certificate


def _key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise NotCertificate("the key can't be read") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise NotCertificate("the key is not of an elliptic curve")
    return key
