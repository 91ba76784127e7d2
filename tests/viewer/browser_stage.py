"""A Chromium of this machine, and the viewer's process for it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextmanager
def viewing(*paths: Path | str, cache: Path | None = None) -> Iterator[str]:
    """`gym-bridge view` of these, and its address."""
    command = [sys.executable, "-m", "gym_bridge", "view", *map(str, paths), "--port", "0", "--quiet", "--json"]
    environ = os.environ | ({"GYM_BRIDGE_CACHE": str(cache)} if cache else {})
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as process:
        try:
            assert process.stdout is not None
            told = "".join(iter(process.stdout.readline, "}\n")) + "}"
            yield json.loads(told)["url"].rstrip("/")
        finally:
            process.terminate()
            process.wait()


def expect(locator: Any) -> Any:
    """Playwright's assertions, which wait."""
    from playwright.sync_api import expect as asserted

    return asserted(locator, "within 15 s")


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless Chromium; skips where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine: make browser")
    with sync_api.sync_playwright() as playwright:
        sync_api.expect.set_options(timeout=15_000)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()
