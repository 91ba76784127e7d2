"""One rollout against a target and a policy, told check by check: what a collection would meet."""

import asyncio
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from gym_bridge.api.collectors import open_collector
from gym_bridge.api.models import nemo_gym_policy, open_sampler
from gym_bridge.api.requested import task_settings_of, tasks_of
from gym_bridge.api.targets import Target, open_target
from gym_bridge.errors import GymBridgeError
from gym_bridge.rollouts.plan import plan
from gym_bridge.rollouts.rows import AGENT_REF
from gym_bridge.schemas.checks import Check
from gym_bridge.schemas.play_settings import DoctorSettings
from gym_bridge.schemas.rollouts import FailureType, Rollout, Row

PLAIN_TASK: Row = {"responses_create_params": {"input": [{"role": "user", "content": "Say hello."}]}}

NO_TASK = "; the task was a greeting, pass --input with a task of this server"


def doctor(settings: DoctorSettings) -> list[Check]:
    """Find the target, then play one task there with the policy; the checks end with the first that fails.

    Raises ConfigError and DataError for a tasks file that cannot be read, and for an unknown server of ours.
    """
    checks: list[Check] = []
    task = _task(settings)
    with ExitStack() as stack:
        try:
            log = Path(stack.enter_context(TemporaryDirectory())) / "nemo_gym.log"
            target = stack.enter_context(open_target(settings, log=log, policy=nemo_gym_policy(settings)))
            checks.append(Check(name="target", ok=True, told=_describe(target)))
            sampler = stack.enter_context(open_sampler(settings)) if settings.samples_here else None
            agent = target.default_agent or AGENT_REF["name"]

            async def one() -> list[Rollout]:
                collector = open_collector(settings, target, sampler)
                try:
                    planned = plan([task], num_repeats=1, settings=task_settings_of(settings, agent=agent))
                    return [rollout async for rollout in collector.rollouts(planned)]
                finally:
                    await collector.close()

            checks += _told_by(asyncio.run(one())[-1], hint=NO_TASK if task is PLAIN_TASK else "")
        except GymBridgeError as error:
            checks.append(Check(name="rollout" if checks else "target", ok=False, told=str(error)))
    return checks


def _task(settings: DoctorSettings) -> Row:
    """The first task of `--input`, else one that our server makes, else a greeting."""
    if settings.input is not None:
        return next(tasks_of(settings.input))
    if settings.server is not None and "://" not in settings.server and not (settings.head_url or settings.gym_config):
        from gym_bridge.resource_servers.registry import make_tasks

        return next(iter(make_tasks(settings.server, num_tasks=1, seed=0, split="train")))
    return PLAIN_TASK


def _describe(target: Target) -> str:
    if target.by_agent:
        return "agents " + ", ".join(f"{name} at {url}" for name, url in target.by_agent.items())
    return f"{target.url} speaks {target.dialect}"


def _told_by(rollout: Rollout, *, hint: str) -> list[Check]:
    fields = rollout.row["gym_bridge"]
    checks = [
        Check(name=stage, ok=True, told=f"{seconds:.3f} s")
        for stage, seconds in fields["timings_s"].items()
        if stage != "total" and not (rollout.failure and stage == fields["failure"]["stage"])
    ]
    if rollout.failure is not None:
        stage = fields["failure"]["stage"]
        told = f"{rollout.failure.type}: {rollout.failure.message}"
        return [*checks, Check(name=stage, ok=False, told=told + (hint if rollout.failure.type is FailureType.INVALID_ROW else ""))]
    played = f"{fields['num_turns']} turns, {fields['num_tool_calls']} tool calls, {fields['stop_reason']}"
    return [*checks, Check(name="rollout", ok=True, told=f"reward {rollout.reward} after {played}")]
