"""TLS, secrets, hostile names and limits, against a PostgreSQL with certificates, and with passwords, of its own.

What docs/security.md claims is tested here; its SQL and its policy for S3 are read from it and used as they stand.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from migration_pipeline.local.postgres import EmbeddedPostgres

PASSWORD = "s3cr3t-pass/word"

HBA = """
local all all trust
hostssl all all 127.0.0.1/32 scram-sha-256
"""


def certificate(name: str, issuer: tuple[Any, Any] | None, host: str = "") -> tuple[Any, Any]:
    """Make a certificate and its key: of an authority, or of a host that `issuer` vouches for."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    )
    if host:
        made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
    return made.sign(issuer[1] if issuer else key, hashes.SHA256()), key
