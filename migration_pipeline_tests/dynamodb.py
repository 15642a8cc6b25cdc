"""The DynamoDB of the tests: moto's server, and before it what moto lacks of exports.

moto takes every window and forgets its times, knows no ClientToken, covers no time by point in time recovery but the moment when it
was turned on, names exports by the ARN of an import, and writes neither a manifest nor records
(findings/moto-incremental-export-is-full.sh). So this server speaks the same protocol, has moto answer, and amends the answers. It
checks windows as DynamoDB does. What DynamoDB itself refuses beyond that, and how long it takes, no test here can show.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import requests

from migration_pipeline_tests.s3 import s3_server

Answer = dict[str, Any]


class Refusal(Exception):
    """An error, as DynamoDB answers it."""

    def __init__(self, code: str, message: str = "") -> None:
        super().__init__(message)
        self.code = code


class DynamoDB:
    """A server before moto's. Its attributes are read at each call, so that tests set them when they like."""

    def __init__(self, moto: str) -> None:
        self._moto = moto
        self.recovery: tuple[datetime, datetime] | None = None
        """Earliest and latest time that can be exported; moto's own if None."""
        self.asked: list[Answer] = []
        """Each request for an export, as it came."""
        self.exports: dict[str, Answer] = {}
        """What DynamoDB says of each export, by ARN."""
        self.tokens: dict[str, str] = {}
        """ClientToken -> ARN. Clear it, and eight hours are over."""
        self.pending = 0
        """How often an export is described as in progress first."""
        self.refused: dict[str, str] = {}
        """Operations that are refused, and with which code."""
        self.fails: tuple[str, str] | None = None
        """Code and text with which exports fail."""
        self.write: Callable[[Answer], None] = lambda _: None
        """Called with each new export, to write it."""
        self.table_id = ""
        self._left: dict[str, int] = {}

    def answer(self, operation: str, body: Answer, headers: dict[str, str]) -> Answer:
        if operation in self.refused:
            raise Refusal(self.refused[operation], f"not authorized to perform: dynamodb:{operation}")
        own = getattr(self, f"_{operation}", None)
        answer: Answer = own(body, headers) if own else self._ask_moto(operation, body, headers)
        if operation == "DescribeTable" and self.table_id:
            answer["Table"]["TableId"] = self.table_id
        return answer

    def _ask_moto(self, operation: str, body: Answer, headers: dict[str, str]) -> Answer:
        headers = headers | {"X-Amz-Target": f"DynamoDB_20120810.{operation}"}
        reply = requests.post(self._moto, json.dumps(body).encode(), headers=headers, timeout=30)
        answer: Answer = reply.json()
        if not reply.ok:
            raise Refusal(
                str(answer["__type"]).rpartition("#")[2], str(answer.get("message") or answer.get("Message"))
            )
        return answer

    def _DescribeContinuousBackups(self, body: Answer, headers: dict[str, str]) -> Answer:
        answer = self._ask_moto("DescribeContinuousBackups", body, headers)
        found = answer["ContinuousBackupsDescription"]["PointInTimeRecoveryDescription"]
        if self.recovery and found["PointInTimeRecoveryStatus"] == "ENABLED":
            earliest, latest = (each.timestamp() for each in self.recovery)
            found |= {"EarliestRestorableDateTime": earliest, "LatestRestorableDateTime": latest}
        return answer

    def _ExportTableToPointInTime(self, body: Answer, headers: dict[str, str]) -> Answer:
        self.asked.append(body)
        token = body["ClientToken"]
        if token in self.tokens:
            return {"ExportDescription": self.exports[self.tokens[token]]}
        if window := body.get("IncrementalExportSpecification"):
            self._check(window)
        # Of moto: whether there is such a table, and its recovery is on.
        self._ask_moto("ExportTableToPointInTime", {"S3Prefix": ""} | body, headers)
        now = time.time()
        arn = f"{body['TableArn']}/export/{int(now * 1000):014}-{uuid.uuid4().hex[:8]}"
        self.exports[arn] = found = {
            **body, "ExportArn": arn, "ExportStatus": "IN_PROGRESS", "StartTime": now, "ItemCount": 0
        }  # fmt: skip
        self.tokens[token] = arn
        self._left[arn] = self.pending
        if self.fails is None:
            self.write(found)
        return {"ExportDescription": dict(found)}

    def _check(self, window: Answer) -> None:
        start, end = window["ExportFromTime"], window["ExportToTime"]
        if start != int(start) or end != int(end) or not 900 <= end - start <= 86_400:
            raise Refusal("ValidationException", "the window is too short or too long")
        if self.recovery and not (
            int(self.recovery[0].timestamp()) <= start and end <= self.recovery[1].timestamp()
        ):
            raise Refusal("InvalidExportTimeException", "outside of the point in time recovery window")

    def _DescribeExport(self, body: Answer, _: dict[str, str]) -> Answer:
        found = self.exports[body["ExportArn"]]
        if found["ExportStatus"] == "IN_PROGRESS":
            if self._left[body["ExportArn"]] > 0:
                self._left[body["ExportArn"]] -= 1
            elif self.fails:
                code, text = self.fails
                found |= {"ExportStatus": "FAILED", "FailureCode": code, "FailureMessage": text}
            else:
                found["ExportStatus"] = "COMPLETED"
        return {"ExportDescription": found}

    def _ListExports(self, body: Answer, _: dict[str, str]) -> Answer:
        """One a page, in no order of time: nothing is said of it."""
        arns = sorted(self.exports, key=lambda arn: arn[::-1])
        place = int(body.get("NextToken", 0))
        shown = [
            {name: self.exports[arn].get(name) for name in ("ExportArn", "ExportStatus", "ExportType")}
            for arn in arns[place : place + 1]
        ]
        more = {"NextToken": str(place + 1)} if place + 1 < len(arns) else {}
        return {"ExportSummaries": shown, **more}


