"""Every `bash` block of README.md and docs/ is run, in the order of its page; each must end with exit code 0.

A page may assume that its reader has followed README.md and stands in the same directory, a copy of its own, which holds

- what README.md's commands made: `out/train.jsonl`, `out/heldout.jsonl`, `out/rollouts.jsonl` with its siblings, `out/sft.jsonl`,
  `out/dpo.jsonl` and the other datasets, `out/before.jsonl`, `out/after.jsonl`, `runs/sft`, `runs/dpo`, `runs/rm`, `runs/grpo`,
  `my-model`;
- `tasks.jsonl` (four sums), `questions.jsonl` and `prompt.yaml`, `blend.jsonl`, `a.jsonl`, `b.jsonl`, `aime_2024.parquet`,
  `gpqa_diamond.csv`, `runs/x/rollouts.jsonl` with its siblings, `a/rollouts.jsonl`, `b/rollouts.jsonl.zst`, `suite.yaml`,
  `sft.yaml`, `grpo.yaml`, `old-dcp`, and NeMo RL in `~/RL`;
- a file that the page itself shows, in a block whose first line is `# NAME`, such as `# my_losses.py`.

On http://127.0.0.1:9000 is the server arithmetic, on http://127.0.0.1:8000/v1 the embedded model by any name, unless the page
starts its own with `--port`. Servers that a block starts serve until the page ends. A page writes new outputs: what README.md made
with other settings is refused. The tour and the pages of docs/results/ begin without what README.md
made. substitutions.py has what is run smaller
than it is written, and what is not run here; given_files.py the files.
"""

from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path

import pytest

from tests.documentation.pages import ROOT, bash_blocks, pages
from tests.documentation.session import Failure
from tests.documentation.substitutions import counts

pytestmark = pytest.mark.docs

PAGES = [page for page in pages() if bash_blocks(page)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_runs_as_it_is_written(page: Path, followed: Mapping[Path, Future[None]]):
    error = followed[page].exception()
    if isinstance(error, Failure):
        pytest.fail(str(error), pytrace=False)
    if error is not None:
        raise error


def test_few_commands_are_left_out(capsys: pytest.CaptureFixture[str]):
    found = counts()
    with capsys.disabled():
        print(f"\n{found.total()} commands in {len(PAGES)} pages: " + ", ".join(f"{count} {kind}" for kind, count in found.items()))
    assert found["not run here"] < found.total() / 5
