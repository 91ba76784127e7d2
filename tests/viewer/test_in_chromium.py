"""The page as a reader has it: in a real Chromium, by mouse and by keys, while files grow, with text that would like to run."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gym_bridge.io.token_store import TokenStore
from tests.viewer.browser_stage import chromium, expect, viewing
from tests.viewer.stage import append, failure, row, said, write
from tests.viewer.test_application import HOSTILE, stage
from tests.viewer.test_tokens import TURNS
from tests.viewer.test_tokens import stage as token_stage

pytestmark = pytest.mark.browser

HOSTILE_TEXTS = (
    HOSTILE,
    "\x1b[31mred\x1b[0m \x1b]8;;http://evil.example\x07link\x1b]8;;\x07",
    "user \u202e gnihtemos \u2066 else \u200b",
    "{{ 7*7 }} ${7*7} <svg/onload=document.title='run'>",
    "javascript:document.title='run'",
    "\ud83d lone",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture
def reader(browser: Any) -> Iterator[Any]:
    """A page of a browser, whose errors fail the test and which may ask this machine alone."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on(
        "request", lambda asked: wrong.append(asked.url) if "://127.0.0.1:" not in asked.url and "file:" not in asked.url else None
    )
    page.set_default_timeout(15_000)
    yield page
    context.close()
    assert [one for one in wrong if not one.startswith(("data:", "Failed to load resource"))] == []


def texts(page: Any, selector: str) -> list[str]:
    return [one.strip() for one in page.locator(selector).all_inner_texts()]


def test_from_all_runs_to_one_rollout_by_clicks(reader: Any, tmp_path: Path):
    with viewing(stage(tmp_path)) as url:
        reader.goto(url)
        assert reader.title() == "Runs and rollouts · gym-bridge"
        reader.get_by_role("link", name="run", exact=True).click()
        reader.wait_for_url("**/runs?run=0")
        assert reader.locator("figure.card svg path.line").count() >= 2
        assert "reward" in texts(reader, "figure h2")[0]
        reader.click("text=1 more numbers")
        assert reader.locator("h2.section", has_text="Details").count() == 1
        reader.click("text=rollouts.jsonl")
        assert texts(reader, "tbody td.name") == ["0-0", "0-1", "1-0", "1-1", "2-0", "2-1"]
        reader.click("text=Groups")
        assert texts(reader, "tr.dead td:first-child") == ["task 1", "task 2"]
        reader.click("a.open >> text=task 0")
        assert reader.locator("h1").inner_text() == "task 0, policy version 0"
        reader.click("a.open >> text=0-0")
        kinds = [one.get_attribute("class") for one in reader.locator("li.entry").all()]
        assert kinds == ["entry user", "entry call", "entry output failed", "entry assistant"]
        reader.keyboard.press("r")
        reader.get_by_role("link", name="Failures").click()
        shares = [float(one.removesuffix(" %")) for one in texts(reader, "tbody tr:not(.total) td:nth-child(3)")[:2]]
        assert sum(shares) == pytest.approx(100)


def test_filters_leave_what_they_say(reader: Any, tmp_path: Path):
    with viewing(stage(tmp_path)) as url:
        for fill, expected in (
            ({"text": "it is"}, ["0-0"]),
            ({"reward_min": "0.5", "reward_max": "0.5"}, ["1-0", "1-1"]),
            ({"turns_min": "2"}, ["0-0"]),
            ({"where": "num_tool_calls > 0"}, ["0-0"]),
            ({"where_group": "0 < pass_rate < 1"}, ["0-0", "0-1"]),
        ):
            reader.goto(f"{url}/files/0")
            for name, value in fill.items():
                reader.fill(f"[name={name}]", value)
            reader.get_by_role("button", name="Show").click()
            assert texts(reader, "tbody td.name") == expected, fill
        for name, value, expected in (
            ("outcome", "failed", ["2-1"]),
            ("failure", "model_error", ["2-1"]),
            ("stop", "answered", ["0-0", "0-1", "1-0", "1-1", "2-0"]),
            ("tool", "search", ["0-0"]),
            ("version", "1", ["2-0", "2-1"]),
            ("sort", "worst", ["0-1", "1-0", "1-1", "0-0", "2-0", "2-1"]),
        ):
            reader.goto(f"{url}/files/0")
            reader.select_option(f"form.filter [name={name}]", value)
            reader.get_by_role("button", name="Show").click()
            assert texts(reader, "tbody td.name") == expected, name
        reader.fill("[name=where]", "rewrd < 1")
        reader.get_by_role("button", name="Show").click()
        assert "did you mean 'reward'" in reader.locator(".alert").inner_text()