@contextmanager
def dynamodb_server(moto: str) -> Iterator[tuple[DynamoDB, str]]:
    """Run a server before moto's, at its address; gives it, and its own address."""
    dynamodb = DynamoDB(moto)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            operation = self.headers["X-Amz-Target"].rpartition(".")[2]
            kept = ("Authorization", "Content-Type", "X-Amz-Date")
            try:
                status, answer = 200, dynamodb.answer(
                    operation, body, {name: self.headers[name] for name in kept if name in self.headers}
                )  # fmt: skip
            except Refusal as error:
                status = 400
                answer = {"__type": f"com.amazonaws.dynamodb.v20120810#{error.code}", "message": str(error)}
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/x-amz-json-1.0")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield dynamodb, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def aws_server() -> Iterator[tuple[DynamoDB, dict[str, str]]]:
    """Run S3 and DynamoDB; gives the latter, and the environment in which everything finds both."""
    with s3_server() as environment, dynamodb_server(environment["AWS_ENDPOINT_URL_S3"]) as (dynamodb, url):
        yield dynamodb, environment | {"AWS_ENDPOINT_URL_DYNAMODB": url}


def create_table(client: Any, name: str, *, recovery: bool = True) -> str:
    """Create a table, with its point in time recovery on; gives its ARN."""
    made = client.create_table(
        TableName=name,
        KeySchema=[{"AttributeName": "PK", "KeyType": "HASH"}, {"AttributeName": "SK", "KeyType": "RANGE"}],
        AttributeDefinitions=[{"AttributeName": each, "AttributeType": "S"} for each in ("PK", "SK")],
        BillingMode="PAY_PER_REQUEST",
    )
    if recovery:
        client.update_continuous_backups(
            TableName=name, PointInTimeRecoverySpecification={"PointInTimeRecoveryEnabled": True}
        )
    return str(made["TableDescription"]["TableArn"])
