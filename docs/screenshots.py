"""Makes the pictures of the README: docs/images/*.png, in a Chromium, of a run with its rollouts.

python docs/screenshots.py RUN PLACE

RUN is a training with `trainer.record=true` and `algorithm.old_logprobs=trainer` whose rollouts have several turns.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

IMAGES = Path(__file__).parent / "images"
SIZE = {"width": 1240, "height": 720}


def main() -> None:
    """Write both pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("place", help="Line of a rollout in rollouts.jsonl, with tool calls.")
    asked = parser.parse_args()
    command = [sys.executable, "-m", "gym_bridge", "view", str(asked.run), "--port", "0", "--json"]
    IMAGES.mkdir(exist_ok=True)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process, sync_playwright() as playwright:
        assert process.stdout is not None
        url = json.loads("".join(iter(process.stdout.readline, "}\n")) + "}")["url"].rstrip("/")
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE, color_scheme="light")
        _groups(page, url)
        _tokens(browser.new_page(viewport=SIZE, color_scheme="dark"), url, asked.place)
        browser.close()
        process.terminate()


def _groups(page: Page, url: str) -> None:
    """The groups of the run, newest first."""
    page.goto(f"{url}/files/0/groups?group_sort=newest")
    page.locator("details.filter-box").evaluate("one => { one.open = false }")
    page.screenshot(path=IMAGES / "view_groups.png")


def _tokens(page: Page, url: str, place: str) -> None:
    """The tokens of a rollout, coloured by the log-probs of the sampler."""
    page.goto(f"{url}/files/0/rollouts/{place}/tokens?colour=logprob")
    page.locator(".tokens .h0").first.evaluate("one => window.scrollTo(0, one.getBoundingClientRect().top - 380)")
    page.screenshot(path=IMAGES / "view_tokens.png")


if __name__ == "__main__":
    main()
