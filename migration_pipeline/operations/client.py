"""Talks to a running Dagster by GraphQL, with the same calls as its UI."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import msgspec
import requests

from migration_pipeline.errors import MigrationError
from migration_pipeline.migration.names import EXPORT, PLAN_DIGEST, UNLOADABLE, table_keys
from migration_pipeline.migration.plan import Plan
from migration_pipeline.profile.profile import Profile

TIMEOUT_SECONDS = 60
ANSWER_SECONDS = 10
"""How long to wait for a webserver's first answer."""
DAEMON_CATCHES_UP_SECONDS = 5
"""Age of the code before a launch: with younger one the daemon may still have the old, and fail for partitions that "no
longer" exist."""
DAEMON_READS_ALL_SECONDS = 75
"""Age of the code that the daemon should have: it reads all code anew once a minute, and looks every five seconds whether
to. What is loaded just while it does that it overlooks until the next time, and what a server with a fixed id loads, too
(``findings/dagster-puts-old-code-back.sh``)."""
KEPT_SECONDS = 3.0
"""How long after an answer its connection is used again. The webserver closes one that nobody uses for five seconds, without
a word: a question that is sent at that moment has no answer, and who asks every few seconds would meet it."""

CHECK_URL = "check MIGRATION_DAGSTER_URL"

HTTP_ERRORS = {
    401: "it requires a login; put user and password into MIGRATION_DAGSTER_URL (https://user:password@host), or a line "
    "into ~/.netrc",
    403: "this user has no access; ask its administrator",
    404: f"a web server answers, but there is no Dagster at this path; {CHECK_URL}, with the path prefix of dagster-webserver",
    502: "a proxy answers, but cannot reach Dagster behind it; check that dagster-webserver runs",
    503: "a proxy answers, but Dagster behind it accepts no requests; check that dagster-webserver runs",
    504: "a proxy answers, but Dagster behind it did not respond in time; try again",
}
"""HTTP status → what it means when the answer is not Dagster's, and what to do."""


class DagsterClientError(MigrationError):
    """Dagster cannot be reached, or refused a call."""


class DagsterAwayError(DagsterClientError):
    """Dagster does not answer, or has no code now; both may be over in a moment."""


