"""A headless Chromium, where the machine has one: it is never downloaded.

``CHROMIUM`` names its program, if it is none of the usual. ``REQUIRE_BROWSER=1`` turns the skip into a failure, as
`.ci/run` wants it. ``SCREENSHOTS=folder`` keeps a picture of each step that shows something:
``SCREENSHOTS=docs/images`` makes those of the documents anew.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import FloatRect, Page, expect, sync_playwright

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

QUIET = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
"""Chromium talks to nobody but the page."""

SLOWNESS_MS = 60_000

WIDTH, HEIGHT = 1400, 900

Picture = Callable[[str, int], None]


@pytest.fixture(scope="session")
def chromium() -> str:
    """The program's path; without one the tests are skipped, or fail where a browser is required."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if found is None:
        reason = "no Chromium here: install one (Debian's package is called chromium), or name it in CHROMIUM"
        if os.environ.get("REQUIRE_BROWSER"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


@pytest.fixture(scope="module")
def page(chromium: str) -> Iterator[Page]:
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # it does not work as root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, headless=True, args=[*QUIET, *sandbox])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.set_default_timeout(SLOWNESS_MS)
        expect.set_options(timeout=SLOWNESS_MS)
        yield page
        browser.close()


@pytest.fixture(scope="module")
def picture(page: Page) -> Picture:
    """Keep a picture of the page's upper part, so many pixels high, under a name; do nothing without ``SCREENSHOTS``."""
    folder = os.environ.get("SCREENSHOTS")

    def keep(name: str, height: int) -> None:
        if folder:
            page.wait_for_timeout(1_000)  # until what moves has come to rest
            part: FloatRect = {"x": 0, "y": 0, "width": WIDTH, "height": height}
            page.screenshot(path=Path(folder) / f"{name}.png", clip=part)

    return keep
