"""Every `gym-bridge ...` line of README.md and docs/ parses as the real command line does; none is run."""

import re
import shlex
from pathlib import Path

import click
import pytest
from pydantic import BaseModel

from gym_bridge.cli.main import cli
from gym_bridge.cli.train import options_as_overrides
from gym_bridge.cli.transform import settings_of
from gym_bridge.config import load_config, validate
from gym_bridge.errors import GymBridgeError
from gym_bridge.resource_servers.registry import load_server
from gym_bridge.schemas.remote_names import mirrored
from gym_bridge.schemas.settings import DPOSettings, GRPOSettings, RewardModelSettings, SFTSettings
from gym_bridge.schemas.shipped_configs import find_config
from gym_bridge.schemas.transform_settings import TransformSettings
from gym_bridge.transforms.plan import make_plan

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PACKAGE_PAGES = sorted((ROOT / "gym_bridge").rglob("*.md"))
FENCE = re.compile(r"^\s*(```|~~~)")
INLINE = re.compile(r"`(gym-bridge [^`]+)`")
TRAINERS: dict[str, type[BaseModel]] = {
    "sft": SFTSettings,
    "dpo": DPOSettings,
    "rm": RewardModelSettings,
    "grpo": GRPOSettings,
}


def command_lines(page: str) -> list[str]:
    """The commands of a page's code blocks, continued lines joined, and those between backticks in its text."""
    found, inside, pending = [], False, ""
    for line in page.splitlines():
        if FENCE.match(line):
            inside, pending = not inside, ""
        elif not inside:
            found += [one for one in INLINE.findall(line) if not re.match(r"gym-bridge [A-Z]+\b", one)]
        elif line.rstrip().endswith("\\"):
            pending += line.rstrip()[:-1] + " "
        else:
            text, pending = (pending + line).strip().removeprefix("$ "), ""
            if re.match(r"(\S+/)?gym-bridge\s", text):
                found.append(text)
    return found


def check(line: str) -> None:
    """Raise click's or our own error for a line that the command line would refuse."""
    argv = shlex.split(line, comments=True)[1:]
    ends = [position for position, word in enumerate(argv) if re.fullmatch(r"&&?|\|\|?|;|\d?>>?.*|<.*", word)]
    _parse(cli, argv[: ends[0]] if ends else argv, "gym-bridge", None)


def _parse(command: click.Command, argv: list[str], name: str, parent: click.Context | None) -> None:
    try:
        context = command.make_context(name, list(argv), parent=parent)
    except click.exceptions.Exit:  # --help, --version
        return
    if isinstance(command, click.Group):
        rest = [*context._protected_args, *context.args]
        found_name, found, rest = command.resolve_command(context, rest)
        assert found is not None
        assert found_name is not None
        _parse(found, rest, found_name, context)
        return
    _check_values(name, context.params, trains=parent is not None and parent.info_name == "train")


def _check_values(verb: str, params: dict, *, trains: bool) -> None:
    if trains:
        shipped = [find_config(one) for one in params["configs"]]
        files = [path for path in shipped if path.exists()]
        needed = ["data.train=x", *(["env.server=arithmetic"] if verb == "grpo" else [])]
        load_config(TRAINERS[verb], files=files, overrides=[*needed, *options_as_overrides(params), *params["overrides"]])
    if verb == "transform" and not params["columns"]:
        given = {name: value for name, value in params.items() if name in TransformSettings.model_fields}
        settings = settings_of(given | ({"to": "sft"} if ":" in (given["to"] or "") else {}))  # a format that the reader writes
        make_plan([mirrored(one) for one in params["rollouts"]], settings)
    if verb == "tasks":
        server = load_server(_existing(params["server"]))
        validate(server.Knobs, dict(one.split("=", 1) for one in params["knobs"]))
    server = params.get("server") or (params.get("name") if verb == "serve" else None)
    if server is not None and "://" not in server:
        load_server(_existing(server))


def _existing(server: str) -> str:
    """`server`, or one of ours where a page speaks of a file that the reader writes."""
    return "arithmetic" if server.endswith((".py", ".yaml")) else server


@pytest.mark.parametrize("page", [*PAGES, *PACKAGE_PAGES], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_line_of_the_pages_parses(page: Path):
    refused = []
    for line in command_lines(page.read_text(encoding="utf-8")):
        try:
            check(line)
        except (click.ClickException, GymBridgeError) as error:
            refused.append(f"{line}: {error.format_message() if isinstance(error, click.ClickException) else error}")
    assert refused == []


def test_the_readme_shows_every_verb():
    lines = command_lines((ROOT / "README.md").read_text(encoding="utf-8"))
    from gym_bridge.cli.main import VERBS

    assert {shlex.split(line, comments=True)[1] for line in lines} == set(VERBS)


@pytest.mark.parametrize(
    "verb",
    [
        "collect",
        "transform",
        "audit",
        "checkpoint export",
        "checkpoint import",
        "checkpoint inspect",
        "nemo-rl import",
        "nemo-rl sft",
        "train sft",
        "train dpo",
        "train rm",
        "train grpo",
        "eval run",
        "eval report",
        "serve",
        "tasks",
    ],
)
def test_every_example_in_a_help_page_parses(verb: str):
    command: click.Command = cli
    for word in verb.split():
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), word)
        assert found is not None
        command = found
    assert command.epilog is not None
    check(command.epilog.removeprefix("Example: "))


def test_lines_are_found_joined_and_freed_of_comments():
    text = "`gym-bridge VERB --help` `gym-bridge quickstart`\n"
    block = "```bash\n$ gym-bridge serve a \\\n    --port 1   # here\nls\n```\n"
    page = text + block + "gym-bridge no\n"
    assert command_lines(page) == ["gym-bridge quickstart", "gym-bridge serve a      --port 1   # here"]


@pytest.mark.parametrize(
    "line",
    [
        "gym-bridge colect --input x",
        "gym-bridge serve arithmetic --prt 1",
        "gym-bridge serve arithmetc",
        "gym-bridge tasks arithmetic knd=sum --output x",
        "gym-bridge train sft --config sft/tinny",
        "gym-bridge train sft --config sft/tiny policy.lrr=1",
        "gym-bridge train sft --config mine.yaml data.trian=x",
        "gym-bridge collect --input x --output y --server arithmetic --model-api chatt",
        "gym-bridge transform a.jsonl --output b",
        "gym-bridge transform a.jsonl --to sft",
        "gym-bridge transform a.jsonl --to sft --output b --min-margin 0.1",
        "gym-bridge transform a.jsonl --to sft --output b --where 'reward >'",
    ],
)
def test_a_wrong_line_would_be_found(line: str):
    with pytest.raises((click.ClickException, GymBridgeError)):
        check(line)


@pytest.mark.parametrize(
    "line",
    [
        "gym-bridge serve arithmetic --port 9000 &",
        "gym-bridge audit a.jsonl > report.txt",
        "gym-bridge train grpo --config mine.yaml policy.lr=1e-4  # mine",
        "gym-bridge eval --input x --output y --server http://127.0.0.1:1",
        "gym-bridge transform a.jsonl b.jsonl.zst --to dpo --output c --pairs all --max-pairs-per-task 4",
        "gym-bridge transform a.jsonl --columns --json",
        "gym-bridge --version",
        "gym-bridge train --help",
    ],
)
def test_a_right_line_passes(line: str):
    check(line)
