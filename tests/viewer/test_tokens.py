"""The token view: what trained, how far sampler and trainer were apart, with what advantage and of which policy version."""

import json
from pathlib import Path

import numpy as np
import pytest

from gym_bridge.errors import DataError
from gym_bridge.io.step_records import write_step
from gym_bridge.io.token_store import TokenStore
from gym_bridge.schemas.rollouts import RolloutKey
from gym_bridge.schemas.seams import TrainStep
from gym_bridge.schemas.tokens import TrainingSequence, TurnTokens
from gym_bridge.tokens.tokenizer import Tokenizer
from gym_bridge.viewer.token_view import RecordedSequences, token_view
from tests.conftest import write_chatml_tokenizer
from tests.viewer.stage import page_of, row, write

KEY = RolloutKey(3, 1)
NAN = float("nan")


def turn(prompt: list[int], completion: list[int], logprobs: list[float], version: int, *, starts: bool = False) -> TurnTokens:
    return TurnTokens(
        prompt_ids=tuple(prompt),
        completion_ids=tuple(completion),
        logprobs=tuple(logprobs),
        policy_version=version,
        starts_segment=starts,
    )


TURNS = (turn([5, 6], [7, 8], [-0.5, -1.0], 4, starts=True), turn([5, 6, 7, 8, 9], [10], [-0.25], 5))


def sequence(origin: str, *, ids: list[int], old: list[float] | None, advantage: float = 0.75) -> TrainingSequence:
    mask = np.array([False, False, True, True, False, True])
    rollout = np.array([NAN, NAN, -0.5, -1.0, NAN, -0.25], dtype=np.float32)
    return TrainingSequence(
        token_ids=np.array(ids, dtype=np.int32),
        train_mask=mask,
        rollout_logprobs=rollout,
        old_logprobs=None if old is None else np.array(old, dtype=np.float32),
        advantage=advantage,
        origin=origin,
    )


def test_tokens_know_where_they_come_from(tmp_path: Path):
    view = token_view(KEY, TURNS, None, None)
    (segment,) = view.segments
    assert [(token.id, token.trained, token.logprob, token.version) for token in segment] == [
        (5, False, None, None),
        (6, False, None, None),
        (7, True, -0.5, 4),
        (8, True, -1.0, 4),
        (9, False, None, None),
        (10, True, -0.25, 5),
    ]
    assert (view.num_tokens, view.num_trained, view.mean_gap, view.step) == (6, 3, None, None)
    assert view.mean_logprob == pytest.approx(-1.75 / 3)


def test_a_recorded_step_tells_advantages_and_the_gap(tmp_path: Path):
    steps = tmp_path / "steps"
    ids = [5, 6, 7, 8, 9, 10]
    other = sequence("rollout 3-2", ids=ids, old=None)
    own = sequence("rollout 3-1", ids=ids, old=[NAN, NAN, -0.75, -0.5, NAN, -0.25])
    write_step(steps, 1, TrainStep(microbatches=[[other]], metrics={}))
    write_step(steps, 2, TrainStep(microbatches=[[other], [own]], metrics={}))
    recorded = RecordedSequences(steps)
    assert recorded.find(RolloutKey(9, 9)) is None
    view = token_view(KEY, TURNS, None, recorded.find(KEY))
    (segment,) = view.segments
    assert view.step == 2
    assert [token.gap for token in segment] == [None, None, 0.25, -0.5, None, 0.0]
    assert [token.advantage for token in segment] == [None, None, 0.75, 0.75, None, 0.75]
    assert view.mean_gap == pytest.approx((np.exp(0.25) + np.exp(0.5) + 1) / 3)
    write_step(steps, 3, TrainStep(microbatches=[[sequence("rollout 8-0", ids=ids, old=None)]], metrics={}))
    found = recorded.find(RolloutKey(8, 0))  # recorded since the last look
    assert found is not None
    assert found[0] == 3


def test_a_damaged_record_is_told_each_time_and_forgotten_once_it_is_whole(tmp_path: Path):
    steps = tmp_path / "steps"
    ids = [5, 6, 7, 8, 9, 10]
    write_step(steps, 1, TrainStep(microbatches=[[sequence("rollout 3-1", ids=ids, old=None)]], metrics={}))
    whole = next(steps.glob("*.npz")).read_bytes()
    next(steps.glob("*.npz")).write_bytes(whole[:100])
    recorded = RecordedSequences(steps)
    for _ in range(2):
        with pytest.raises(DataError, match="no record of a step"):
            recorded.find(KEY)
    next(steps.glob("*.npz")).write_bytes(whole)
    assert recorded.find(KEY) is not None


