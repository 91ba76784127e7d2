"""A reward tried before it is trained on: answers whose worth is known, then a small batch of the policy's own."""

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from gym_bridge.api.collecting import collect
from gym_bridge.api.collectors import open_scripted_collector
from gym_bridge.api.known_tasks import answers_of, known_server
from gym_bridge.api.models import nemo_gym_policy
from gym_bridge.api.requested import task_settings_of, tasks_of
from gym_bridge.api.targets import open_target
from gym_bridge.errors import ServerError
from gym_bridge.io.jsonl import read_jsonl, written_aside
from gym_bridge.io.rollout_log import sibling
from gym_bridge.rollouts.known_answers import KnownAnswer
from gym_bridge.rollouts.plan import plan
from gym_bridge.rollouts.rows import AGENT_REF
from gym_bridge.schemas.play_settings import CollectSettings, PlaySettings
from gym_bridge.schemas.reward_check import CheckRewardSettings
from gym_bridge.schemas.rollouts import ROLLOUT_INDEX, TASK_INDEX, Rollout, Row

if TYPE_CHECKING:
    from gym_bridge.evaluation.reward_check import RewardCheck, Scored


def check_reward(settings: CheckRewardSettings, *, quiet: bool = True) -> "RewardCheck":
    """Play known answers and a batch of the policy; the verdict is written to `settings.report`.

    Rollouts of the batch go to a file beside it. No known answer is tried where an agent plays, which says what its own model says,
    and where a verifier compares the rollouts of a task. Raises ConfigError and DataError for wrong settings and tasks, ServerError
    when a server is gone.
    """
    from gym_bridge.evaluation.reward_check import Bounds
    from gym_bridge.evaluation.reward_check import check_reward as verdict

    rows = list(islice(tasks_of(settings.input), settings.limit))
    scored = [] if settings.played_by == "agent" else _tried(settings, rows)
    played, num_failed = _batch(settings, quiet=quiet)
    bounds = Bounds(**{name: getattr(settings, name) for name in Bounds.model_fields})
    found = verdict(scored, played, num_failed=num_failed, bounds=bounds)
    with written_aside(settings.report) as file:
        file.write(found.model_dump_json(indent=2).encode())
    return found


def _tried(settings: CheckRewardSettings, rows: Sequence[Row]) -> "list[Scored]":
    """Every known answer, verified; of those that differ in form alone the best."""
    from gym_bridge.evaluation.reward_check import Scored

    ours = known_server(settings)
    answers = [(task, answer) for task, row in enumerate(rows) for answer in answers_of(row, server=ours, others=rows)]
    rewards = _rewards(settings, rows, answers)
    if rewards is None:
        return []
    best: dict[tuple[int, str, str], list[float]] = defaultdict(list)
    for position, (task, answer) in enumerate(answers):
        best[task, answer.kind, answer.about] += [rewards[position]] if position in rewards else []
    return [
        Scored(task=task, kind=kind, about=about, reward=max(found, default=None)) for (task, kind, about), found in best.items()
    ]


def _rewards(settings: PlaySettings, rows: Sequence[Row], answers: Sequence[tuple[int, KnownAnswer]]) -> dict[int, float] | None:
    """The rewards of the answers by their positions; those that failed have none. None where no answer can be verified alone."""
    with ExitStack() as stack:
        log = Path(stack.enter_context(TemporaryDirectory())) / "nemo_gym.log"
        target = stack.enter_context(open_target(settings, log=log, policy=nemo_gym_policy(settings)))
        if target.cohorts:
            return None
        agent = target.default_agent or AGENT_REF["name"]
        tasks = [{**rows[task], TASK_INDEX: position} for position, (task, _) in enumerate(answers)]
        script = {position: [answer] for position, (_, answer) in enumerate(answers)}

        async def play() -> list[Rollout]:
            collector = open_scripted_collector(settings, target, script)
            try:
                planned = plan(tasks, num_repeats=1, settings=task_settings_of(settings, agent=agent))
                return [rollout async for rollout in collector.rollouts(planned)]
            finally:
                await collector.close()

        played = asyncio.run(play())
    return {one.key.task_index: one.reward for one in played if one.reward is not None}


def _batch(settings: CheckRewardSettings, *, quiet: bool) -> tuple[list[Row], int]:
    """The rollouts of the policy, and how many more failed."""
    output = sibling(settings.report, "_rollouts.jsonl")
    given: Mapping[str, Any] = {
        name: getattr(settings, name) for name in PlaySettings.model_fields if name in settings.model_fields_set
    }
    shared = {**given, "num_repeats": settings.num_repeats, "limit": settings.limit}
    try:
        result = collect(CollectSettings(**shared, input=settings.input, output=output, overwrite=True), quiet=quiet)
    except ServerError:
        failed = {(row[TASK_INDEX], row[ROLLOUT_INDEX]) for row in _rows(sibling(output, "_failures.jsonl"))}
        if not failed or _rows(output):
            raise
        return [], len(failed)
    return _rows(output), sum(result.ledger.failed.values())


def _rows(path: Path) -> list[Row]:
    return [row for _, row in read_jsonl(path)] if path.is_file() and path.stat().st_size else []
