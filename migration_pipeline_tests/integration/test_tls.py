"""TLS with ``sslmode=verify-full``: encrypted with the right certificate, refused at once with any other.

Everywhere the embedded server stands behind an end of TLS of the tests' own, because it is built without. Where the
operating system's packages have a PostgreSQL (Debian: ``apt-get install postgresql``), that one is run as well, with
certificates of its own; with `REQUIRE_POSTGRESQL` in the environment it must be there.
"""

from __future__ import annotations

import os
import select
import socket
import socketserver
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, quote, urlsplit

import psycopg2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from migration_pipeline.demo.postgres import EmbeddedPostgres
from migration_pipeline.profile.profile import load_profile
from migration_pipeline.sources.export import read_export
from migration_pipeline.sources.storage import Storage
from migration_pipeline.targets.connection import DatabaseError, DatabaseSettings
from migration_pipeline.targets.ddl import ddl
from migration_pipeline.targets.postgres import FileIdentity, PostgresTarget
from migration_pipeline_tests.conftest import execute, query
from migration_pipeline_tests.integration.test_quarantine import load_shop
from migration_pipeline_tests.servers import InstalledPostgres, free_port, need

SECRET = "s3cr3t"
PASSWORD = f"{SECRET}-pass/word"
shop = load_profile("shop")


# -- certificates -----------------------------------------------------------------------------------

Issued = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


