"""README.md and the pages of docs/: their fenced blocks, and the commands in them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"

PROGRAMS = (
    *(
        "gym-bridge",
        "make",
        "pip",
        "uv",
        "python",
        "python3",
        "torchrun",
        "pytest",
        "ruff",
        "pyright",
        "bash",
        "sh",
        "source",
    ),
    *("vllm", "ray", "wandb", "mlflow", "tensorboard", "curl", "wget", "jq", "git", "docker", "podman", "kubectl", "sbatch", "ssh"),
    *("export", "cd", "cat", "echo", "head", "tail", "ls", "mkdir", "cp", "mv", "rm", "sudo", "apt", "apt-get", "nvidia-smi"),
)
PROMPT = re.compile(r"\s*[$%] \S")
COMMAND = re.compile(
    r"\s*(?:[A-Za-z_]\w*=\S+ )*"  # FOO=1 before it
    rf"(?:[\w.~-]*/)*(?:{'|'.join(PROGRAMS)})"  # .venv/bin/ before it
    r"(?:\s+[^\s=:(,]\S*.*)?$"  # Python's `echo = 1` and YAML's `python: x` are none
)
FENCE = re.compile(r"(\s*)(`{3,}|~{3,})\s*([\w+-]*)")
HERE_DOCUMENT = re.compile(r"<<-?\s*(['\"]?)(\w+)\1")
FILE_NAME = re.compile(r"# ([\w./-]+\.\w+)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """What stands between two fences."""

    page: Path
    line: int
    """Of its first line, counted from 1."""
    language: str
    """`bash`, or empty where the fence names none."""
    text: str

    @property
    def place(self) -> str:
        """`docs/train.md:4`"""
        return f"{self.page.relative_to(ROOT) if self.page.is_relative_to(ROOT) else self.page.name}:{self.line}"

    @property
    def file_name(self) -> str | None:
        """`my_losses.py` of a block that begins with `# my_losses.py`: it shows this file."""
        found = FILE_NAME.match(self.text.partition("\n")[0])
        return found.group(1) if found and self.language != "bash" else None


def pages() -> list[Path]:
    """README.md first: the others go on from where it ends."""
    return [README, *sorted((ROOT / "docs").rglob("*.md"))]


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order, without the indentation of their fences."""
    found: list[Block] = []
    lines: list[str] | None = None
    indent, fence, language, start = "", "", "", 0
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        match = FENCE.match(line)
        if lines is None and match:
            (indent, fence, language), lines, start = match.groups(), [], number + 1
        elif lines is not None and match and match.group(2).startswith(fence) and not match.group(3):
            found.append(Block(page=page, line=start, language=language, text="\n".join(lines)))
            lines = None
        elif lines is not None:
            lines.append(line.removeprefix(indent))
    assert lines is None, f"{page}:{start}: a block without an end"
    return found


def bash_blocks(page: Path) -> list[Block]:
    """The blocks whose commands a reader types."""
    return [block for block in blocks_of(page) if block.language == "bash"]


def commands_of(text: str) -> Iterator[str]:
    """The commands of a bash block: continued lines joined, here-documents whole, blanks and comments left out."""
    lines = iter(text.splitlines())
    for line in lines:
        while line.endswith("\\"):
            line = line[:-1].rstrip() + " " + next(lines).lstrip()
        if found := HERE_DOCUMENT.search(line):
            for more in lines:
                line += f"\n{more}"
                if more.strip() == found.group(2):
                    break
        if line.strip() and not line.lstrip().startswith("#"):
            yield line


def misplaced_commands(page: Path) -> list[str]:
    """Commands in fences that are not `bash`: nobody would run them here."""
    return [
        f"{block.place}: {line.strip()}"
        for block in blocks_of(page)
        if block.language != "bash"
        for line in block.text.splitlines()
        if PROMPT.match(line) or COMMAND.match(line)
    ]
