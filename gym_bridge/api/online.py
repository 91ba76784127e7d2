"""Playing while training: tasks, the sampler of the policy, the collector over the environments, held-out tasks."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from gym_bridge.api.requested import tasks_of
from gym_bridge.api.runs import Begun, renderer_of
from gym_bridge.api.targets import Target, open_target
from gym_bridge.api.training_players import TrainingPlayers, open_training_player
from gym_bridge.api.training_target import open_training_target
from gym_bridge.config import Registry
from gym_bridge.errors import ConfigError, DataError
from gym_bridge.io.digests import digest_file, digest_json
from gym_bridge.io.rollout_log import RolloutLog
from gym_bridge.rollouts.models.whole_distribution import WholeDistribution, check_whole_distribution
from gym_bridge.schemas.play_settings import TargetSettings
from gym_bridge.schemas.rollouts import TASK_INDEX, Group, Row
from gym_bridge.schemas.seams import Sampler, WeightSync
from gym_bridge.schemas.settings import GRPOSettings

if TYPE_CHECKING:
    from gym_bridge.rollouts.collector import RolloutCollector
    from gym_bridge.schemas.seams import Policy, Validation
    from gym_bridge.trainers.fresh_weights import FreshWeights
    from gym_bridge.trainers.online_groups import FlightCount, OnlineGroups
    from gym_bridge.trainers.rollout_validation import PlayTasks


class TrainingSampler(Sampler, WeightSync, Protocol):
    """A sampler that plays the policy while it trains."""

    def ensure(self, version: int) -> None:
        """Every completion from now on is of `version`, whatever became of the sampler. Raises PolicyError when it cannot be."""
        ...

    def expect(self, num_in_flight: int) -> None:
        """Told how many rollouts are in flight, whenever that changes."""
        ...

    def close(self) -> None:
        """End what it runs."""
        ...


SAMPLERS: "Registry[Callable[..., TrainingSampler]]" = Registry(
    "sampler",
    {"local": "gym_bridge.policy.samplers.local:local_sampler", "vllm": "gym_bridge.api.vllm_sampling:vllm_sampler"},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingEnvironment:
    """Tasks that are played in one place."""

    name: str
    weight: float
    server: str | None
    """Another resource server than env.server."""
    tasks: tuple[Row, ...]
    """Each with a task index that no task of the run's other environments has."""
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Online:
    """What plays for a training."""

    stream: "OnlineGroups"
    sampler: TrainingSampler
    weights: "FreshWeights"
    validation: "Validation | None"


def read_environments(settings: GRPOSettings) -> tuple[TrainingEnvironment, ...]:
    """The tasks of data.train, or those that env.server makes.

    Raises ConfigError and DataError for tasks that cannot be read, or that would be sampled from another distribution than the
    policy.
    """
    if settings.data.train is None:
        return (_made(settings),)
    found: list[TrainingEnvironment] = []
    first = 0
    alone = len(settings.data.files) == 1
    for file in settings.data.files:
        tasks = tuple(_checked(file.path, first=None if alone else first))
        first += len(tasks)
        found.append(
            TrainingEnvironment(
                name=file.called, weight=file.weight, server=file.server, tasks=tasks, digest=digest_file(file.path)
            )
        )
    return tuple(found)


def open_online(
    settings: GRPOSettings, environments: Sequence[TrainingEnvironment], begun: Begun, model: Path, stack: ExitStack
) -> Online:
    """Open all that plays; `stack` closes it. Raises ConfigError and ServerError."""
    from gym_bridge.rollouts.models.sampled import SampledEndpoint
    from gym_bridge.trainers.fresh_weights import FreshWeights
    from gym_bridge.trainers.loop_thread import LoopThread
    from gym_bridge.trainers.online_groups import FlightCount, OnlineGroups
    from gym_bridge.trainers.task_stream import TaskSet, TaskStream

    env, policy, run = settings.env, begun.policy, begun.run.path
    assert env is not None, "tasks are played in an environment"
    identity = {"tasks_sha256": digest_json([one.digest for one in environments])}
    log = stack.enter_context(RolloutLog(run / "rollouts.jsonl", identity=identity))
    overlaps = settings.overlap.max_staleness > 0
    sampler = SAMPLERS.load(settings.sampler.kind)(_actor(policy), settings.sampler, overlaps=overlaps, run=run)
    stack.enter_context(closing(sampler))
    weights = FreshWeights(policy, sampler)
    renderer = renderer_of(settings.policy, model)
    whole = WholeDistribution(sampler)
    max_tokens, name = settings.sampler.max_tokens, settings.policy.model
    as_played, faithful = (SampledEndpoint(one, renderer, max_tokens=max_tokens, model=name) for one in (sampler, whole))
    target = stack.enter_context(open_training_target(settings, env, faithful, run=run))
    _check_cohorts(settings, target)
    targets = {one.name: _other(one.server, target, run, stack) for one in environments}
    names = {task[TASK_INDEX]: one.name for one in environments for task in one.tasks}
    players = TrainingPlayers(env=env, seed=settings.trainer.seed, trusted=policy.version > 0, targets=targets, names=names)
    collector = players.collector(open_training_player(players, settings, model.resolve(), faithful, whole))
    thread = stack.enter_context(closing(LoopThread()))
    thread.closers.append(collector.close)
    in_flight = FlightCount(lambda count: sampler.expect(min(count, env.concurrency)))
    stream = OnlineGroups(
        TaskStream(
            [TaskSet(name=one.name, weight=one.weight, tasks=one.tasks) for one in environments],
            seed=settings.trainer.seed,
            curriculum=settings.data.curriculum,
        ),
        collector,
        log,
        algorithm=settings.algorithm,
        overlap=settings.overlap,
        thread=thread,
        version=policy.version,
        in_flight=in_flight,
    )
    weights.settle = stream.settle
    validation = None
    if settings.data.validation:
        sets = _held_out_tasks(settings, environments)
        places = {name: targets.get(name, target) for name in sets}
        _check_validation(places.values())
        here = replace(players, targets=places, names={task[TASK_INDEX]: name for name, tasks in sets.items() for task in tasks})
        held_out = here.collector(here.player(as_played))
        thread.closers.append(held_out.close)

        def play(tasks: Sequence[Row], group_size: int) -> list[Group]:
            weights.renew()
            in_flight.add(len(tasks) * group_size)
            with whole.letting_greedy_pass():  # agents have one endpoint for both
                return thread.run(_played(held_out, tasks, group_size, in_flight))

        validation = _validation(settings, sets, play, run)
    return Online(stream=stream, sampler=sampler, weights=weights, validation=validation)


