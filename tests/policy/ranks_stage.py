"""What several ranks do in tests of `policy.parallel`: python -m tests.policy.ranks_stage DIRECTORY, in each of them.

Each scenario is a function that every rank calls. Those to call stand in DIRECTORY/calls.json by a key; what they give on the first
rank is written to DIRECTORY/told.json. One start does many, for it takes longer than most of them.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

ENDS_AFTER_S = 400


def on_ranks(num_ranks, directory, calls):
    """What each of `calls`, [scenario, arguments ...] by a key, gives on `num_ranks` processes."""
    directory.mkdir()
    (directory / "calls.json").write_text(json.dumps(calls, default=str))
    command = launched(num_ranks, "-m", "tests.policy.ranks_stage", directory)
    subprocess.run(command, check=True, timeout=ENDS_AFTER_S, env={**os.environ, "PYTHONFAULTHANDLER": "1"})
    return json.loads((directory / "told.json").read_text())


def launched(num_ranks, *command):
    """The command line that runs a Python command on `num_ranks` processes."""
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)),
        *map(str, command),
    ]


def steps_and_gradients(ranks, directory, cut, dtype, num_steps, device="cpu"):
    """Losses of steps and, before them, gradients, by trainer, in shards and beside them in the first rank alone."""
    import numpy as np

    from gym_bridge.schemas.settings import DPOAlgorithm, GRPOSettings, SFTAlgorithm
    from gym_bridge.schemas.tokens import TrainingSequence
    from gym_bridge.trainers.dpo import preference_loss
    from gym_bridge.trainers.policy_loss import policy_loss
    from gym_bridge.trainers.sft import sft_loss
    from tests.policy.stage import open_policy

    def sequences(seed):
        draw = np.random.default_rng(seed)
        found = []
        for length in draw.integers(9, 30, size=6):
            ids, mask = draw.integers(3, 400, size=length).astype(np.int32), np.arange(length) >= 5
            columns = {
                name: np.where(mask, -draw.uniform(4, 7, size=length), np.nan).astype(np.float32)
                for name in ("rollout_logprobs", "ref_logprobs")
            }
            found.append(TrainingSequence(token_ids=ids, train_mask=mask, advantage=float(draw.normal()), **columns))
        return [found[:2], found[2:4], found[4:]]

    grpo = GRPOSettings.model_validate({"env": {"server": "arithmetic"}, "algorithm": {"preset": "grpo", "beta": 0.1}})
    losses = {"sft": sft_loss(SFTAlgorithm()), "dpo": preference_loss(DPOAlgorithm()), "grpo": policy_loss(grpo)}
    told = {}
    for name, loss_fn in losses.items():
        chosen = {
            "compute_dtype": dtype,
            "master_dtype": dtype,
            "device": device,
            "activation_checkpointing": ranks.size == 2 and "selective",
        }
        policies = {"shards": open_policy(directory, placement=sharded(ranks, device=device, **cut), **chosen, **cut)}
        if ranks.leads:
            policies["whole"] = open_policy(directory, **chosen, **alone(cut))
        gradients = {kind: _gradients(policy, sequences(0), loss_fn) for kind, policy in policies.items()}
        told[name] = {"gradients": _difference(**gradients) if ranks.leads else None}
        for kind, policy in policies.items():
            told[name][kind] = [policy.step(sequences(step), loss_fn).metrics for step in range(num_steps)]
    return told


def _gradients(policy, microbatches, loss_fn):
    """The whole gradient of each weight."""
    prepared = policy.prepare(microbatches, loss_fn)
    found = {name: policy.placement.whole(one.grad).clone() for name, one in policy.masters.masters.items()}
    prepared.drop()
    return found


def _difference(shards, whole):
    """The largest difference between both, in parts of the largest gradient."""
    worst = max(float((whole[name] - shards[name]).abs().max()) for name in whole)
    return worst / max(float(one.abs().max()) for one in whole.values())


def families(ranks, cut, dtype, *directories):
    """By directory the largest difference of log-probs from one process, or why it was refused; pushed weights are the same."""
    import torch

    from gym_bridge.errors import ConfigError, PolicyError
    from tests.policy.stage import open_policy

    told = {}
    for directory in directories:
        whole = open_policy(directory, compute_dtype=dtype)
        try:
            shards = open_policy(directory, placement=sharded(ranks, **cut), compute_dtype=dtype, **cut)
        except (ConfigError, PolicyError) as error:
            told[directory] = str(error)
            continue
        given = _sequences(5)
        pairs = zip(whole.logprobs(given), shards.logprobs(given), strict=True)
        told[directory] = max(float((one - other).abs().max()) for one, other in pairs)
        for (name, one), (other_name, other) in zip(whole.weights(), shards.weights(), strict=True):
            assert name == other_name
            assert torch.equal(one, other)
    return told


def heads(ranks, directory, cut):
    """Scores and values of a language model's first scalar head, as whole and as shards."""
    from tests.policy.stage import open_policy

    def read(head, **place):
        policy = open_policy(directory, head=head, **{**alone(cut), **place})
        return [one.tolist() for one in policy.logprobs(_sequences(5))], str(policy.module.get_parameter("score.weight").shape)

    return {head: [read(head), read(head, placement=sharded(ranks, **cut), **cut)] for head in ("scalar", "value")}