def test_two_attempts_stand_side_by_side_and_two_versions_task_by_task(reader: Any, tmp_path: Path):
    run = stage(tmp_path)
    write(run / "later.jsonl", row(0, 0, 1.0, "later"), row(1, 0, 0.0, "worse"))
    with viewing(run) as url:
        reader.goto(f"{url}/files/1")
        reader.check("tbody tr:nth-child(1) input")
        reader.check("tbody tr:nth-child(2) input")
        reader.get_by_role("button", name="Compare two ticked rollouts").click()
        assert reader.locator(".sides section").count() == 2
        assert "Both were asked the same" in reader.inner_text("main")
        sides = texts(reader, ".sides section")
        assert ("it is 4" in sides[0], "it is 4" in sides[1]) == (True, False)
        reader.goto(url)
        reader.locator("tr", has_text="run/later.jsonl").locator("input").check()
        reader.locator("tr", has_text="run/rollouts.jsonl").locator("input").check()
        reader.get_by_role("button", name="Compare the two ticked files").click()
        assert texts(reader, "tbody tr td:nth-child(4)") == ["-0.5", "+0.5"]
        reader.select_option("select[name=side] >> nth=0", "1@0")
        reader.select_option("select[name=side] >> nth=1", "1@1")
        reader.get_by_role("button", name="Compare", exact=True).click()
        assert "No task has a reward on both sides" in reader.inner_text("main")


def test_keys_do_what_the_mouse_does(reader: Any, tmp_path: Path):
    with viewing(stage(tmp_path)) as url:
        reader.goto(f"{url}/files/0")
        for key in ("j", "j", "k", "x", "j", "x"):
            reader.keyboard.press(key)
        assert reader.locator("tbody input:checked").count() == 2
        reader.keyboard.press("c")
        reader.wait_for_url("**/compare?**")
        reader.keyboard.press("r")
        reader.wait_for_url("**/files/0")
        reader.keyboard.press("j")
        reader.keyboard.press("Enter")
        reader.wait_for_url("**/rollouts/1")
        reader.keyboard.press("n")
        reader.wait_for_url("**/rollouts/2")
        reader.keyboard.press("[")
        reader.wait_for_url("**/rollouts/1")
        reader.keyboard.press("u")
        reader.wait_for_url("**/groups/1")
        reader.keyboard.press("f")
        reader.wait_for_url("**/failures")
        reader.keyboard.press("r")
        reader.wait_for_url("**/files/0")
        reader.keyboard.press("/")
        reader.keyboard.type("j it is")
        reader.keyboard.press("Enter")
        reader.wait_for_url("**text=j+it+is**")
        assert reader.locator(".empty").count() == 1
        reader.keyboard.press("?")
        assert reader.locator("dialog[open]").count() == 1
        reader.keyboard.press("Escape")
        reader.keyboard.press("h")
        reader.wait_for_url(f"{url}/")


def test_the_page_follows_a_file_that_grows_and_leaves_a_busy_reader_alone(reader: Any, tmp_path: Path):
    path = write(tmp_path / "R.jsonl", row(0, 0))
    with viewing(path) as url:
        reader.goto(f"{url}/files/0")
        assert texts(reader, "tbody td.name") == ["0-0"]
        line = json.dumps(row(0, 1, 0.0)).encode() + b"\n"
        append(path, line[:40])
        append(path, line[40:], row(0, 2, 0.5))
        expect(reader.locator("#main tbody tr")).to_have_count(3)
        reader.check("tbody tr:nth-child(1) input")
        append(path, row(1, 0))
        expect(reader.locator("#live")).to_contain_text("there is more")
        assert reader.locator("#main tbody tr").count() == 3
        reader.uncheck("tbody tr:nth-child(1) input")
        expect(reader.locator("#main tbody tr")).to_have_count(4)
        reader.select_option("[name=to]", "dpo")
        reader.locator("h1").click()
        append(path, row(1, 1))
        expect(reader.locator("#live")).to_contain_text("there is more")
        assert reader.locator("[name=to]").input_value() == "dpo"
        reader.select_option("[name=to]", "sft")
        reader.locator("h1").click()
        expect(reader.locator("#main tbody tr")).to_have_count(5)
    expect(reader.locator("#live")).to_contain_text("has ended")


