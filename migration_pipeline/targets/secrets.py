"""Passwords that are not in the URL: tokens of IAM, and secrets that AWS keeps. Each is asked for when a connection is made.

What `MIGRATION_DATABASE_URL` may be, besides a libpq URL:

    secretsmanager:NAME      the secret of this name or ARN: a URL, or the JSON that RDS writes
    ssm:NAME                 the parameter of this name or ARN, likewise
    postgresql://…?password_from=secretsmanager:NAME, =ssm:NAME or =iam

`NAME#member` takes a member of a secret in JSON. A token of IAM holds for 15 minutes, and a secret may be rotated: so
nothing is kept, and a connection that is made anew has a password made anew.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import unquote

import msgspec
import psycopg2
from psycopg2.extensions import parse_dsn

PASSWORD_FROM = "password_from"  # noqa: S105  # the name of a parameter
IAM = "iam"

CONNECT_SECONDS, READ_SECONDS = 5, 10
"""Seconds that AWS may take to accept a connection, and to answer."""

ENCRYPTED = ("require", "verify-ca", "verify-full")

MEMBERS = {"host": "host", "port": "port", "dbname": "dbname", "database": "dbname", "username": "user", "user": "user", "password": "password"}  # fmt: skip
"""Members of a secret in JSON, as RDS names them, and libpq's names."""


class SecretError(psycopg2.OperationalError):
    """A password cannot be had. The text holds none."""

    def __init__(self, text: str, *, hopeless: bool = True) -> None:
        super().__init__(text)
        self.hopeless = hopeless
        """Whether waiting does not help."""


class Service(NamedTuple):
    """A service of AWS that keeps secrets."""

    client: str
    title: str
    action: str


SERVICES = {
    "secretsmanager": Service("secretsmanager", "Secrets Manager", "secretsmanager:GetSecretValue"),
    "ssm": Service("ssm", "SSM Parameter Store", "ssm:GetParameter"),
}

REFERENCE = re.compile(
    r"(?:(secretsmanager|ssm):(?=.)|(?=arn:[\w-]+:(secretsmanager|ssm):))([^#]+)(?:#(.+))?"
)


def is_reference(url: str) -> bool:
    """Tell whether the whole of a URL is the name of a secret."""
    return REFERENCE.fullmatch(url) is not None


def resolve(url: str) -> tuple[str, dict[str, str]]:
    """Return a URL that libpq takes, and parameters that go before those in it. Raises `SecretError`."""
    ours: dict[str, str] = {}
    if is_reference(url):
        url, ours = _whole(url)
    url, source = without_source(url)
    if source == IAM:
        ours["password"] = _token({**parse_dsn(url), **ours})
    elif source:
        if not is_reference(source):
            raise SecretError(f"{PASSWORD_FROM}: expected iam, secretsmanager:NAME or ssm:NAME")
        text = _secret(source)
        found = _members(text)
        if found is None:
            found = {"password": text}
        if "password" not in found:
            raise SecretError(f"the secret {_name(source)} has no password in it")
        ours |= {name: found[name] for name in ("user", "password") if name in found}
    return url, ours


def _whole(reference: str) -> tuple[str, dict[str, str]]:
    """Read the secret that stands for the whole URL."""
    text = _secret(reference).strip()
    if re.match(r"postgres(ql)?://", text):
        return text, {}
    found = _members(text)
    if not found or "host" not in found:
        raise SecretError(
            f"the secret {_name(reference)} is neither a URL (postgresql://…) nor JSON with a host; if it has only user and "
            f"password, write postgresql://HOST/DATABASE?{PASSWORD_FROM}={reference.partition('#')[0]}"
        )
    return "postgresql://", found


def without_source(url: str) -> tuple[str, str]:
    """Split our parameter off a URL, as libpq would refuse it: returns the rest, and its value or ""."""
    address, mark, query = url.partition("?")
    parameters = query.split("&") if mark else []
    ours = [each for each in parameters if each.startswith(f"{PASSWORD_FROM}=")]
    others = [each for each in parameters if each not in ours]
    source = unquote(ours[-1].partition("=")[2]) if ours else ""
    return address + ("?" + "&".join(others) if others else ""), source


def _members(text: str) -> dict[str, str] | None:
    """Return libpq's parameters in a secret in JSON; None if it is another text."""
    try:
        document = msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return {MEMBERS[name]: str(value) for name, value in document.items() if name in MEMBERS and value}


def _name(reference: str) -> str:
    return reference.partition("#")[0]


