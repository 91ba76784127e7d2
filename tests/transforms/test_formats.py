"""The columns of every format, on small rollouts written by hand and on real ones."""

import json
from pathlib import Path

import pytest

from gym_bridge.errors import ConfigError, DataError
from tests.transforms.stage import CALL, FORMATS, OUTPUT, line, rollouts, said, transformed

FIXTURES = Path(__file__).parents[2] / "fixtures" / "nemo_gym"
PROMPT = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Add 1."}]
CHAT_PROMPT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Add 1."}]
THOUGHT = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}
TURNS = [THOUGHT, CALL, OUTPUT, said("It is 1.")]
TOOL = {"type": "function", "name": "add", "parameters": {"type": "object"}, "description": None}
CHAT_TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CHAT_CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"n": 1}}}
IMAGE = [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,x"}, {"type": "input_text", "text": "What?"}]}]


def made(directory, to, output, *, prompt=PROMPT, tools=None, **settings):
    """The columns of the one row that a rollout with this output makes, and what became of it."""
    path = rollouts(directory, line(output=output, prompt=prompt, tools=tools))
    rows, report = transformed(path, to, bare=True, **settings)
    assert (report.rows_in, report.rows_used, report.dropped) == (1, 1, {})
    (row,) = rows
    return row


def paired(directory, to, chosen, rejected, *, prompt=PROMPT, tools=None, **settings):
    """The columns of a pair."""
    lines = (line(1.0, output=chosen, prompt=prompt, tools=tools), line(0.0, output=rejected, prompt=prompt, tools=tools))
    (row,), report = transformed(rollouts(directory, *lines), to, bare=True, **settings)
    assert (report.rows_used, report.dropped) == (2, {})
    return row


def refused(directory, to, output, reason, **settings):
    with pytest.raises(ConfigError, match=f"of 1 rows, 1 {reason}"):
        transformed(rollouts(directory, line(output=output, prompt=PROMPT)), to, **settings)


def test_a_response_row_is_the_prompt_and_the_final_text(tmp_path):
    assert made(tmp_path, "response", TURNS) == {"input": "Be brief.\n\nAdd 1.", "output": "It is 1."}
    assert made(tmp_path, "response", TURNS, flatten="final") == {"input": "Be brief.\n\nAdd 1.", "output": "It is 1."}


def test_a_transcript_tells_calls_and_outputs_in_the_text(tmp_path):
    told = made(tmp_path, "response", [said("Let me see."), *TURNS], flatten="transcript")["output"]
    assert told == 'Let me see.\nTool call: add({"n":1})\nTool output: 1\nIt is 1.'
    between = [said("Which?"), {"role": "user", "content": "Any."}, said("1.")]
    assert made(tmp_path, "response", between, flatten="transcript")["output"] == "Which?\nUser: Any.\n1."
    pair = paired(tmp_path, "dpo", TURNS, [said("2")], flatten="transcript")
    assert pair["chosen"] == 'Tool call: add({"n":1})\nTool output: 1\nIt is 1.'
    assert pair["rejected"] == "2"


def test_a_prompt_with_calls_of_its_own_loses_none_of_them(tmp_path):
    prompt = [{"role": "user", "content": "Add 1."}, CALL, OUTPUT, {"role": "user", "content": "Again."}]
    told = made(tmp_path, "response", [said("2")], prompt=prompt)["input"]
    assert told == 'Add 1.\n\nTool call: add({"n":1})\n\nTool output: 1\n\nAgain.'


@pytest.mark.parametrize("output", [[], [CALL], [CALL, OUTPUT], [THOUGHT], [said(" \n")], [said("a"), CALL, OUTPUT]])
def test_a_rollout_whose_last_word_is_no_text_has_no_final_answer(output, tmp_path):
    refused(tmp_path, "response", output, "no_answer", flatten="final")


def test_what_is_said_to_the_model_after_its_last_text_is_no_part_of_the_answer(tmp_path):
    ended = [said("Stand."), {"role": "user", "content": "You win."}]
    assert made(tmp_path, "response", ended)["output"] == "Stand."
    assert made(tmp_path, "response", ended, flatten="transcript")["output"] == "Stand."
    refused(tmp_path, "response", [said("Stand."), {"role": "user", "content": "More?"}, THOUGHT], "no_answer")


@pytest.mark.parametrize(
    "end", [[], [OUTPUT], [OUTPUT, THOUGHT], [OUTPUT, {"role": "user", "content": "done"}], [OUTPUT, said(" ")]]
)
def test_a_transcript_ends_with_the_models_last_text_or_call(end, tmp_path):
    told = made(tmp_path, "response", [said("Let me see."), CALL, *end], flatten="transcript")["output"]
    assert told == 'Let me see.\nTool call: add({"n":1})'
    pair = paired(tmp_path, "dpo", [CALL, *end], [said("2"), {"role": "user", "content": "No."}], flatten="transcript")
    assert (pair["chosen"], pair["rejected"]) == ('Tool call: add({"n":1})', "2")


@pytest.mark.parametrize("output", [[], [THOUGHT], [said(" \n")], [{"role": "user", "content": "more"}]])
def test_a_rollout_in_which_the_model_says_and_calls_nothing_has_no_transcript(output, tmp_path):
    refused(tmp_path, "response", output, "no_answer", flatten="transcript")


def test_an_sft_row_is_the_whole_chat(tmp_path):
    row = made(tmp_path, "sft", TURNS, tools=[TOOL])
    assert row == {
        "messages": [
            *CHAT_PROMPT,
            {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [CHAT_CALL]},
            {"role": "tool", "tool_call_id": "c1", "content": "1"},
            {"role": "assistant", "content": "It is 1."},
        ],
        "tools": [CHAT_TOOL],
    }


def test_arguments_may_stay_the_strings_that_the_model_wrote(tmp_path):
    row = made(tmp_path, "sft", [CALL | {"arguments": '{"n":  1.0}'}], arguments="string")
    assert row["messages"][-1]["tool_calls"][0]["function"]["arguments"] == '{"n":  1.0}'
    pair = paired(tmp_path, "preference", TURNS, [said("2")], arguments="string")
    assert pair["completions"][0]["completion"][0]["tool_calls"][0]["function"]["arguments"] == '{"n":1}'


def test_flat_tool_calls_are_name_and_arguments_alone(tmp_path):
    messages = made(tmp_path, "sft", TURNS, flat_tool_calls=True)["messages"]
    assert messages[2:4] == [
        {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [{"name": "add", "arguments": {"n": 1}}]},
        {"role": "tool", "content": "1"},
    ]


GUIDE_SFT = [
    {"role": "user", "content": "What's the weather in Paris?"},
    {"role": "assistant", "tool_calls": [{"function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}]},
    {"role": "tool", "content": "Temperature: 22°C, sunny"},
    {"role": "assistant", "content": "The weather in Paris is 22°C and sunny."},
]
GUIDE_DPO = {
    "prompt": [{"role": "user", "content": "Solve this math problem: 2x + 5 = 13"}],
    "chosen": [{"role": "assistant", "content": "I'll solve for x step by step:\n2x + 5 = 13\n2x = 13 - 5\n2x = 8\nx = 4"}],
    "rejected": [{"role": "assistant", "content": "The answer is x = 3"}],
}
"""What NeMo Gym's guide on offline training prints (NVIDIA, Apache-2.0)."""


def test_the_layouts_of_nemo_gyms_guide_are_reproduced(tmp_path):
    guide = FIXTURES / "user_guide.jsonl"
    rows, _ = transformed(guide, "sft", output=tmp_path / "o.jsonl", bare=True, arguments="string")
    said_by = [{name: value for name, value in one.items() if name != "tool_call_id"} for one in rows[0]["messages"]]
    for message in said_by:
        for call in message.get("tool_calls", ()):
            assert (call.pop("type"), call.pop("id")) == ("function", "call_1")
            assert message.pop("content") == ""
    assert said_by == GUIDE_SFT
    rows, _ = transformed(guide, "sft", output=tmp_path / "o.jsonl", bare=True, flat_tool_calls=True)
    call = {"name": "get_weather", "arguments": {"city": "Paris"}}
    assert rows[0]["messages"] == [GUIDE_SFT[0], {"role": "assistant", "content": "", "tool_calls": [call]}, *GUIDE_SFT[2:]]
    (row,), _ = transformed(guide, "dpo", output=tmp_path / "o.jsonl", bare=True, prompt="messages")
    texts = {side: GUIDE_DPO[side][0]["content"] for side in ("chosen", "rejected")}
    assert row == {"prompt": GUIDE_DPO["prompt"]} | texts
    (row,), _ = transformed(guide, "preference", output=tmp_path / "o.jsonl", bare=True)
    ranked = [{"rank": rank, "completion": GUIDE_DPO[side]} for rank, side in enumerate(("chosen", "rejected"))]
    assert row == {"context": GUIDE_DPO["prompt"], "completions": ranked}


def test_arguments_that_are_no_object_make_a_bad_row_only_where_objects_are_asked_for(tmp_path):
    bad = [CALL | {"arguments": "{n: 1}"}, OUTPUT, said("1")]
    path = rollouts(tmp_path, line(output=bad))
    for to in ("sft", "response"):
        assert made(tmp_path, to, bad, **({"arguments": "string"} if to == "sft" else {}))
    with pytest.raises(
        DataError, match=r"rollouts\.jsonl:1: arguments of call 'c1' are no JSON object: {n: 1}; drop such rows with"
    ):
        transformed(path, "sft")


def test_an_sft_row_has_tools_only_when_the_task_has_some(tmp_path):
    assert "tools" not in made(tmp_path, "sft", TURNS, tools=[])
    assert made(tmp_path, "sft", TURNS, tools=[TOOL])["tools"] == [CHAT_TOOL]


def test_an_sft_row_may_end_with_a_tool_call(tmp_path):
    assert made(tmp_path, "sft", [CALL])["messages"][-1] == {"role": "assistant", "content": "", "tool_calls": [CHAT_CALL]}


@pytest.mark.parametrize("end", [[OUTPUT], [OUTPUT, THOUGHT], [OUTPUT, {"role": "user", "content": "more"}, said(" ")]])
def test_an_sft_row_ends_with_the_models_last_text_or_call(end, tmp_path):
    last = {"role": "assistant", "content": "", "tool_calls": [CHAT_CALL]}
    assert made(tmp_path, "sft", [CALL, *end])["messages"] == [*CHAT_PROMPT, last]
    assert paired(tmp_path, "preference", [CALL, *end], [said("a"), *end[1:]])["completions"] == [
        {"rank": 0, "completion": [last]},
        {"rank": 1, "completion": [{"role": "assistant", "content": "a"}]},
    ]


@pytest.mark.parametrize("output", [[], [THOUGHT], [said(" ")], [{"role": "user", "content": "more"}]])
def test_a_rollout_in_which_the_model_says_and_calls_nothing_makes_no_sft_row(output, tmp_path):
    refused(tmp_path, "sft", output, "no_answer")


def test_reasoning_of_a_real_rollout_stays_with_the_call_it_led_to(tmp_path):
    rows, _ = transformed(FIXTURES / "xlam_fc.jsonl", "sft", output=tmp_path / "o.jsonl")
    messages = rows[0]["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert messages[2]["reasoning_content"].startswith("\nOkay, the user is asking about the details of the Ethereum blockchain")
    assert messages[2]["content"] == "\n\n"
    assert messages[2]["tool_calls"][0]["function"] == {"name": "web_chain_details", "arguments": {"chain_slug": "ethereum"}}
    assert messages[4]["reasoning_content"]
    assert messages[4]["content"].strip()


def test_real_rollouts_that_a_call_ended_are_cut_after_it(tmp_path):
    (row,), _ = transformed(FIXTURES / "circle_click.jsonl", "sft", output=tmp_path / "o.jsonl", bare=True)
    assert [message["role"] for message in row["messages"]] == ["system", "user", "assistant"]
    assert row["messages"][2]["tool_calls"][0]["function"] == {"name": "click", "arguments": {"x": 123, "y": 511}}
    rows, report = transformed(FIXTURES / "aviary.jsonl", "sft", output=tmp_path / "o.jsonl", bare=True)
    last = rows[1]["messages"][-1]
    assert (last["content"], last["tool_calls"][0]["function"]["arguments"]) == ("", {"answer": "5"})
    assert [message["role"] for message in rows[1]["messages"]][-3:] == ["assistant", "tool", "assistant"]
    assert report.dropped == {}


def test_a_dpo_row_is_three_strings_or_has_a_prompt_of_messages(tmp_path):
    expected = {"prompt": "Be brief.\n\nAdd 1.", "chosen": "It is 1.", "rejected": "2"}
    assert paired(tmp_path, "dpo", TURNS, [said("2")]) == expected
    assert paired(tmp_path, "dpo", TURNS, [said("2")], prompt=PROMPT) == expected
    (row,), _ = transformed(tmp_path / "rollouts.jsonl", "dpo", prompt="messages", bare=True)
    assert row == expected | {"prompt": CHAT_PROMPT}


def test_prompts_of_several_messages_that_become_one_text_are_counted(tmp_path):
    lines = [
        line(reward, f"{reward} {number}", task=number, prompt=prompt)
        for number, prompt in enumerate((PROMPT, "2+2?", PROMPT))
        for reward in (1.0, 0.0)
    ]
    path = rollouts(tmp_path, *lines, lines[0])
    for to, settings, count in (
        ("response", {}, 5),
        ("response", {"dedupe": "exact"}, 4),
        ("response", {"best_of": 1}, 2),
        ("grpo", {}, 2),
        ("dpo", {}, 2),
        ("dpo", {"prompt": "messages"}, 0),
        ("sft", {}, 0),
        ("tasks", {}, 0),
    ):
        assert transformed(path, to, **settings)[1].num_joined_prompts == count, (to, settings)
    told = transformed(path, "dpo")[1].describe()
    assert "prompts of several messages, joined by blank lines into one text: 2" in told


def test_a_preference_row_ranks_two_completions_of_messages(tmp_path):
    row = paired(tmp_path, "preference", TURNS, [said("2")], tools=[TOOL])
    assert row == {
        "context": CHAT_PROMPT,
        "completions": [
            {
                "rank": 0,
                "completion": [
                    {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [CHAT_CALL]},
                    {"role": "tool", "tool_call_id": "c1", "content": "1"},
                    {"role": "assistant", "content": "It is 1."},
                ],
            },
            {"rank": 1, "completion": [{"role": "assistant", "content": "2"}]},
        ],
        "tools": [CHAT_TOOL],
    }


def test_rows_tell_where_they_come_from_unless_they_are_to_be_bare(tmp_path):
    agent = {"agent_ref": {"name": "math"}, "_ng_rollout_index": 3}
    path = rollouts(tmp_path, line(1.0, task=7, **agent), b"\n", line(0.25, "5", task=7, **(agent | {"_ng_rollout_index": 4})))
    rows, _ = transformed(path, "sft")
    assert rows[1]["gym_bridge"] == {
        "task": "math:7",
        "rollout_index": 4,
        "reward": 0.25,
        "source": f"{path}:3",
        "num_prompt_messages": 1,
    }
    (pair,), _ = transformed(path, "dpo")
    assert pair["gym_bridge"] == {
        "task": "math:7",
        "rollout_index": [3, 4],
        "reward": [1.0, 0.25],
        "margin": 0.75,
        "source": [f"{path}:1", f"{path}:3"],
    }
    for to in FORMATS:
        assert all("gym_bridge" not in row for row in transformed(path, to, bare=True)[0])


def test_images_are_kept_where_messages_hold_them_and_counted_where_text_cannot(tmp_path):
    lines = line(1.0, prompt=IMAGE), line(0.0, "5", prompt=IMAGE), line(1.0, "text"), line(0.0, "other")
    path = rollouts(tmp_path, *lines)
    kept = [{"type": "image_url", "image_url": {"url": "data:,x"}}, {"type": "text", "text": "What?"}]
    rows, _ = transformed(path, "sft")
    assert rows[0]["messages"][0]["content"] == kept
    rows, _ = transformed(path, "preference")
    assert rows[0]["context"][0]["content"] == kept
    assert transformed(path, "response")[1].dropped == {"media": 2}
    assert transformed(path, "dpo")[1].dropped == {"media": 2}
    assert transformed(path, "grpo")[1].dropped == {"media": 1, "no_truth": 1, "spare": 1}
    assert transformed(path, "tasks")[1].rows_out == 2


def test_a_format_that_keeps_messages_can_be_compared_with_images_and_refusals_in_them(tmp_path):
    refusal = {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}
    lines = line(prompt=IMAGE), line(prompt=IMAGE), line(output=[refusal], prompt=IMAGE), line(prompt=IMAGE, output=[refusal])
    _, report = transformed(rollouts(tmp_path, *lines), "sft", dedupe="near")
    assert report.dropped == {"near_duplicate": 2}


@pytest.mark.parametrize(
    ("field", "option", "expected"),
    [
        ({"expected_answer": "four"}, {}, "four"),
        ({"expected_answer": 4}, {}, "4"),
        ({"expected_answer": 0}, {}, "0"),
        ({"expected_answer": 10**24}, {}, "1000000000000000000000000"),
        ({"expected_answer": False}, {}, "false"),
        ({"expected_answer": ["4", "four"]}, {}, '["4","four"]'),
        ({"expected_answer": {"x": 1.0}}, {}, '{"x":1.0}'),
        ({"truth": "t"}, {"output_field": "truth"}, "t"),
        ({"verifier": {"answer": "deep"}}, {"output_field": "verifier.answer"}, "deep"),
        ({"verifier.answer": "flat"}, {"output_field": "verifier.answer"}, "flat"),
    ],
)
def test_the_truth_of_a_grpo_row_is_the_tasks_reference_whatever_was_answered(field, option, expected, tmp_path):
    path = rollouts(tmp_path, line(0.0, "wrong", **field), line(1.0, "right", **field))
    (row,), report = transformed(path, "grpo", bare=True, **option)
    assert row == {"input": "2+2?", "output": expected}
    assert report.dropped == {"spare": 1}


@pytest.mark.parametrize("missing", [{}, {"expected_answer": None}, {"expected_answer": ""}, {"expected": "4"}])
def test_without_a_reference_only_a_verified_answer_is_the_truth(missing, tmp_path):
    right = line(0.9, "right", task=0, **missing)
    path = rollouts(tmp_path, line(0.5, "half", task=0, **missing), right, line(0.89, "wrong", task=1, **missing))
    rows, report = transformed(path, "grpo")
    assert [(row["output"], row["gym_bridge"]["source"]) for row in rows] == [("right", f"{path}:2")]
    assert report.dropped == {"no_truth": 1, "spare": 1}
    rows, report = transformed(path, "grpo", min_reward="0.5")
    assert [row["output"] for row in rows] == ["right", "wrong"]


def test_no_answer_that_a_limit_cut_off_or_that_is_no_text_is_the_truth(tmp_path):
    path = rollouts(tmp_path, line(1.0, "4 and", truncated=True, task=0), line(1.0, output=[CALL, OUTPUT], task=1))
    for flatten in ("final", "transcript"):
        with pytest.raises(ConfigError, match="2 no_truth; name the task's reference with --output-field"):
            transformed(path, "grpo", flatten=flatten)
    (row,), _ = transformed(rollouts(tmp_path, line(1.0, "4 and", truncated=True, expected_answer="4")), "grpo", bare=True)
    assert row["output"] == "4"


def test_a_task_row_is_the_tasks_fields_byte_for_byte_with_its_difficulty(tmp_path):
    task = b'{"responses_create_params": {"input":"2+2?", "temperature":1.0},"expected_answer":4.0, "tag" : "\\u00e9",'
    indices = b'"agent_ref":{"name":"a"},"_ng_task_index":5,"_ng_rollout_index":%d,'
    told = b'"response":{"output":[]},"truncated":false,"mask_sample":false,"reward":%s}\n'
    path = rollouts(tmp_path, *(task + indices % number + told % reward for number, reward in enumerate((b"1.0", b"0", b"0.5"))))
    _, report = transformed(path, "tasks")
    written = (tmp_path / "out.jsonl").read_bytes()
    fields = b'{"responses_create_params":{"input":"2+2?", "temperature":1.0},"expected_answer":4.0,'
    fields += b'"tag":"\\u00e9","agent_ref":{"name":"a"}'
    assert written.startswith(fields + b',"gym_bridge":{')
    note = json.loads(written)["gym_bridge"]
    assert (report.rows_used, report.rows_out) == (3, 1)
    assert note.pop("std_reward") == pytest.approx((1 / 6) ** 0.5)
    assert note == {
        "num_rollouts": 3,
        "num_failed": 0,
        "num_truncated": 0,
        "pass_rate": 1 / 3,
        "mean_reward": 0.5,
        "min_reward": 0.0,
        "max_reward": 1.0,
        "spread": 1.0,
        "agent": "a",
        "task_index": 5,
    }
    transformed(path, "tasks", bare=True)
    assert (tmp_path / "out.jsonl").read_bytes() == fields + b"}\n"


def test_a_task_row_is_the_materialized_one_with_its_difficulty(tmp_path):
    path = rollouts(tmp_path, line(1.0, task=3, extracted="4"), line(0.0, "5", task=3, extracted="5"))
    task = (
        b'{"_ng_task_index":3,"_ng_rollout_index":0,"responses_create_params":{"input": "2+2?"},"info":{"a" :1},"reward":"own"}\n'
    )
    rollouts(tmp_path, task, name="rollouts_materialized_inputs.jsonl")
    (row,), _ = transformed(path, "tasks")
    assert (row["gym_bridge"]["pass_rate"], row["gym_bridge"]["num_rollouts"]) == (0.5, 2)
    fields = b'{"responses_create_params":{"input": "2+2?"},"info":{"a" :1},"reward":"own"'
    assert (tmp_path / "out.jsonl").read_bytes().startswith(fields + b',"gym_bridge":{"num_rollouts":2,')
    transformed(path, "tasks", bare=True)
    assert (tmp_path / "out.jsonl").read_bytes() == fields + b"}\n"


def test_a_task_row_has_no_answer_of_a_rollout_in_whatever_field_it_stood(tmp_path):
    rows, _ = transformed(FIXTURES / "user_guide.jsonl", "tasks", output=tmp_path / "o.jsonl")
    assert all(row.keys().isdisjoint({"output", "response", "messages", "reward"}) for row in rows)
    assert [row["responses_create_params"]["input"][0]["content"][:4] for row in rows] == ["What", "Find", "What", "Solv"]
    assert [row["gym_bridge"]["num_rollouts"] for row in rows] == [1, 1, 1, 2]


def test_a_task_row_after_a_byte_order_mark_is_one_like_others(tmp_path):
    path = rollouts(tmp_path, b"\xef\xbb\xbf", line(verifier="v"))
    (row,), _ = transformed(path, "tasks", bare=True)
    assert row == {"responses_create_params": {"input": "2+2?"}, "verifier": "v"}
