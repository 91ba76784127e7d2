from hypothesis import given
from hypothesis import strategies as st

from gym_bridge.transforms.dpo import pair_rows
from gym_bridge.transforms.format import Example, Tally


def sibling(index, reward, *, task="t", prompt="2+2?", answer=None):
    row = {"input": prompt, "output": f"answer {index}" if answer is None else answer}
    return Example(row=row, task=task, rollout_index=index, reward=reward, source=f"r.jsonl:{index + 1}")


def paired(*examples, min_margin=0.0):
    tally = Tally()
    return list(pair_rows(examples, tally, min_margin=min_margin)), tally.rows_used, dict(tally.dropped)


def test_the_first_of_the_best_meets_the_first_of_the_worst():
    rows, used, dropped = paired(*(sibling(index, reward) for index, reward in enumerate([0.5, 1.0, 0.0, 1.0, 0.0])))
    assert rows == [
        {
            "prompt": "2+2?",
            "chosen": "answer 1",
            "rejected": "answer 2",
            "gym_bridge": {"task": "t", "rollout_index": [1, 2], "margin": 1.0, "source": ["r.jsonl:2", "r.jsonl:3"]},
        }
    ]
    assert (used, dropped) == (2, {"spare": 3})


def test_equal_rewards_are_a_tie():
    assert paired(sibling(0, 1.0), sibling(1, 1.0)) == ([], 0, {"tie": 2})


def test_a_lone_rollout_has_no_partner():
    assert paired(sibling(0, 1.0)) == ([], 0, {"no_partner": 1})


def test_a_margin_must_be_above_the_minimum():
    pair = sibling(0, 1.0), sibling(1, 0.5)
    assert paired(*pair, min_margin=0.5) == ([], 0, {"small_margin": 2})
    assert len(paired(*pair, min_margin=0.25)[0]) == 1


def test_one_answer_with_two_rewards_is_no_pair():
    assert paired(sibling(0, 1.0, answer="4"), sibling(1, 0.0, answer="4")) == ([], 0, {"same_answer": 2})


def test_rollouts_of_other_tasks_or_prompts_are_no_siblings():
    assert paired(sibling(0, 1.0), sibling(1, 0.0, task="u"), sibling(2, 0.0, prompt="2+3?")) == ([], 0, {"no_partner": 3})


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(-2, 2)), max_size=30), st.integers(0, 3))
def test_every_rollout_is_used_or_dropped_and_chosen_beats_rejected(members, min_margin):
    examples = [sibling(index, float(reward), task=task) for index, (task, reward) in enumerate(members)]
    rows, used, dropped = paired(*examples, min_margin=float(min_margin))
    assert used + sum(dropped.values()) == len(members)
    assert used == 2 * len(rows)
    assert len({row["gym_bridge"]["task"] for row in rows}) == len(rows)
    for row in rows:
        chosen, rejected = (examples[index] for index in row["gym_bridge"]["rollout_index"])
        rewards = [one.reward for one in examples if one.task == row["gym_bridge"]["task"]]
        assert (chosen.reward, rejected.reward) == (max(rewards), min(rewards))
        assert (row["chosen"], row["rejected"]) == (chosen.row["output"], rejected.row["output"])
        assert row["gym_bridge"]["margin"] == chosen.reward - rejected.reward > min_margin