def _secret(reference: str) -> str:
    """Ask AWS for a secret. Raises `SecretError`."""
    found = REFERENCE.fullmatch(reference)
    assert found  # noqa: S101
    service, name, member = SERVICES[found[1] or found[2]], found[3], found[4]
    region = name.split(":")[3] if name.startswith("arn:") else None
    with _explained(service, name):
        client = _client(service.client, region)
        if service.client == "ssm":
            # A parameter of another account has only its ARN; its own are known by both.
            text = client.get_parameter(Name=name, WithDecryption=True)["Parameter"]["Value"]
        else:
            text = client.get_secret_value(SecretId=name).get("SecretString")
    if text is None:
        raise SecretError(f"the secret {name} is binary; store a text")
    if member is None:
        return str(text)
    try:
        return str(msgspec.json.decode(text, type=dict[str, Any])[member])
    except (msgspec.MsgspecError, KeyError):
        raise SecretError(f"the secret {name} has no member {member}") from None


def _token(parameters: dict[str, str]) -> str:
    """Make a token that is a password for 15 minutes: signed on this machine, so AWS is not asked."""
    host, port, user, mode = (
        parameters.get(name) or os.environ.get(variable, "")
        for name, variable in (("host", "PGHOST"), ("port", "PGPORT"), ("user", "PGUSER"), ("sslmode", "PGSSLMODE"))
    )  # fmt: skip
    if not host or not user or "," in host:
        raise SecretError(
            f"{PASSWORD_FROM}=iam needs one host and a role in the URL: postgresql://ROLE@HOST/DATABASE"
        )
    if mode not in ENCRYPTED:
        raise SecretError(f"{PASSWORD_FROM}=iam sends a token as the password: add sslmode=verify-full and sslrootcert to the URL")  # fmt: skip
    named = re.search(r"\.([a-z]{2}(?:-[a-z]+)+-\d+)\.rds\.amazonaws\.com(?:\.cn)?$", host)
    with _explained(Service("rds", "IAM", "rds-db:connect"), host):
        client = _client("rds", named[1] if named else None)
        return str(client.generate_db_auth_token(DBHostname=host, Port=int(port or 5432), DBUsername=user))


def _client(service: str, region: str | None) -> Any:
    import boto3  # a quarter of a second, which those without a secret need not wait
    from botocore.config import Config

    config = Config(
        connect_timeout=CONNECT_SECONDS, read_timeout=READ_SECONDS, retries={"total_max_attempts": 2}
    )
    session: Any = boto3.Session()
    # ECS and Lambda set the second name, which boto3 does not read.
    region = region or session.region_name or os.environ.get("AWS_REGION")
    return session.client(service, region_name=region, config=config)


@contextmanager
def _explained(service: Service, name: str) -> Iterator[None]:
    """Turn boto3's errors into one line that says what to do."""
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        NoCredentialsError,
        NoRegionError,
        PartialCredentialsError,
    )

    try:
        yield
    except (NoCredentialsError, PartialCredentialsError):
        raise SecretError(
            f"{service.title}, {name}: no AWS credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        ) from None
    except NoRegionError:
        raise SecretError(f"{service.title}, {name}: no region; set AWS_DEFAULT_REGION") from None
    except ClientError as error:
        raise _refusal(service, name, error.response.get("Error", {})) from None
    except BotoCoreError as error:
        reason = str(error).splitlines()[0]
        raise SecretError(f"{service.title} cannot be reached for {name}: {reason}", hopeless=False) from None


def _refusal(service: Service, name: str, error: Mapping[str, Any]) -> SecretError:
    code, message = error.get("Code", ""), error.get("Message", "")
    where = f"{service.title}, {name}"
    if code in ("ResourceNotFoundException", "ParameterNotFound"):
        return SecretError(f"{where}: there is no such secret; check its name, region and account")
    if "kms:" in message.lower() or code == "DecryptionFailure":
        return SecretError(f"{where}: KMS refused its key; the role needs kms:Decrypt on it")
    if "AccessDenied" in code:
        return SecretError(f"{where}: access denied; the role needs {service.action} on it")
    if code in ("UnrecognizedClientException", "InvalidClientTokenId", "ExpiredTokenException", "InvalidSignatureException"):  # fmt: skip
        return SecretError(f"{where}: AWS refused the credentials ({code}); renew them")
    # Throttling, and faults of the service: they pass.
    passing = "Throttl" in code or code.startswith(("Internal", "ServiceUnavailable"))
    return SecretError(f"{where}: AWS answered {code or 'with an error'}", hopeless=not passing)
