import pytest

from gym_bridge.errors import DataError
from gym_bridge.tokens.preference_samples import preference_pair

BINARY = {"prompt": "2+2?", "chosen": "4", "rejected": "It is 5"}
ASKED = [{"role": "system", "content": "Add."}, {"role": "user", "content": "2+2?"}]
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": {"a": 2, "b": 2}}}]}
TOOLS = [{"type": "function", "function": {"name": "add"}}]


def said(*answers):
    return [{"role": "assistant", "content": answer} for answer in answers]


def ranked(*completions):
    return [{"rank": rank, "completion": completion} for rank, completion in completions]


def trained(renderer, sequence):
    """The trained tokens, as text."""
    return renderer.tokenizer.decode(sequence.token_ids[sequence.train_mask].tolist())


def test_both_sides_answer_one_prompt_and_only_answers_train(renderer):
    chosen, rejected = preference_pair(BINARY, renderer)
    asked = [{"role": "user", "content": "2+2?"}]
    assert chosen.token_ids.tolist() == renderer.render_ids([*asked, *said("4")])
    assert rejected.token_ids.tolist() == renderer.render_ids([*asked, *said("It is 5")])
    assert (trained(renderer, chosen), trained(renderer, rejected)) == ("4<|im_end|>", "It is 5<|im_end|>")


def test_a_prompt_may_be_messages_whose_answers_do_not_train(renderer):
    prompt = [*ASKED, *said("3"), {"role": "user", "content": "No."}]
    chosen, _ = preference_pair({**BINARY, "prompt": prompt}, renderer)
    assert chosen.token_ids.tolist() == renderer.render_ids([*prompt, *said("4")])
    assert trained(renderer, chosen) == "4<|im_end|>"


def test_the_lower_rank_is_chosen_and_tool_outputs_do_not_train(renderer):
    good = [CALL, {"role": "tool", "content": "4"}, *said("4")]
    row = {"context": ASKED, "completions": ranked((3, said("5")), (1, good)), "tools": TOOLS}
    chosen, rejected = preference_pair(row, renderer)
    assert chosen.token_ids.tolist() == renderer.render_ids([*ASKED, *good], tools=TOOLS)
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 2}}\n</tool_call>'
    assert trained(renderer, chosen) == f"{call}<|im_end|>4<|im_end|>"
    assert trained(renderer, rejected) == "5<|im_end|>"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": []}, "no column 'prompt'; expected 'prompt', 'chosen' and 'rejected', or 'context' and .*, found messages"),
        ({"prompt": "a", "chosen": "b"}, "no column 'rejected'; .*, found chosen, prompt"),
        ({**BINARY, "chosen": ["4"]}, "column 'chosen' holds list; expected a text"),
        ({**BINARY, "prompt": 4}, "column 'prompt' holds int; expected messages"),
        ({**BINARY, "prompt": []}, "column 'prompt' holds list; expected messages"),
        ({**BINARY, "prompt": ["2+2?"]}, "every message needs a 'role'"),
        ({**BINARY, "rejected": "4"}, "chosen and rejected are equal, so that the pair prefers nothing; remove it"),
        ({"completions": ranked((0, said("a")), (1, said("b")))}, "no column 'context'"),
        ({"context": ASKED, "completions": ranked((0, said("a")))}, "'completions' is not two of"),
        ({"context": ASKED, "completions": [{"rank": 0}, {"rank": 1}]}, "'completions' is not two of"),
        ({"context": ASKED, "completions": "ab"}, "'completions' is not two of"),
        ({"context": ASKED, "completions": ranked((0, said("a")), ("1", said("b")))}, "'completions' is not two of"),
        ({"context": ASKED, "completions": ranked((1, said("a")), (1, said("b")))}, "both completions have rank 1; the preferred"),
        ({"context": ASKED, "completions": ranked((0, "a"), (1, "b"))}, "a completion is not a list of messages"),
        ({"context": ASKED, "completions": ranked((0, []), (1, said("b")))}, "no assistant message to train on"),
    ],
)
def test_a_row_that_is_no_pair_is_refused(renderer, row, message):
    with pytest.raises(DataError, match=message):
        preference_pair(row, renderer)
