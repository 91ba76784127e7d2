"""Commands stand in `bash` fences, the tables of substitutions.py are about commands that are there, and what is broken fails."""

import re
import time
from pathlib import Path

import pytest

from tests.documentation.pages import ROOT, Block, bash_blocks, blocks_of, commands_of, misplaced_commands, pages
from tests.documentation.session import Failure, Session
from tests.documentation.substitutions import NOT_RUN, SUBSTITUTED, all_commands, script_of

PLACES = {"PATH": "/usr/bin:/bin"}


def page_with(directory: Path, text: str) -> Path:
    page = directory / "page.md"
    page.write_text(text)
    return page


def follow(directory: Path, text: str) -> None:
    workplace = directory / "work"
    workplace.mkdir()
    with Session(directory, workplace, PLACES) as session:
        session.play(page_with(directory, text))


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_stand_in_bash_fences_alone(page: Path):
    assert misplaced_commands(page) == []


@pytest.mark.parametrize("entry", [*SUBSTITUTED, *NOT_RUN], ids=lambda entry: entry.pattern)
def test_every_entry_of_the_tables_is_about_a_command_of_a_page(entry):
    assert [one for one in all_commands() if re.search(entry.pattern, one)]


@pytest.mark.parametrize("entry", NOT_RUN, ids=lambda entry: entry.pattern)
def test_what_is_not_run_here_is_tested_elsewhere(entry):
    assert (ROOT / entry.tested_by).exists()


@pytest.mark.parametrize(
    "line",
    [
        "gym-bridge doctor",
        "$ ls",
        "  make test",
        "FOO=1 BAR=2 vllm serve x",
        ".venv/bin/gym-bridge serve arithmetic --port 9000",
        "export A=b",
        "torchrun --standalone -m gym_bridge",
        "python -m benchmarks.plan",
    ],
)
@pytest.mark.parametrize("language", ["", "console", "sh", "text"])
def test_a_command_elsewhere_is_found(tmp_path: Path, language: str, line: str, monkeypatch):
    found = misplaced_commands(page_with(tmp_path, f"# Page\n\n```{language}\nsome output\n{line}\n```\n"))
    assert found == [f"page.md:4: {line.strip()}"]
    assert misplaced_commands(page_with(tmp_path, f"```bash\n{line}\n```\n")) == []


@pytest.mark.parametrize("line", ["python: /opt/vllm/bin/python", "echo = 1", "gym_bridge/", "  cli/   a verb", "head(rows)"])
def test_what_is_no_command_is_not_taken_for_one(tmp_path: Path, line: str):
    assert misplaced_commands(page_with(tmp_path, f"```yaml\n{line}\n```\n")) == []


def test_blocks_are_found_with_their_lines_and_without_their_indentation(tmp_path: Path):
    commands = "  one \\\n    two\n  # three\n  cat <<E\n  four\n  E\n"
    page = page_with(tmp_path, f"a\n```python\n# mine.py\nx = 1\n```\n- b\n  ~~~bash\n{commands}  ~~~\n")
    python, bash = blocks_of(page)
    assert (python.line, python.file_name, python.text) == (3, "mine.py", "# mine.py\nx = 1")
    assert (bash.line, bash.file_name) == (8, None)
    assert list(commands_of(bash.text)) == ["one two", "cat <<E\nfour\nE"]
    assert bash_blocks(page) == [bash]


def test_a_fence_that_never_ends_is_told(tmp_path: Path):
    with pytest.raises(AssertionError, match="without an end"):
        blocks_of(page_with(tmp_path, "```bash\nls\n"))


def test_a_broken_command_fails_with_its_place_and_what_it_said(tmp_path: Path):
    text = "```bash\ntrue\n```\n\n```bash\necho first\nls nowhere | cat\necho never\n```\n"
    with pytest.raises(Failure) as failed:
        follow(tmp_path, text)
    told = str(failed.value)
    assert told.startswith("page.md:6: exit code 2\n\necho first\nls nowhere | cat")
    assert "first\n" in told
    traced_or_said = told.splitlines()[-2:]  # the two of a pipe are begun in any order
    assert any("nowhere" in line and not line.startswith("+") for line in traced_or_said)
    assert "\nnever" not in told


def test_a_server_that_does_not_start_fails(tmp_path: Path):
    with pytest.raises(Failure, match="ended before it listened on port"):
        follow(tmp_path, "```bash\nfalse --port 8765 &\n```\n")


def test_a_page_writes_the_files_that_it_shows_and_its_servers_end_with_it(tmp_path: Path):
    shown = "```python\n# mine.py\nprint(2)\n```\n"
    follow(tmp_path, f"{shown}```bash\ncat mine.py > copy\nsleep 1000 & echo $! > id\n```\n")
    assert (tmp_path / "work" / "copy").read_text() == "# mine.py\nprint(2)\n"
    state, deadline = Path("/proc", (tmp_path / "work" / "id").read_text().strip(), "stat"), time.monotonic() + 10
    while state.exists() and state.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_script_leaves_out_what_cannot_run_and_awaits_servers(tmp_path: Path):
    text = "make test  # all\ngym-bridge serve arithmetic --port 9000   # sums\ngym-bridge doctor\n"
    block = Block(page=tmp_path, line=1, language="bash", text=text)
    assert script_of(block, place=lambda command: command) == (
        ": 'not run here:' 'it would run itself'\n"
        "gym-bridge serve arithmetic --port 9000 &   # sums\n"
        "await_port 9000 $!\n"
        "gym-bridge doctor\n"
    )