def test_nothing_that_a_model_writes_runs_or_hides(reader: Any, tmp_path: Path):
    rows = [row(number, 0, 1.0, said(text), prompt=text, stop_reason=text) for number, text in enumerate(HOSTILE_TEXTS)]
    path = write(tmp_path / "R.jsonl", *rows)
    write(tmp_path / "R_failures.jsonl", failure(99, 0, HOSTILE, HOSTILE))
    with viewing(path) as url:
        for address in ("", "/files/0", "/files/0/groups", "/files/0/failures", "/compare?a=0:1&b=0:2"):
            reader.goto(url + address)
            assert reader.title() != "run"
            assert reader.locator("main script, main img, main svg[onload], main iframe").count() == 0
        reader.goto(f"{url}/files/0/rollouts/{len(HOSTILE_TEXTS)}")
        assert "This line cannot be read" in reader.inner_text(".alert")  # a lone surrogate is no JSON
        for number, text in enumerate(HOSTILE_TEXTS[:-1], 1):
            reader.goto(f"{url}/files/0/rollouts/{number}")
            found = reader.locator("li.entry.assistant pre").text_content()
            assert reader.title() != "run"
            assert found is not None
            assert text.translate(dict.fromkeys(map(ord, "\x1b\x07\u202e\u2066\u200b"))) in _without_marks(reader, found)
        reader.goto(f"{url}/files/0/rollouts/2")
        assert "ESC" in texts(reader, "li.entry.assistant .mark")
        reader.goto(f"{url}/files/0/rollouts/3")
        assert texts(reader, "li.entry.assistant .mark") == ["U+202E", "U+2066", "U+200B"]


def _without_marks(page: Any, text: str) -> str:
    for one in page.locator("li.entry.assistant .mark").all_inner_texts():
        text = text.replace(one, "", 1)
    return text


def test_messages_of_five_megabytes_open_cut_and_then_whole(reader: Any, tmp_path: Path):
    path = write(tmp_path / "R.jsonl", row(0, 0, 1.0, "word " * 1_000_000 + "the end"))
    with viewing(path) as url:
        reader.goto(f"{url}/files/0/rollouts/1")
        assert "the end" not in reader.inner_text("li.entry.assistant pre")
        reader.click("li.entry.assistant >> text=show all of them")
        reader.wait_for_url("**whole=text")
        text = "".join(reader.locator("li.entry.assistant pre").all_text_contents())
        assert (len(text), text.endswith("the end")) == (5_000_007, True)


def test_tokens_have_their_colours_and_numbers(reader: Any, tmp_path: Path):
    with viewing(token_stage(tmp_path).parent) as url:
        reader.goto(f"{url}/files/0/rollouts/1")
        reader.keyboard.press("t")
        reader.wait_for_url("**/tokens")
        assert reader.locator(".tokens .t").count() == 6
        assert reader.locator(".tokens .t.on").count() == 3
        reader.click("text=advantage >> nth=-1")
        assert reader.locator(".tokens .down2").count() == 3
        reader.click("text=gap of sampler and trainer")
        assert reader.locator(".tokens .h3").count() == 2
        assert "advantage -0.5" in str(reader.locator(".tokens .t >> nth=2").get_attribute("title"))


def test_a_selection_is_saved_as_a_file(reader: Any, tmp_path: Path):
    with viewing(stage(tmp_path)) as url:
        for to, name, num in (
            ("sft", "rollouts_sft.jsonl", 1),
            ("dpo", "rollouts_dpo.jsonl", 1),
            ("tasks", "rollouts_tasks.jsonl", 1),
        ):
            reader.goto(f"{url}/files/0?where_group=0+%3C+pass_rate+%3C+1")
            reader.select_option("[name=to]", to)
            reader.get_by_role("button", name="Export").click()
            assert "Where the others went" in reader.inner_text("main") or to != "sft"
            with reader.expect_download() as saved:
                reader.click(f"text=Save {name}")
            saved.value.save_as(tmp_path / name)
            assert len((tmp_path / name).read_bytes().splitlines()) == num, to