def certificate(name: str, issuer: Issued | None = None) -> Issued:
    """Make a certificate: of an authority or, vouched for by `issuer`, of the host `name`."""
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
    if issuer:
        made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    return made.sign(issuer[1] if issuer else key, hashes.SHA256()), key


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with authorities, `right.crt` and `wrong.crt`, and what the right one issued to `localhost`."""
    folder = tmp_path_factory.mktemp("certificates")
    authority = certificate("an authority")
    issued = {
        "right": authority,
        "wrong": certificate("another"),
        "host": certificate("localhost", authority),
    }
    for name, (public, _) in issued.items():
        (folder / f"{name}.crt").write_bytes(public.public_bytes(serialization.Encoding.PEM))
    (folder / "host.key").write_bytes(
        issued["host"][1].private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return folder


# -- TLS in front of the embedded server -------------------------------------------------------------

SSL_REQUEST = struct.pack(">ii", 8, 80877103)


class TlsEnd(socketserver.ThreadingTCPServer):
    """TLS in front of a server: it does just what PostgreSQL does of it.

    A client asks with SSLRequest, is answered with "S" and shakes hands ("SSL Session Encryption" in
    PostgreSQL's protocol); what it says then goes to the server as it is.
    """

    daemon_threads = True

    def __init__(self, server: str, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), TlsConnection)
        self.socket_path = server
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(folder / "host.crt", folder / "host.key")


class TlsConnection(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        front = self.server
        assert isinstance(front, TlsEnd)
        assert self.request.recv(8, socket.MSG_WAITALL) == SSL_REQUEST
        self.request.sendall(b"S")
        try:
            client = front.context.wrap_socket(self.request, server_side=True)
        except (ssl.SSLError, OSError):
            return  # the client does not like our certificate
        with client, socket.socket(socket.AF_UNIX) as server:
            server.connect(front.socket_path)
            self.pass_on(client, server)

    @staticmethod
    def pass_on(client: ssl.SSLSocket, server: socket.socket) -> None:
        while True:
            waiting = [client] if client.pending() else select.select([client, server], [], [])[0]
            for one in waiting:
                try:
                    data = one.recv(1 << 16)
                except OSError:
                    data = b""
                if not data:
                    return
                (server if one is client else client).sendall(data)


# -- the servers ------------------------------------------------------------------------------------


class Server(NamedTuple):
    """A PostgreSQL that is reached with TLS at a port of 127.0.0.1, and with the superuser's rights at its socket."""

    port: int
    superuser_url: str

    def url(self, database: str = "postgres", host: str = "localhost", password: str = PASSWORD) -> str:
        # With hostaddr no resolver comes in between; the name that is verified is still the host's.
        return (
            f"postgresql://loader:{quote(password, '')}@{host}:{self.port}/{database}"
            "?hostaddr=127.0.0.1&sslmode=verify-full"
        )


@pytest.fixture(scope="module", params=["behind TLS", "with certificates of its own"])
def server(
    request: pytest.FixtureRequest, certificates: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server whose role `loader` needs a password, with a certificate for `localhost`."""
    own = request.param == "with certificates of its own"
    if own:
        need(InstalledPostgres.binaries(), "PostgreSQL", "postgresql")
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    started = (
        InstalledPostgres(folder, {"listen_addresses": "127.0.0.1", "port": str(port)})
        if own
        else EmbeddedPostgres(folder)
    )
    started.start()
    try:
        rules = "local all loader scram-sha-256\nlocal all all trust\nhostssl all loader 127.0.0.1/32 scram-sha-256\n"
        (started.data_dir / "pg_hba.conf").write_text(rules if own else rules.partition("hostssl")[0])
        execute(started.url, f"CREATE ROLE loader LOGIN PASSWORD '{PASSWORD}'")
        if own:
            owner = started.data_dir.stat()
            for name, installed in (("host.crt", "server.crt"), ("host.key", "server.key")):
                path = started.data_dir / installed
                path.write_bytes((certificates / name).read_bytes())
                os.chown(path, owner.st_uid, owner.st_gid)
                path.chmod(0o600)
            execute(started.url, "ALTER SYSTEM SET ssl = on")
            execute(started.url, "SELECT pg_reload_conf()")
            made = Server(port, started.url)
            await_tls(made, certificates)
            yield made
        else:
            execute(started.url, "SELECT pg_reload_conf()")
            with TlsEnd(socket_of(started), certificates) as front:
                threading.Thread(target=front.serve_forever, daemon=True).start()
                made = Server(int(front.server_address[1]), started.url)
                await_tls(made, certificates)
                yield made
                front.shutdown()
    finally:
        started.remove()


def socket_of(server: EmbeddedPostgres) -> str:
    names = parse_qs(urlsplit(server.url).query)
    return f"{names['host'][0]}/.s.PGSQL.{names['port'][0]}"


def await_tls(server: Server, certificates: Path) -> None:
    """Wait until the server has taken its new settings: the password is asked for, within TLS."""
    deadline = time.monotonic() + 30
    while True:
        try:
            psycopg2.connect(
                f"{server.url(password='wrong')}&sslrootcert={certificates / 'right.crt'}"
            ).close()
        except psycopg2.OperationalError as error:
            if "password authentication failed" in str(error):
                return
        assert time.monotonic() < deadline, "the server does not take its settings"
        time.sleep(0.05)


# -- the tests --------------------------------------------------------------------------------------


def test_verify_full_connects_encrypted_and_loads(
    server: Server, certificates: Path, shop_export: Path
) -> None:
    execute(server.superuser_url, "CREATE DATABASE shop")
    superuser_url = server.superuser_url.replace("/postgres?", "/shop?")
    execute(superuser_url, ddl(shop.tables.values()))
    execute(superuser_url, "GRANT SELECT, INSERT, UPDATE ON customers, orders, order_lines TO loader")
    execute(superuser_url, "GRANT USAGE ON SCHEMA migration TO loader")
    execute(superuser_url, "GRANT ALL ON ALL TABLES IN SCHEMA migration TO loader")
    execute(superuser_url, "ALTER SCHEMA landing OWNER TO loader")
    execute(superuser_url, "ALTER TABLE landing.shop_events OWNER TO loader")
    url = f"{server.url('shop')}&sslrootcert={certificates / 'right.crt'}"
    with closing(psycopg2.connect(url)) as connection:
        assert connection.info.ssl_in_use
        assert connection.info.ssl_attribute("protocol") == "TLSv1.3"
    export = read_export(str(shop_export), Storage())
    reports = load_shop(url, export)
    assert sum(report.items for report in reports) == 6_000
    ((loaded,),) = query(superuser_url, "SELECT count(*) FROM orders")
    assert loaded == sum(report.rows.get("orders", 0) for report in reports) > 500


@pytest.mark.parametrize(
    ("host", "authority", "password", "reason"),
    [
        ("localhost", "wrong.crt", PASSWORD, "certificate verify failed"),
        ("127.0.0.1", "right.crt", PASSWORD, 'does not match host name "…"'),
        ("localhost", "none.crt", PASSWORD, 'root certificate file "…" does not exist'),
        ("localhost", "right.crt", f"{SECRET}-other", "password authentication failed"),
    ],
)
def test_a_wrong_authority_host_or_password_is_refused_at_once(
    server: Server, certificates: Path, host: str, authority: str, password: str, reason: str
) -> None:
    assert_refused(
        f"{server.url(host=host, password=password)}&sslrootcert={certificates / authority}", reason
    )


def test_a_server_without_tls_is_refused_at_once(
    certificates: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    port = free_port()
    plain = EmbeddedPostgres(
        tmp_path_factory.mktemp("plain"), {"listen_addresses": "127.0.0.1", "port": str(port)}
    )
    try:
        plain.start()
        url = Server(port, plain.url).url()
        assert_refused(
            f"{url}&sslrootcert={certificates / 'right.crt'}",
            "server does not support SSL, but SSL was required",
        )
    finally:
        plain.remove()


def assert_refused(url: str, reason: str) -> None:
    retries: list[str] = []
    with (
        pytest.raises(DatabaseError) as caught,
        PostgresTarget(
            url,
            shop.tables,
            FileIdentity("shop", "1", "e", "f", "r"),
            DatabaseSettings(retry_seconds=30),
            on_retry=retries.append,
        ),
    ):
        pass
    told = str(caught.value)
    assert reason in told
    assert (retries, "\n" in told) == ([], False)
    assert SECRET not in told
    assert caught.value.__cause__ is None
