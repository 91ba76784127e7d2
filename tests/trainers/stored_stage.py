"""Rollouts files for tests of stored groups: rows as our collector writes them, token ids in the store beside them or inside."""

import json
from pathlib import Path

from gym_bridge.io.inline_tokens import with_inline_tokens
from gym_bridge.io.rollout_log import RolloutLog
from gym_bridge.schemas.rollouts import Rollout, RolloutKey
from gym_bridge.schemas.tokens import TurnTokens


def turns_of(task, index, version=0):
    """Two model calls: prompt 5 and the task, answered by the index; then a tool's 8, answered by 9."""
    first = (5, 10 + task)
    answer = (50 + index, 2)
    return (
        TurnTokens(prompt_ids=first, completion_ids=answer, logprobs=(-0.5, -0.25), policy_version=version, starts_segment=True),
        TurnTokens(
            prompt_ids=(*first, *answer, 8),
            completion_ids=(9, 2),
            logprobs=(-1.5, -0.125),
            policy_version=version,
            starts_segment=False,
        ),
    )


def row_of(task, index, version=0, *, reward=1.0, params=None, **more):
    """A finished row of two model calls, without token ids."""
    output = [{"type": "message", "role": "assistant", "content": f"answer {number}"} for number in range(2)]
    return {
        "responses_create_params": {"input": "2+2?", **(params or {})},
        "response": {"id": "resp", "output": output},
        "reward": reward,
        "_ng_task_index": task,
        "_ng_rollout_index": index,
        "agent_ref": {"type": "responses_api_agents", "name": "gym_bridge"},
        "gym_bridge": {
            "num_turns": 2,
            "num_tool_calls": 0,
            "attempt": 0,
            "truncated": False,
            "policy_versions": [version, version],
        },
        **more,
    }


def inline_row(task, index, version=0, **more):
    """The same with token ids on its items."""
    return with_inline_tokens(row_of(task, index, version, **more), turns_of(task, index, version), [0, 1])


def nemo_gym_row(task, index, **more):
    """The same as NeMo Gym writes it."""
    return {name: value for name, value in inline_row(task, index, **more).items() if name != "gym_bridge"}


def write_rows(path: Path, rows) -> Path:
    """A file with a JSON line for each row; a string is a line as it is."""
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in rows))
    return path


def write_log(path: Path, keys) -> Path:
    """A collection of rollouts (task, index, version), as our log keeps it: token ids beside the rows."""
    with RolloutLog(path, identity={}) as log:
        for task, index, version in keys:
            key, turns = RolloutKey(task, index), turns_of(task, index, version)
            log.append(Rollout(key=key, attempt=0, row=row_of(task, index, version, reward=float(index)), turns=turns))
    return path
