import pickle
import re
import subprocess
from dataclasses import replace

import numpy as np
import orjson
import pytest

from gym_bridge.errors import NonFiniteLossError
from gym_bridge.schemas.seams import Loss
from gym_bridge.trainers.nan_batch import non_finite_batch_saved, save_batch
from tests.trainers import loop_stage
from tests.trainers.loop_stage import Repeated, checkpoints


@pytest.fixture
def sequences(training_sequence):
    first = replace(training_sequence("ppTT", [5, 6, 7, 2], advantage=0.5, old=-1.0), origin="sft.jsonl:3")
    return [first, replace(training_sequence("pT", [8, 9]), origin="sft.jsonl:9", weight=2.0)]


def test_a_batch_is_saved_as_plain_arrays_and_the_origins_of_its_rows(tmp_path, sequences):
    save_batch(tmp_path / "batch", sequences)
    with np.load(tmp_path / "batch" / "sequences.npz", allow_pickle=False) as saved:
        assert saved["lengths"].tolist() == [4, 2]
        assert saved["token_ids"].tolist() == [5, 6, 7, 2, 8, 9]
        assert saved["train_mask"].tolist() == [False, False, True, True, False, True]
        np.testing.assert_array_equal(saved["rollout_logprobs"], np.float32([np.nan, np.nan, -1, -1, np.nan, np.nan]))
        assert np.isnan(saved["ref_logprobs"]).all()
        assert (saved["advantages"].tolist(), saved["weights"].tolist(), saved["margins"].tolist()) == ([0.5, 1], [1, 2], [0, 0])
    assert orjson.loads((tmp_path / "batch" / "rows.json").read_bytes()) == [
        {"origin": "sft.jsonl:3", "num_tokens": 4, "num_trained": 2},
        {"origin": "sft.jsonl:9", "num_tokens": 2, "num_trained": 1},
    ]


def test_a_nan_loss_names_its_rows_saves_them_and_the_last_good_step(tiny_llama, tmp_path, sequences):
    steps = []

    def loss(logprobs, columns):
        steps.append(len(steps) + 1)
        value = -logprobs.sum() / columns.num_tokens
        return Loss(value * float("nan") if len(steps) == 3 else value)

    run = tmp_path / "run"
    place = run / "nan_batch_step_00000003"
    message = rf"the loss is nan at step 3.*sft\.jsonl:3, sft\.jsonl:9.*the batch is saved in {re.escape(str(place))}"
    with pytest.raises(NonFiniteLossError, match=message) as caught:
        loop_stage.play(tiny_llama, run, Repeated(*sequences), loss_fn=loss)
    assert len(pickle.loads(pickle.dumps(caught.value)).sequences) == 2
    assert checkpoints(run) == ["step_00000002"]
    assert len(orjson.loads((place / "rows.json").read_bytes())) == 2
    assert loop_stage.play(tiny_llama, run, Repeated(*sequences), max_steps=4).steps == 4


def test_a_batch_that_the_disk_refuses_is_told_beside_the_loss(tiny_disk, sequences):
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    with (
        pytest.raises(NonFiniteLossError, match=r"the loss is nan; the batch could not be saved in .*: Read-only file system"),
        non_finite_batch_saved(tiny_disk, step=1),
    ):
        raise NonFiniteLossError("the loss is nan", sequences=sequences)