def no_whole_copy(ranks, directory, cut):
    """The share of the weights, gradients and moments that this rank holds."""
    from tests.policy.stage import mean_nll, open_policy

    policy = open_policy(directory, placement=sharded(ranks, **cut), **cut)
    policy.step([_sequences(4)], mean_nll)
    masters = policy.masters.masters.values()
    tensors = [*masters, *(one.grad for one in masters), *(policy.masters.optimizer.state[one]["exp_avg"] for one in masters)]
    return sum(one.to_local().numel() for one in tensors) / sum(one.numel() for one in tensors)


def bytes_of_steps(ranks, directory, cut, num_tokens):
    """Bytes of all tensors at the fullest moment of a step, in each rank."""
    import numpy as np

    from gym_bridge.schemas.tokens import TrainingSequence
    from tests.policy.stage import bytes_of_a_step, open_policy

    policy = open_policy(directory, placement=sharded(ranks, **cut), microbatch_tokens=num_tokens, **cut)
    ids = (np.arange(num_tokens) % 300 + 5).astype(np.int32)
    batch = [TrainingSequence(token_ids=ids, train_mask=np.arange(num_tokens) > 0)]
    return ranks.gathered(bytes_of_a_step(policy, [batch] * policy.placement.num_shares))


def blame(ranks, directory, cut):
    """Sequences that a loss blames in the shares of both ranks, and what the policy does afterwards."""
    import torch

    from gym_bridge.errors import NonFiniteLossError
    from gym_bridge.schemas.seams import Loss
    from tests.policy.stage import mean_nll, open_policy

    given = _sequences(4)

    def broken(logprobs, columns):
        factor = torch.where(columns.weights == 7, torch.nan, columns.weights)
        return Loss(-(logprobs * factor).sum() / columns.num_tokens)

    def broken_gradient(logprobs, columns):
        factor = torch.where(columns.weights == 7, torch.inf, 0.0)
        return Loss(-((logprobs - logprobs.detach()) * factor).nan_to_num(nan=0.0).sum() + 0 * logprobs.sum())

    policy = open_policy(directory, placement=sharded(ranks, **cut), **cut)
    before = [one.tolist() for one in policy.logprobs(given)]
    told = {}
    for name, loss_fn in (("loss", broken), ("gradient", broken_gradient)):
        for place in range(4):
            marked = [[_weighing(one, 7.0 if index == place else 1.0)] for index, one in enumerate(given)]
            try:
                policy.step(marked, loss_fn)
            except NonFiniteLossError as error:
                told[f"{name} {place}"] = [len(one.token_ids) for one in error.sequences]
    told["unchanged"] = before == [one.tolist() for one in policy.logprobs(given)]
    told["goes on"] = policy.step([[one] for one in given], mean_nll).metrics["loss"] > 0
    return told