class DagsterClient:
    """A running Dagster webserver. Raises `DagsterClientError` with the way out when it does not answer."""

    def __init__(self, url: str, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._address = url.rstrip("/")
        parts = urlsplit(self._address)
        self.url = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        """To show: without user and password."""
        self._timeout = timeout_seconds
        self._used = 0.0
        self._session = requests.Session()
        # A proxy of the environment is not for this machine.
        self._session.trust_env = urlsplit(self.url).hostname not in ("127.0.0.1", "localhost", "::1")

    def query(self, text: str, **variables: Any) -> dict[str, Any]:
        """Run a GraphQL query or mutation; returns its `data`."""
        response = self._post("/graphql", {"query": text, "variables": variables})
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if isinstance(answer, dict) and answer.get("errors"):
            raise DagsterClientError(f"Dagster at {self.url} refused: {answer['errors'][0]['message']}")
        if not response.ok:
            raise self._refused(response)
        if not isinstance(answer, dict) or "data" not in answer:
            raise DagsterClientError(f"{self.url} answers, but it is not Dagster; {CHECK_URL}")
        data: dict[str, Any] = answer["data"]
        return data

    def report_materialization(
        self, key: Sequence[str], partition: str | None, metadata: Mapping[str, Any], description: str
    ) -> None:
        """Record a materialization that belongs to no run.

        By the webserver's REST call for external assets: the GraphQL mutation for it takes no metadata.
        """
        event = {"asset_key": list(key), "metadata": dict(metadata), "description": description}
        if partition is not None:
            event["partition"] = partition
        response = self._post("/report_asset_materialization/", event)
        if not response.ok:
            raise self._refused(response)

    def answers(self) -> bool:
        """Whether a Dagster answers, and not another server or nothing."""
        try:
            info = self._session.get(f"{self._address}/server_info", timeout=ANSWER_SECONDS).json()
        except (requests.RequestException, ValueError):
            return False
        return isinstance(info, dict) and "dagster_webserver_version" in info

    def load_plan(
        self, plan: Plan, profile: Profile, *, changed: bool = False, for_launch: bool = True
    ) -> None:
        """Make sure Dagster knows the plan, its options included, reloading its code if it does not.

        One that has `changed` just now is reloaded without a look. `for_launch`, the daemon must know it, too. Raises
        `DagsterClientError` when Dagster still does not know it: the code location fails, or reads other plans.
        """
        if changed or not self.knows(plan, profile):
            self._reload(plan, profile)
        if for_launch:
            self.await_daemon(DAEMON_CATCHES_UP_SECONDS)

    def _reload(self, plan: Plan, profile: Profile) -> None:
        for location in self._locations():
            self.query(RELOAD, name=location["name"])
        deadline = time.monotonic() + self._timeout
        while not self.knows(plan, profile):
            failure = self.location_error() or self._unloadable(plan)
            if failure or time.monotonic() > deadline:
                raise DagsterClientError(
                    f"Dagster at {self.url} does not know the plan of {plan.profile}: "
                    + (failure or "its code location reads other plans; check MIGRATION_PLANS there")
                )
            time.sleep(0.5)

    def await_daemon(self, age: float) -> None:
        """Wait until the webserver's code is so many seconds old: the daemon looks for new code, and cannot be asked for it."""
        loaded = max((location["updatedTimestamp"] for location in self._locations()), default=0.0)
        left = age - (time.time() - loaded)
        if left > 0:
            time.sleep(min(left, age))  # the server's clock may be ahead of this one

    def knows(self, plan: Plan, profile: Profile) -> bool:
        """Whether the plan that Dagster has loaded is this one, with an asset for each table of the profile."""
        keys = [*table_keys(profile), [plan.profile, EXPORT]]
        nodes = self.query(KNOWN, keys=[{"path": key} for key in keys])["assetNodes"]
        digests = [metadata_of(node).get(PLAN_DIGEST) for node in nodes]
        return len(nodes) == len(keys) and plan.digest in digests

    def _locations(self) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = self.query(LOCATIONS)["workspaceOrError"]["locationEntries"]
        return entries

    def location_error(self) -> str:
        """Why the code does not load, in a line; "" where it does."""
        loaded = (location["locationOrLoadError"] or {} for location in self._locations())
        return next((first_line(each) for each in loaded if each.get("__typename") == "PythonError"), "")

    def _unloadable(self, plan: Plan) -> str:
        """Why the plan does not load there, by the asset that tells it; "" where it does, or is not there."""
        nodes = self.query(DESCRIPTION, keys=[{"path": [plan.profile, UNLOADABLE]}])["assetNodes"]
        return next((node["description"].partition("\n\n")[0] for node in nodes), "")

    def _post(self, path: str, document: dict[str, Any]) -> requests.Response:
        if time.monotonic() - self._used > KEPT_SECONDS:
            self._session.close()
        try:
            return self._session.post(f"{self._address}{path}", json=document, timeout=self._timeout)
        except requests.Timeout:
            raise DagsterAwayError(
                f"Dagster at {self.url} did not answer within {self._timeout:g} s; it may be busy: try again, or check "
                "its log"
            ) from None
        except requests.exceptions.SSLError:
            raise DagsterClientError(
                f"the certificate of {self.url} is not trusted; set REQUESTS_CA_BUNDLE to a file with the certificate of its authority"
            ) from None
        except requests.RequestException:
            raise DagsterAwayError(
                f"no Dagster at {self.url}; start it with `migration-pipeline dev`, or set MIGRATION_DAGSTER_URL"
            ) from None
        finally:
            self._used = time.monotonic()

    def _refused(self, response: requests.Response) -> DagsterClientError:
        """Make the error for an answer that is not Dagster's, without its text, which may be a page."""
        meaning = HTTP_ERRORS.get(response.status_code, f"check the webserver's log, or {CHECK_URL}")
        kind = (
            DagsterAwayError
            if response.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR
            else DagsterClientError
        )
        return kind(f"{self.url} answers {response.status_code} {response.reason}: {meaning}")


def first_line(error: Mapping[str, Any]) -> str:
    """Return the first line of a GraphQL error's message."""
    return str(error.get("message") or "unknown error").strip().splitlines()[0]


def metadata_of(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return an event's metadata by label, of a query with `ENTRIES`; None for what is neither number, text nor JSON."""
    return {entry["label"]: _value(entry) for entry in event["metadataEntries"]}


def _value(entry: Mapping[str, Any]) -> Any:
    if entry.get("jsonString"):
        return msgspec.json.decode(entry["jsonString"])
    if entry.get("intRepr"):
        return int(entry["intRepr"])  # intValue is null beyond 32 bits
    return entry.get("floatValue", entry.get("text"))


ENTRIES = """
fragment Entries on MetadataEntry {
  label
  ... on IntMetadataEntry { intRepr }
  ... on FloatMetadataEntry { floatValue }
  ... on TextMetadataEntry { text }
  ... on JsonMetadataEntry { jsonString }
}"""

KNOWN = (
    """
query Known($keys: [AssetKeyInput!]!) {
  assetNodes(assetKeys: $keys) { metadataEntries { ...Entries } }
}"""
    + ENTRIES
)

DESCRIPTION = """
query Description($keys: [AssetKeyInput!]!) {
  assetNodes(assetKeys: $keys) { description }
}"""

LOCATIONS = """
query Locations {
  workspaceOrError {
    ... on Workspace {
      locationEntries { name updatedTimestamp locationOrLoadError { __typename ... on PythonError { message } } }
    }
  }
}"""

RELOAD = """
mutation Reload($name: String!) {
  reloadRepositoryLocation(repositoryLocationName: $name) { __typename }
}"""
