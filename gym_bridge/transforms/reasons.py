"""Why a rollout is in no dataset: the reasons of a transform, each with what it means."""

from collections.abc import Mapping
from types import MappingProxyType

REASONS: Mapping[str, str] = MappingProxyType(
    {
        "failure": "Something went wrong, so that it has no reward.",
        "masked": "Its environment says not to train on it.",
        "not_a_rollout": "The line holds no rollout: no output of a model.",
        "not_verified": "Verification was left out on purpose, so its reward says nothing.",
        "no_reward": "It has an output, but no reward.",
        "no_prompt": "It has no prompt.",
        "truncated": "A limit ended it, not the model or the task.",
        "low_reward": "Its reward is below --min-reward; in pairs, that of the chosen answer is.",
        "where": "--where does not hold for it.",
        "where_unknown": "It lacks a column that --where asks for.",
        "where_group": "--where-group does not hold for its task.",
        "where_group_unknown": "Its task lacks a column that --where-group asks for.",
        "media": "It has images or audio, which this format cannot hold.",
        "bad_row": "The line cannot be read or converted.",
        "no_answer": "It has, or ends with, nothing that this format takes for an answer.",
        "no_truth": "Its task has no reference answer, and it gives no verified one.",
        "duplicate": "It repeats an earlier rollout: the same task and the same answer.",
        "near_duplicate": "It shares most of its text with an earlier rollout.",
        "not_among_best": "Enough rollouts of its task have a higher reward (--best-of).",
        "spare": "It could be used as well, but another rollout of its task was taken.",
        "no_partner": "No other rollout of its task may be used, so it has nobody to be paired with.",
        "tie": "All its siblings have the same reward.",
        "small_margin": "No sibling's reward differs by more than --min-margin.",
        "same_answer": "The siblings with another reward gave the same answer.",
    }
)
"""One sentence for each value of `dropped`. A format of one's own may add reasons."""


def meaning_of(reason: str) -> str:
    """What `reason` means."""
    return REASONS.get(reason, "The format takes no such rollout.")