async def _played(collector: "RolloutCollector", tasks: Sequence[Row], group_size: int, in_flight: "FlightCount") -> list[Group]:
    groups = collector.groups(tasks, group_size=group_size, told=lambda _, num_ended: in_flight.add(-num_ended))
    return [group async for group in groups]


def _actor(policy: "Policy") -> "Policy":
    """The policy without the value model beside it."""
    from gym_bridge.policy.actor_critic import ActorCritic

    return policy.policy if isinstance(policy, ActorCritic) else policy


def _other(server: str | None, target: Target, run: Path, stack: ExitStack) -> Target:
    """The target of an environment: the run's own, or that of another resource server."""
    if server is None:
        return target
    return stack.enter_context(open_target(TargetSettings(server=server), log=run / "nemo_gym.log"))


def _check_cohorts(settings: GRPOSettings, target: Target) -> None:
    if settings.sampler.lockstep and target.cohorts:
        raise ConfigError(
            "sampler.lockstep waits until all rollouts in flight ask for a turn, and members of a cohort wait for each other's "
            "verification; leave it out"
        )
    size = target.cohort_size
    if size is not None and target.cohorts and settings.algorithm.group_size != size:
        raise ConfigError(
            f"the verifier compares {size} rollouts of a task, and answers none before all have come: "
            f"set algorithm.group_size={size}"
        )


def _check_validation(places: Iterable[Target]) -> None:
    if any(one.cohorts for one in places):
        raise ConfigError("data.validation plays a greedy rollout alone, which a verifier that compares siblings never answers")


def _held_out_tasks(settings: GRPOSettings, environments: Sequence[TrainingEnvironment]) -> dict[str, tuple[Row, ...]]:
    """The tasks of data.validation, each with an index that no other of them has where they are played in several places."""
    files = settings.data.validation
    if all(one.server is None for one in environments):
        return {name: tuple(tasks_of(path)) for name, path in files.items()}
    sets: dict[str, tuple[Row, ...]] = {}
    for name, path in files.items():
        first = sum(map(len, sets.values()))
        sets[name] = tuple({**row, TASK_INDEX: first + position} for position, row in enumerate(tasks_of(path)))
    return sets


def _validation(settings: GRPOSettings, sets: Mapping[str, Sequence[Row]], play: "PlayTasks", run: Path) -> "Validation":
    from gym_bridge.trainers.rollout_validation import RolloutValidation

    return RolloutValidation(sets, play, repeats=settings.data.validation_repeats, output=run / "validation")


def _made(settings: GRPOSettings) -> TrainingEnvironment:
    """Tasks that the resource server of env.server makes."""
    from gym_bridge.resource_servers.registry import make_tasks

    env = settings.env
    assert env is not None, "tasks are played in an environment"
    assert env.server is not None, "settings without tasks name a server"
    made = make_tasks(env.server, num_tasks=settings.data.num_tasks, seed=settings.trainer.seed, split="train")
    tasks = tuple({**row, TASK_INDEX: row.get(TASK_INDEX, position)} for position, row in enumerate(made))
    return TrainingEnvironment(name=env.server, weight=1.0, server=None, tasks=tasks, digest=digest_json(tasks))


def _checked(path: Path, *, first: int | None) -> Iterator[Row]:
    """The tasks of a file, numbered on from `first` where it is not alone."""
    for position, row in enumerate(tasks_of(path)):
        params = row.get("responses_create_params")
        try:
            check_whole_distribution(params if isinstance(params, dict) else {})
        except DataError as error:
            raise DataError(str(error), path=path, line=position + 1) from None
        yield row if first is None else {**row, TASK_INDEX: first + position}