def test_the_exported_page_opens_from_disk_without_a_script(browser: Any, reader: Any, tmp_path: Path):
    with viewing(stage(tmp_path)) as url:
        reader.goto(f"{url}/files/0")
        reader.select_option("[name=to]", "page")
        reader.get_by_role("button", name="Export").click()
        with reader.expect_download() as saved:
            reader.click("text=Save report.html")
        saved.value.save_as(tmp_path / "report.html")
    reader.goto((tmp_path / "report.html").as_uri())
    assert reader.title() == "run/rollouts.jsonl · gym-bridge"
    assert reader.locator("details").count() == 6
    reader.click("a.chip >> nth=0")
    assert reader.locator("details[open]").count() == 1
    assert "it is 4" in reader.inner_text("details[open]")
    assert reader.locator("details[open] script, details[open] img").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_in_the_light_in_the_dark_and_on_a_phone(browser: Any, tmp_path: Path, scheme: str):
    addresses = ("", "/runs?run=0", "/files/0", "/files/0/groups", "/files/0/groups/1", "/files/0/rollouts/1", "/files/0/failures")
    with viewing(stage(tmp_path)) as url:
        for width in (390, 1280):
            page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 800})
            for address in addresses:
                page.goto(url + address)
                assert page.evaluate("document.documentElement.scrollWidth") <= width, (address, width)
                ink, paper = page.evaluate(
                    "[document.body, document.body].map((one, place) => getComputedStyle(one)[place ? 'backgroundColor' : 'color'])"
                )
                assert abs(_luminance(ink) - _luminance(paper)) > 0.6, (address, scheme)
                assert (_luminance(paper) < 0.5) == (scheme == "dark")
            page.close()


def _luminance(colour: str) -> float:
    red, green, blue = (int(part) / 255 for part in colour.split("(")[1].rstrip(")").split(",")[:3])
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_two_hundred_thousand_rows_are_a_page_at_a_time(reader: Any, tmp_path: Path):
    path, plain = tmp_path / "R.jsonl", json.dumps(row(0, 0, 0.5))
    head, tail = plain.split('"_ng_task_index": 0, "_ng_rollout_index": 0')
    with path.open("w") as file:
        for number in range(200_000):
            file.write(f'{head}"_ng_task_index": {number // 8}, "_ng_rollout_index": {number % 8}{tail}\n')
    with viewing(path, cache=tmp_path / "cache") as url:
        reader.goto(f"{url}/files/0")
        assert "200,000 of 200,000 rows" in reader.inner_text("main")
        assert reader.locator("#main tbody tr").count() == 50
        reader.goto(f"{url}/files/0?page=4000")
        assert texts(reader, "tbody td.name")[-1] == "24999-7"
        reader.fill("[name=where]", "task_index >= 24999 and rollout_index < 2")
        reader.keyboard.press("Enter")
        reader.wait_for_selector("text=2 of 200,000 rows")
        assert texts(reader, "tbody td.name") == ["24999-0", "24999-1"]
        reader.goto(f"{url}/files/0/groups")
        assert "25,000 of 25,000 groups" in reader.inner_text("main")


def test_a_training_is_watched_while_it_goes_on(reader: Any, tmp_path: Path):
    run = tmp_path / "run"
    write(run / "metrics.jsonl", {"step": 1, "reward": 0.25, "loss": 1.0, "step_s": 1.0})
    with viewing(run) as url:
        reader.goto(f"{url}/runs?run=0")
        assert "1 point" in reader.inner_text("figure >> nth=0")
        append(run / "metrics.jsonl", {"step": 2, "reward": 0.5, "loss": 0.5, "step_s": 1.0}, b'{"step": 3, "rew')
        expect(reader.locator("figure").first).to_contain_text("2 points")
        write(run / "rollouts.jsonl", row(3, 1, 1.0, "x", num_turns=2))
        TokenStore(run / "rollouts.tokens").append([((3, 1, 0), TURNS)])
        reader.wait_for_selector("text=rollouts.jsonl")
        reader.click("text=rollouts.jsonl")
        reader.click("a.open")
        reader.click("text=Tokens")
        assert reader.locator(".tokens .t").count() == 6
