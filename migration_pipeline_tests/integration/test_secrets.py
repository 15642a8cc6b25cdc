"""Passwords that are not in the URL: secrets of AWS (moto's), and IAM's tokens, which a door before a real PostgreSQL demands as RDS does."""

from __future__ import annotations

import json
import socket
import socketserver
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import boto3
import pytest

from migration_pipeline.demo.postgres import EmbeddedPostgres
from migration_pipeline.targets.connection import DatabaseError, DatabaseSettings, connect, transaction
from migration_pipeline.targets.session import Session
from migration_pipeline_tests.conftest import execute
from migration_pipeline_tests.integration.test_tls import SSL_REQUEST, TlsConnection, certificates, socket_of
from migration_pipeline_tests.s3 import s3_server

__all__ = ["certificates"]

SECRET = "s3cr3t-pass/word"
OTHER = "an0ther"


@pytest.fixture(scope="module")
def moto() -> Iterator[dict[str, str]]:
    with s3_server() as environment:
        yield environment | {"AWS_ENDPOINT_URL": environment.pop("AWS_ENDPOINT_URL_S3")}


@pytest.fixture(autouse=True)
def aws(moto: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in moto.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A server whose role `loader` needs a password, which is at its socket only."""
    server = EmbeddedPostgres(tmp_path_factory.mktemp("guarded"))
    server.start()
    execute(server.url, f"CREATE ROLE loader LOGIN PASSWORD '{SECRET}'")
    (server.data_dir / "pg_hba.conf").write_text("local all loader scram-sha-256\nlocal all all trust\n")
    execute(server.url, "SELECT pg_reload_conf()")
    yield server
    server.remove()


@pytest.fixture
def host(guarded: EmbeddedPostgres) -> str:
    execute(guarded.url, f"ALTER ROLE loader PASSWORD '{SECRET}'")
    return str(Path(socket_of(guarded)).parent)


def role_of(url: str) -> str:
    with transaction(url) as cursor:
        cursor.execute("SELECT current_user")
        (role,) = cursor.fetchone()
        return str(role)


# -- secrets ------------------------------------------------------------------------------------------


def keep(service: str, name: str, text: str) -> str:
    """Keep a secret; gives its ARN."""
    session: Any = boto3.Session()
    client = session.client(service)
    if service == "ssm":
        client.put_parameter(Name=name, Value=text, Type="SecureString", Overwrite=True)
        return str(client.get_parameter(Name=name)["Parameter"]["ARN"])
    return str(client.create_secret(Name=name, SecretString=text)["ARN"])


@pytest.mark.parametrize("service", ["secretsmanager", "ssm"])
@pytest.mark.parametrize("by_arn", [False, True])
def test_the_whole_url_may_be_a_secret(host: str, service: str, by_arn: bool) -> None:
    name = f"/shop/url-{by_arn}"
    arn = keep(service, name, f"postgresql://loader:{quote(SECRET, '')}@/postgres?host={quote(host, '')}")
    assert role_of(arn if by_arn else f"{service}:{name}") == "loader"


def test_the_json_of_rds_is_a_secret(host: str) -> None:
    document = {
        "engine": "postgres",
        "host": host,
        "username": "loader",
        "password": SECRET,
        "dbname": "postgres",
        "port": 5432,
    }
    keep("secretsmanager", "shop/json", json.dumps(document))
    keep("secretsmanager", "shop/inner", json.dumps({"urls": 1, "url": f"postgresql://loader:{quote(SECRET, '')}@/postgres?host={quote(host, '')}"}))  # fmt: skip
    assert role_of("secretsmanager:shop/json") == "loader"
    assert role_of("secretsmanager:shop/inner#url") == "loader"


@pytest.mark.parametrize("service", ["secretsmanager", "ssm"])
@pytest.mark.parametrize("text", [SECRET, json.dumps({"username": "loader", "password": SECRET})])
def test_only_the_password_may_be_a_secret(host: str, service: str, text: str) -> None:
    name = f"/shop/password-{len(text)}"
    keep(service, name, text)
    url = f"postgresql://loader@/postgres?host={quote(host, '')}&password_from={service}:{name}"
    assert role_of(url) == "loader"


def test_a_rotated_password_is_taken_at_the_next_connection(guarded: EmbeddedPostgres, host: str) -> None:
    keep("ssm", "/rotated", SECRET)
    url = f"postgresql://loader@/postgres?password_from=ssm:/rotated&host={quote(host, '')}"
    told: list[str] = []
    with Session(url, DatabaseSettings(retry_seconds=30), told.append) as session:
        ask = lambda cursor: cursor.execute("SELECT 1")  # noqa: E731
        session.persistently(ask)
        execute(guarded.url, f"ALTER ROLE loader PASSWORD '{OTHER}'")
        keep("ssm", "/rotated", OTHER)
        execute(
            guarded.url, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'loader'"
        )
        session.persistently(ask)
    assert len(told) == 1
    assert OTHER not in told[0]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (
            "secretsmanager:nowhere",
            "Secrets Manager, nowhere: there is no such secret; check its name, region and account",
        ),
        ("ssm:/nowhere", "SSM Parameter Store, /nowhere: there is no such secret"),
        ("arn:aws:secretsmanager:eu-west-1:123456789012:secret:x-abc", "there is no such secret"),
        ("secretsmanager:wrong", "neither a URL (postgresql://…) nor JSON with a host"),
        ("secretsmanager:wrong#url", "the secret wrong has no member url"),
        (
            "postgresql://loader@h/db?password_from=secretsmanager:wrong",
            "the secret secretsmanager:wrong has no password in it",
        ),
        ("postgresql://loader@h/db?password_from=vault:x", "expected iam, secretsmanager:NAME or ssm:NAME"),
        ("postgresql://loader@h/db?password_from=iam", "add sslmode=verify-full and sslrootcert"),
        ("postgresql://h/db?password_from=iam&sslmode=require", "needs one host and a role"),
    ],
)
def test_a_secret_that_cannot_be_had_is_one_line_at_once(url: str, words: str) -> None:
    session: Any = boto3.Session()
    client = session.client("secretsmanager")
    if not any(each["Name"] == "wrong" for each in client.list_secrets()["SecretList"]):
        keep("secretsmanager", "wrong", json.dumps({"pin": SECRET}))
    began = time.monotonic()
    with (
        pytest.raises(DatabaseError) as caught,
        Session(url, DatabaseSettings(retry_seconds=60)) as session_of_url,
    ):
        session_of_url.persistently(lambda _: None)
    assert words in str(caught.value)
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 30
    assert caught.value.__cause__ is None


def test_a_service_that_does_not_answer_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    told: list[str] = []
    with (
        pytest.raises(DatabaseError, match=r"Secrets Manager cannot be reached for x.*gave up after"),
        Session("secretsmanager:x", DatabaseSettings(retry_seconds=3), told.append) as session,
    ):
        session.persistently(lambda _: None)
    assert told


# -- tokens of IAM --------------------------------------------------------------------------------------


class Door(socketserver.ThreadingTCPServer):
    """TLS and a token, as RDS demands them, in front of a server that asks for nothing.

    It asks for the password in clear text, within TLS, and takes only one that is a request signed a moment ago, for this
    address and role, and was never shown before: as if 15 minutes were over each time.
    """

    daemon_threads = True

    def __init__(self, server: str, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Guard)
        self.socket_path = server
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(folder / "host.crt", folder / "host.key")
        self.tokens: list[str] = []


class Guard(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        door = self.server
        assert isinstance(door, Door)
        assert self.request.recv(8, socket.MSG_WAITALL) == SSL_REQUEST
        self.request.sendall(b"S")
        try:
            client = door.context.wrap_socket(self.request, server_side=True)
        except (ssl.SSLError, OSError):
            return
        with client, socket.socket(socket.AF_UNIX) as server:
            startup = message(client, 0)
            client.sendall(b"R" + struct.pack(">ii", 8, 3))  # AuthenticationCleartextPassword
            password = message(client, 1)[5:-1].decode()
            if self.refuses(door, password):
                error = b'SFATAL\0VFATAL\0C28P01\0Mpassword authentication failed for user "loader"\0\0'
                client.sendall(b"E" + struct.pack(">i", len(error) + 4) + error)
                return
            server.connect(door.socket_path)
            server.sendall(startup)
            TlsConnection.pass_on(client, server)

    @staticmethod
    def refuses(door: Door, password: str) -> bool:
        parts = urlsplit(f"https://{password}")
        given = {name: values[0] for name, values in parse_qs(parts.query).items()}
        known = password in door.tokens
        door.tokens.append(password)
        signed = datetime.strptime(given.get("X-Amz-Date", "19700101T000000Z"), "%Y%m%dT%H%M%SZ")
        age = datetime.now(timezone.utc) - signed.replace(tzinfo=timezone.utc)
        return (
            known
            or parts.netloc != f"localhost:{door.server_address[1]}"
            or (given.get("Action"), given.get("DBUser"), given.get("X-Amz-Expires"))
            != ("connect", "loader", "900")
            or "/eu-central-1/rds-db/aws4_request" not in given.get("X-Amz-Credential", "")
            or abs(age.total_seconds()) > 60
        )


def message(client: ssl.SSLSocket, head: int) -> bytes:
    """Read a message of the protocol: its type, if it has one, its length, and the rest."""
    data = b""
    while len(data) < head + 4 or len(data) < head + struct.unpack(">i", data[head : head + 4])[0]:
        some = client.recv(1 if len(data) < head + 4 else 4096)
        assert some
        data += some
    return data


@pytest.fixture
def door(guarded: EmbeddedPostgres, certificates: Path) -> Iterator[Door]:
    (guarded.data_dir / "pg_hba.conf").write_text("local all all trust\n")
    execute(guarded.url, "SELECT pg_reload_conf()")
    with Door(socket_of(guarded), certificates) as door:
        threading.Thread(target=door.serve_forever, daemon=True).start()
        yield door
        door.shutdown()
    (guarded.data_dir / "pg_hba.conf").write_text("local all loader scram-sha-256\nlocal all all trust\n")
    execute(guarded.url, "SELECT pg_reload_conf()")


def test_each_connection_has_a_token_of_its_own(
    guarded: EmbeddedPostgres, door: Door, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    port = door.server_address[1]
    url = f"postgresql://loader@localhost:{port}/postgres?password_from=iam&sslmode=verify-full&sslrootcert={certificates / 'right.crt'}"
    told: list[str] = []
    with Session(url, DatabaseSettings(retry_seconds=30), told.append) as session:
        ask = lambda cursor: cursor.execute("SELECT 1")  # noqa: E731
        session.persistently(ask)
        time.sleep(1.1)  # tokens of one second are the same
        execute(
            guarded.url, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'loader'"
        )
        session.persistently(ask)
    assert len(door.tokens) == len(set(door.tokens)) == 2
    assert len(told) == 1
    assert "X-Amz" not in told[0]


def test_a_token_that_is_refused_is_not_told(
    door: Door, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")  # not the server's
    port = door.server_address[1]
    url = f"postgresql://loader@localhost:{port}/postgres?password_from=iam&sslmode=verify-full&sslrootcert={certificates / 'right.crt'}"
    with pytest.raises(DatabaseError) as caught, closing(connect(url)):
        pass
    assert "the server refused the role (database postgres at localhost:" in str(caught.value)
    assert " as loader)" in str(caught.value)
    assert "X-Amz" not in str(caught.value)
    assert door.tokens


def test_the_region_is_that_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    from migration_pipeline.targets.secrets import resolve

    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    _, ours = resolve(
        "postgresql://loader@shop.cluster-abc.eu-central-1.rds.amazonaws.com/shop?password_from=iam&sslmode=verify-full"
    )
    assert ours["password"].startswith(
        "shop.cluster-abc.eu-central-1.rds.amazonaws.com:5432/?Action=connect&DBUser=loader"
    )
    assert quote("/eu-central-1/rds-db/aws4_request", "") in ours["password"]
