"""Which calls of the policy's endpoint a rollout is made of that an agent played: each under a name that the calls carry."""

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from gym_bridge.rollouts.failing import RolloutError
from gym_bridge.rollouts.play import Play
from gym_bridge.rollouts.policy_server.asked import ROLLOUT_TAG
from gym_bridge.rollouts.policy_server.calls import PolicyServer
from gym_bridge.schemas.rollouts import FailureType, RolloutKey, Row
from gym_bridge.schemas.tokens import TurnTokens

ROLLOUT_ID = "_ng_rollout_id"
"""The field with which a task names its rollout to NeMo Gym, from 0.5 on."""
NAMED_PLACES = ("responses_create_params", "response")
"""Objects of a row in whose `metadata` the name comes back."""


def name_of(key: RolloutKey, *, attempt: int) -> str:
    """A name that no other attempt has, of this run or an earlier one, in the form of NeMo Gym's own."""
    return f"{key.task_index}-{key.rollout_index}-a{attempt}-{uuid.uuid4().hex[:8]}"


def named(sent: Row, params: Row, rollout: str) -> Row:
    """A task under the name: for NeMo Gym, and in the metadata, which agents and model servers hand on with every call."""
    metadata = params.get("metadata")
    if metadata is not None and not isinstance(metadata, Mapping):
        message = f"metadata of the task is {str(metadata)[:80]}; expected an object of strings"
        raise RolloutError(FailureType.INVALID_ROW, message, terminal=True)
    return {
        **sent,
        ROLLOUT_ID: rollout,
        "responses_create_params": {**params, "metadata": {**(metadata or {}), ROLLOUT_TAG: rollout}},
    }


def unnamed(row: Row, task: Row) -> Row:
    """A rollout's row without the name: it says nothing of the rollout, and the task's own stands again."""
    row = {name: value for name, value in row.items() if name != ROLLOUT_ID}
    if ROLLOUT_ID in task:
        row[ROLLOUT_ID] = task[ROLLOUT_ID]
    for place in NAMED_PLACES:
        holder: Any = row.get(place)
        metadata = holder.get("metadata") if isinstance(holder, dict) else None
        if isinstance(metadata, dict) and ROLLOUT_TAG in metadata:
            left = {name: value for name, value in metadata.items() if name != ROLLOUT_TAG}
            row[place] = {**holder, "metadata": left or None}
    return row


def sampled_turns(play: Play, rollout: str, policy: PolicyServer, *, agent_url: str) -> list[TurnTokens]:
    """The turns of a rollout, as the endpoint sampled them.

    They are those whose tokens stand in the row; where the row misses some, all calls under the rollout's name. Raises
    RolloutError where neither is to be had, and for tokens that the endpoint did not sample.
    """
    inline = len(play.turns)
    if inline and inline >= play.num_turns:
        return _recorded(play.turns, rollout, policy, agent_url)
    captured = policy.calls.turns(rollout)
    if len(captured) > inline:
        return list(captured)
    if inline:
        return _recorded(play.turns, rollout, policy, agent_url)
    if policy.calls.overflowed(rollout) or (play.incomplete_reason is not None and not play.usage.output_tokens):
        message = "the task's prompt leaves the model no room for an answer: the agent's row is incomplete, no token was sampled"
        raise RolloutError(FailureType.CONTEXT_OVERFLOW, message, terminal=True)
    if not policy.calls.num_calls:
        raise _never_called(policy, agent_url)
    message = (
        "the agent's row has no token ids, and none of the calls of the policy's endpoint came under the rollout's name; set "
        "return_token_id_information: true for the agent's model server (NeMo Gym's vllm_model), or have the agent call "
        f"{policy.url}/ng-rollout/<its _ng_rollout_id>/v1"
    )
    raise RolloutError(FailureType.AGENT, message, url=agent_url, blocks="refused")


def _recorded(turns: Sequence[TurnTokens], rollout: str, policy: PolicyServer, agent_url: str) -> list[TurnTokens]:
    """The calls that gave the turns of a row, which knows no versions."""
    calls = [policy.calls.find(turn.all_ids, rollout=rollout, logprobs=turn.logprobs) for turn in turns]
    found = [call.tokens(starts_segment=turn.starts_segment) for turn, call in zip(turns, calls, strict=True) if call is not None]
    if len(found) == len(turns):
        return found
    if not policy.calls.num_calls:
        raise _never_called(policy, agent_url)
    message = (
        f"{len(turns) - len(found)} of the rollout's {len(turns)} model calls have tokens that the policy's endpoint did not "
        f"sample, or no longer keeps; the agent's model server must ask {policy.base_url} alone, as its policy_base_url"
    )
    raise RolloutError(FailureType.AGENT, message, url=agent_url, blocks="refused")


def _never_called(policy: PolicyServer, agent_url: str) -> RolloutError:
    message = (
        "the agent ended a rollout, and never called the policy's endpoint: another model played; start the agent's model server "
        f"with policy_base_url={policy.base_url}"
    )
    return RolloutError(FailureType.AGENT, message, url=agent_url, blocks="refused")