def test_a_rewritten_history_is_several_segments():
    view = token_view(KEY, (TURNS[0], turn([5, 6, 9], [10], [-0.25], 5, starts=True)), None, None)
    assert [[token.id for token in segment] for segment in view.segments] == [[5, 6, 7, 8], [5, 6, 9, 10]]
    assert [[token.version for token in segment] for segment in view.segments] == [[None, None, 4, 4], [None, None, None, 5]]


def test_a_character_of_several_tokens_has_its_text_at_the_last_of_them(tmp_path: Path):
    write_chatml_tokenizer(tmp_path)
    tokenizer = Tokenizer(tmp_path)
    ids = tokenizer.encode("aé日b")
    view = token_view(KEY, (turn([1], ids, [-1.0] * len(ids), 0, starts=True),), tokenizer, None)
    texts = [token.text for token in view.segments[0]]
    assert len(texts) == 1 + len(ids)
    assert "".join(texts[1:]) == "aé日b"
    assert "" in texts


def stage(directory: Path) -> Path:
    """A run with one rollout, its tokens, and a recorded step."""
    run = directory / "run"
    path = write(run / "rollouts.jsonl", row(3, 1, 1.0, "x", num_turns=2, policy_versions=[4, 5]))
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "reward": 0.5, "loss": 0.1, "step_s": 1.0}) + "\n")
    TokenStore(run / "rollouts.tokens").append([((3, 1, 0), TURNS)])
    own = sequence("rollout 3-1", ids=[5, 6, 7, 8, 9, 10], old=[NAN, NAN, -0.75, -0.5, NAN, -0.25], advantage=-0.5)
    write_step(run / "steps", 7, TrainStep(microbatches=[[own]], metrics={}))
    write_chatml_tokenizer(run / "checkpoints" / "step_00000001" / "model")
    (run / "checkpoints" / "step_00000001" / "model" / "config.json").write_text("{}")
    return path


def test_the_page_shows_each_token_with_its_numbers(tmp_path: Path):
    with page_of(stage(tmp_path).parent) as page:
        rollout = page.text("/files/0/rollouts/1")
        assert "/files/0/rollouts/1/tokens" in rollout
        text = page.text("/files/0/rollouts/1/tokens?colour=gap")
    assert "trained in step" in text
    assert "id 8, trained, log-prob -1 (p 0.368), gap -0.5, advantage -0.5, policy version 4" in text
    assert "id 9, not trained" in text
    assert text.count('class="t h3"') == 2  # the gaps of 0.25 and -0.5 nats
    assert "No tokenizer" not in text  # the checkpoint's was found


def test_a_file_that_is_named_alone_knows_the_run_that_it_lies_in(tmp_path: Path):
    path = stage(tmp_path)
    (path.parent / "config.yaml").write_text("trainer: {}\n")
    with page_of(path) as page:
        assert "trained in step" in page.text("/files/0/rollouts/1/tokens")


def test_what_is_not_known_is_said(tmp_path: Path):
    path = write(tmp_path / "R.jsonl", row(3, 1, 1.0, "x", num_turns=2), row(3, 2))
    TokenStore(tmp_path / "R.tokens").append([((3, 1, 0), TURNS)])
    with page_of(path) as page:
        text = page.text("/files/0/rollouts/1/tokens")
        assert "No tokenizer was found" in text
        assert "trainer.record=true" in text
        status, text = page.get("/files/0/rollouts/2/tokens")
        assert (status, "no token ids were reported" in text) == (400, True)
        status, text = page.get("/files/0/rollouts/1/tokens?colour=blue")
        assert (status, "there is no colour" in text) == (400, True)


def test_long_rollouts_come_in_pages(tmp_path: Path):
    ids = list(range(100, 10_000))
    path = write(tmp_path / "R.jsonl", row(0, 0, 1.0, "x"))
    TokenStore(tmp_path / "R.tokens").append([((0, 0, 0), (turn([1], ids, [-1.0] * len(ids), 0, starts=True),))])
    with page_of(path) as page:
        first, last = page.text("/files/0/rollouts/1/tokens"), page.text("/files/0/rollouts/1/tokens?page=3")
    assert ("id 100," in first, "id 9999," in first) == (True, False)
    assert ("id 100," in last, "id 9999," in last) == (False, True)
