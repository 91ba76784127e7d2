"""NeMo Gym task rows back again, for online training on chosen tasks; `gym_bridge` notes how hard they were.

The bytes of a task's fields are copied as they stand in the materialized inputs, or in the rollout's row where there are none.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import msgspec
import orjson

from gym_bridge.errors import DataError
from gym_bridge.io.jsonl import BYTE_ORDER_MARK
from gym_bridge.io.rollout_reader import RolloutView
from gym_bridge.schemas.rollouts import ATTEMPT_INDEX, FAILURE_CLASS, ROLLOUT_INDEX, TASK_INDEX, Row
from gym_bridge.transforms.format import Format, RowOptions

OF_ATTEMPTS = frozenset({"gym_bridge", "_ng_rollout_id", TASK_INDEX, ROLLOUT_INDEX, ATTEMPT_INDEX})
"""Fields of any row that name one attempt at a task. The task's index is among them: NeMo Gym honours one that a task row has, and
those of tasks out of several files would clash; `gym_bridge.task_index` tells it."""

OUTPUTS = frozenset({"response", "output", "messages"})
"""Where a rollout's row, of whatever release, has what the model did; a task's row has none of them."""

OF_ROLLOUTS = OUTPUTS | {
    "reward",
    "reward_components",
    "mask_sample",
    "terminated",
    "truncated",
    "info",
    "verification_skipped",
    "ng_perf",
    "ng_trajectory",
    "ng_model_call_capture",
    "ng_agent_observations",
    "_ng_token_capture",
    "_ng_failure_terminal",
    FAILURE_CLASS,
}
"""Fields of a rollout's row that tell how it ended, not what was asked. In a task's row they are the task's own."""

KEPT = 1024
"""Names of fields that are kept as JSON."""

_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def task_line(line: bytes, group: Mapping[str, Any]) -> bytes:
    """The line of a task: the fields of `line`, a rollout's or a task's, that are the task's own, byte for byte, and `group` under
    `gym_bridge`.

    Raises DataError for a line that is no JSON object.
    """
    try:
        fields = _FIELDS.decode(line.removeprefix(BYTE_ORDER_MARK))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"no JSON object: {error}") from None
    foreign = OF_ATTEMPTS if OUTPUTS.isdisjoint(fields) else OF_ATTEMPTS | OF_ROLLOUTS
    parts = [part for name, value in fields.items() if name not in foreign for part in (b",", _key(name), value)]
    parts += [b',"gym_bridge":', orjson.dumps(dict(group))] if group else []
    return b"{" + b"".join(parts)[1:] + b"}\n"


@lru_cache(maxsize=KEPT)
def _key(name: str) -> bytes:
    return orjson.dumps(name) + b":"


def _anyone(rollout: RolloutView, options: RowOptions) -> Row:
    """Any rollout of a task stands for it."""
    return {}


TASKS = Format(row=_anyone, unit="task", task_line=task_line, takes_truncated=True, reads_items=False)