def led(ranks, directory):
    """A leader that abandons pushed weights, sets the version, prepares and drops; the others follow."""
    from dataclasses import astuple

    from gym_bridge.api.vllm_sampling import _tied_head
    from gym_bridge.policy.frozen_model import FrozenModel
    from gym_bridge.policy.parallel_policy import ParallelFrozenModel, ParallelPolicy, follow, leader_of
    from gym_bridge.schemas.settings import PolicySettings
    from gym_bridge.trainers.dpo import Baseline
    from tests.policy.stage import mean_nll

    if not ranks.leads:
        assert follow(ranks) == "over"
        return {}
    plain = PolicySettings(compute_dtype="float32")
    policy = ParallelPolicy(ranks, Path(directory), plain)
    given = _sequences(4)
    before = [one.tolist() for one in policy.logprobs(given)]
    abandoned = policy.weights()
    next(abandoned)
    policy.prepare([given], mean_nll).drop()
    policy.version = 5
    told = {"same": before == [one.tolist() for one in policy.logprobs(given)], "none": policy.logprobs([])}
    told["stepped"] = policy.prepare([given], mean_nll).apply().metrics["loss"] > 0
    teachers = ParallelFrozenModel(ranks, Path(directory), plain), FrozenModel(Path(directory), plain)
    pairs = zip(*(one.logprobs(given) for one in teachers), strict=True)
    told["teacher"] = max(float((one - other).abs().max()) for one, other in pairs)
    factor = Baseline(0.5)
    losses = []
    for factor.value in (0.5, 1.0):  # a function that reads what changes from step to step
        losses.append(policy.evaluate([given], lambda values, columns: mean_nll(factor() * values, columns))["loss"])
    tied = _tied_head(policy)
    told |= {"version": policy.version, "ratio": losses[0] / losses[1], "tied": tied and list(astuple(tied))}
    abandoned = policy.weights()
    next(abandoned)
    leader_of(ranks).end("over")
    return told


def shard_missing(ranks, directory, checkpoint):
    """What a policy says of a checkpoint one of whose files of moments is gone, and whether its weights are as before."""
    from gym_bridge.errors import PolicyError
    from tests.policy.stage import mean_nll, open_policy

    policy = open_policy(directory, placement=sharded(ranks))
    policy.step([_sequences(4)], mean_nll)
    policy.write(Path(checkpoint), source_state={})
    told = {}
    for number in range(1, ranks.size + 1):
        if ranks.leads:
            (file,) = Path(checkpoint, "trainer", "optimizer").glob(f"shard-0000{number}-*")
            file.rename(file.with_suffix(".gone"))
        ranks.gathered(None)
        try:
            policy.load(Path(checkpoint))
        except PolicyError as error:
            told[number] = str(error)
        ranks.gathered(None)
        if ranks.leads:
            file.with_suffix(".gone").rename(file)
    ranks.gathered(None)
    policy.load(Path(checkpoint))
    return told


def files_of_a_model(ranks, directory, output):
    """The files that a model of several is written in."""
    from gym_bridge.policy import parallel
    from tests.policy.stage import open_policy

    usual, parallel.FILE_BYTES = parallel.FILE_BYTES, 60_000
    open_policy(directory, placement=sharded(ranks)).write(Path(output), source_state={})
    parallel.FILE_BYTES = usual
    return sorted(one.name for one in Path(output, "model").iterdir())


def alone(cut):
    """Those of the settings that one process has too."""
    return {name: value for name, value in cut.items() if name == "lora"}


def sharded(ranks, **settings):
    """A placement over all ranks."""
    from gym_bridge.policy.parallel import Sharded
    from gym_bridge.schemas.settings import PolicySettings

    return Sharded(ranks, PolicySettings(**settings))


def _sequences(count):
    import numpy as np

    from gym_bridge.schemas.tokens import TrainingSequence

    draw = np.random.default_rng(1)
    return [
        TrainingSequence(token_ids=draw.integers(3, 400, size=8 + index).astype(np.int32), train_mask=np.arange(8 + index) >= 4)
        for index in range(count)
    ]


def _weighing(sequence, weight):
    from dataclasses import replace

    return replace(sequence, weight=weight)


def main(directory):
    """One rank's part."""
    import torch

    from gym_bridge.policy.ranks import joined

    torch.set_num_threads(1)
    ranks = joined()
    calls = json.loads(Path(directory, "calls.json").read_text())
    told = {key: globals()[scenario](ranks, *args) for key, (scenario, *args) in calls.items()}
    if ranks.leads:
        Path(directory, "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1])
