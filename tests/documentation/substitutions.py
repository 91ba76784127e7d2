"""How the commands of the pages are made small enough for two cores without a GPU, and which are not run here."""

import re
import shlex
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from tests.documentation.pages import Block, bash_blocks, commands_of, pages


@dataclass(frozen=True, slots=True, kw_only=True)
class Substitution:
    """What is run instead. `$SHOP` is the directory of the workshop."""

    pattern: str
    replacement: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NotRun:
    """A command that needs what is not here."""

    pattern: str
    why: str
    tested_by: str
    """A file or directory of this repository."""


SUBSTITUTED = (
    Substitution(
        pattern=r"--config (sft|dpo|rm)/tiny",
        replacement=r"--config \1/tiny --config $SHOP/\1.yaml",
        why="two steps of a model of two layers",
    ),
    Substitution(
        pattern=r"--config rlvr/(tiny|calculator)",
        replacement=r"--config rlvr/\1 --config $SHOP/rlvr.yaml",
        why="two steps of a model of two layers",
    ),
    Substitution(
        pattern=r"algorithm\.estimator=components",
        replacement=r"\g<0> algorithm.overlong_buffer=null",
        why="the small config rewards lengths, which this estimator does not take",
    ),
    Substitution(pattern=r"(?<=trainer\.max_steps=)\d+", replacement="2", why="two steps show that it runs"),
    Substitution(pattern=r"(?<=--num-tasks )\d{2,}", replacement="16", why="few tasks show that it runs"),
    Substitution(pattern=r"(?<=--num-repeats )8\b", replacement="4", why="four attempts at a task make pairs too"),
    Substitution(pattern=r"top_p=0\.9", replacement="top_p=1.0", why="here no vLLM samples, but the embedded model as it is"),
    Substitution(pattern=r"(?<=--split )0\.\d+", replacement="0.4", why="of few tasks some fall to both sides"),
    Substitution(
        pattern=r"(^gym-bridge (?:collect|eval)\b(?!.*--max-output-tokens).* --model )smollm2-135m",
        replacement=r"\1$SHOP/tiny",
        why="without a limit it talks for minutes",
    ),
    Substitution(
        pattern=r"^gym-bridge doctor runs/\S+",
        replacement=r"{ \g<0> || test $? = 1; } | grep '^ok  *steps: '",
        why="two steps of random weights are not healthy, and doctor says so: it must have read them",
    ),
    Substitution(pattern=r"step_\d{8}", replacement="step_00000002", why="so many steps were taken"),
    Substitution(pattern=r"=/data/", replacement="=$SHOP/data/", why="small datasets of the same form"),
    Substitution(
        pattern=r"^gym-bridge train .*(sampler\.kind=vllm|cluster\.kind=ray|env\.gym_configs).*?(?= +#|$)",
        replacement=r"\g<0> --dry-run",
        why="vLLM, a Ray and NeMo Gym are started by the suites vllm, ray and nemo_gym; here the settings are resolved",
    ),
    Substitution(
        pattern=r"Qwen/Qwen3-0\.6B|Qwen3-30B-A3B",
        replacement="$SHOP/tiny",
        why="no hub is reached: a model's files, not a name on the wire",
    ),
    Substitution(
        pattern=r"(?<=--model )arithmetic/sft",
        replacement="$SHOP/tiny",
        why="what another page's recipe leaves, of which here the settings are resolved",
    ),
    Substitution(
        pattern=r"^gym-bridge recipe run (?!.*--dry-run).*?(?= +#|$)",
        replacement=r"\g<0> --dry-run",
        why="tests/recipes runs every recipe whole; here the settings of all stages are resolved",
    ),
    Substitution(
        pattern=r"^gym-bridge check-reward .*?(?= +#|$)",
        replacement=r"{ \g<0> || test $? = 3; } | grep 'good above bad: in 100%'",
        why="random weights never earn anything, and the check says so: it must have tried the known answers",
    ),
    Substitution(
        pattern=r"^gym-bridge view (?!.*--export)",
        replacement="until_ready gym-bridge view --port 0 ",
        why="the page is there until Ctrl-C: here until it has told its address",
    ),
    Substitution(
        pattern=r"^gym-bridge serve .*?(?= +#|$)",
        replacement=r"\g<0> &",
        why="a server serves until Ctrl-C: here until its page ends",
    ),
)

NOT_RUN = (
    NotRun(pattern=r"^docker ", why="a Docker daemon", tested_by="tests/cluster"),
    NotRun(pattern=r"^make quickstart", why="it takes minutes: CI runs it on its own", tested_by=".ci/run"),
    NotRun(pattern=r"^make test", why="it would run itself", tested_by=".ci/run"),
    NotRun(pattern=r"^pip install", why="it would change the environment that runs this", tested_by="tests/test_installation.py"),
    NotRun(pattern=r"vllm serve|vllm\.entrypoints", why="vLLM has a venv of its own", tested_by="tests/vllm"),
    NotRun(pattern=r"--(agent-url|head-url|gym-config) ", why="NeMo Gym has a venv of its own", tested_by="tests/nemo_gym"),
    NotRun(
        pattern=r"s3://", why="an object store and a Ray: the suite ray has the latter", tested_by="tests/cli/test_remote_files.py"
    ),
    NotRun(pattern=r"--push-to-hub", why="the hub", tested_by="tests/cli/test_checkpoint.py"),
    NotRun(pattern=r"--model meta-llama/", why="the hub", tested_by="tests/cli/test_doctor.py"),
    NotRun(
        pattern=r"benchmarks\.algorithms", why="an hour, until three algorithms have learnt", tested_by="tests/test_benchmarks.py"
    ),
)


def not_run(command: str) -> NotRun | None:
    """The entry that keeps a command from being run here."""
    return next((one for one in NOT_RUN if re.search(one.pattern, command)), None)


def substituted(command: str) -> str:
    """The command that is run instead, `$SHOP` still in it."""
    for one in SUBSTITUTED:
        command = re.sub(one.pattern, one.replacement, command)
    return command


def script_of(block: Block, *, place: Callable[[str], str]) -> str:
    """The block as it is run: what cannot run here left out, servers awaited. `place` puts ports and directories in."""
    lines = []
    for command in commands_of(block.text):
        if entry := not_run(command):
            lines.append(shlex.join([":", "not run here:", entry.why]))
            continue
        run = place(substituted(command))
        lines.append(run)
        port = re.search(r"--port (\d+)", run)
        if port and run.partition(" #")[0].rstrip().endswith("&"):
            lines.append(f"await_port {port.group(1)} $!")
    return "\n".join(lines) + "\n"


def all_commands() -> list[str]:
    """Every command of every page."""
    return [command for page in pages() for block in bash_blocks(page) for command in commands_of(block.text)]


def counts() -> Counter[str]:
    """How many commands are run as they stand, substituted and not run here."""
    return Counter(
        "not run here" if not_run(one) else "substituted" if substituted(one) != one else "as they stand" for one in all_commands()
    )
