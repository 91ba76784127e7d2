"""Calls and outputs paired, orders of roles, rendering, and masks of chats."""

import dataclasses

import pytest

from gym_bridge.tokens.audit.kinds import Conversation
from gym_bridge.tokens.audit.templates import RoleCheck
from gym_bridge.tokens.chatml import ChatMLRenderer
from gym_bridge.tokens.renderers import load_renderer
from tests.tokens.audit_stage import ANSWER, CHAT, USER, audit_rows, called, calling, output, returned, rollout, said, told
from tests.tokens.vocabularies import QWEN3_CONTROL, QWEN3_MARKS, write_vocabulary

ALTERNATES = (  # as Mistral's and Gemma's do
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{{ m['content'] }}{% endfor %}"
)
TEXT_ONLY = "{% for m in messages %}{% if m['role'] != 'tool' %}{{ m['role'] }}: {{ m['content'] }}\n{% endif %}{% endfor %}"
NO_TOOLS = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
FORGETS = (  # the reasoning of all answers but the last, as Qwen3's does
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] if loop.last else m['content'].split('</think>')[-1] }}\n{% endfor %}"
)
TOOLS = [{"type": "function", "function": {"name": "add"}}]


@pytest.fixture
def audit(renderer, tmp_path):
    return lambda *rows, **settings: audit_rows(tmp_path, renderer, *rows, **settings)


@pytest.fixture
def templated(tmp_path):
    def make(template, name="qwen3"):
        directory = tmp_path / "model"
        write_vocabulary(directory, QWEN3_CONTROL, QWEN3_MARKS, template=template, eos_token="<|im_end|>")
        return load_renderer(directory, name=name)

    return make


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([USER, ANSWER, output("a")], "message 2: tool output 'a' answers no open tool call"),
        ([USER, calling("a"), output("a"), output("a"), ANSWER], "message 3: tool output 'a' answers no open tool call"),
        ([USER, calling("a"), ANSWER], "message 2: assistant speaks before tool call 'a' is answered"),
        ([USER, calling("a", "b"), output("b"), USER, ANSWER], "message 3: user speaks before tool call 'a' is answered"),
        ([USER, calling("a", "a"), output("a"), ANSWER], "message 1: two tool calls have the id 'a'"),
        ([USER, calling(None), output(None)], "message 1: a tool call has no id"),
        ([USER, calling("a"), output(["a"]), ANSWER], "message 2: tool output ['a'] answers no open tool call"),
    ],
)
def test_a_call_or_an_output_without_its_partner_is_a_problem(audit, messages, message):
    report = audit(CHAT, {"messages": messages}, CHAT)
    assert [one for one in told(report) if one[1] == "pairing"] == [(2, "pairing", message)]
    assert report.num_problems == 1


def test_parallel_calls_answered_in_any_order_and_calls_at_the_end_are_paired(audit):
    report = audit({"messages": [USER, calling("a", "b"), output("b"), output("a"), calling("a")]})
    assert report.num_problems == 0


def test_an_output_of_a_rollout_that_answers_no_call_is_a_problem(audit):
    report = audit(
        rollout(0, items=[called("a"), returned("a"), said("4")]),
        rollout(1, items=[called("a"), returned("b"), said("4")]),
        rollout(2, items=[called("a"), said("4"), returned("a")]),
        rollout(3, items=[called("a")]),
    )
    assert told(report) == [
        (2, "pairing", "item 2: tool output 'b' answers no tool call of this rollout"),
        (3, "pairing", "message 2: assistant speaks before tool call 'a' is answered"),
    ]


def test_arguments_that_are_no_json_are_told_and_what_has_no_chat_form_is_a_problem(audit):
    report = audit(
        rollout(0, items=[called("a", "{x"), returned("a"), said("4")]),
        rollout(1, items=[{"type": "web_search_call"}, said("4")]),
    )
    assert told(report) == [
        (2, "chat", "item of type 'web_search_call' has no chat form"),
        (1, "arguments", "arguments of call 'a' are no JSON object: {x"),
    ]


@pytest.mark.parametrize(
    ("messages", "check", "message"),
    [
        ([USER, {**ANSWER, "tool_calls": [{"id": "a"}]}], "template", "tool call {'id': 'a'} is not of the form"),
        ([{"role": "user", "content": 5}, ANSWER], "template", "a user message holds int content"),
        ([USER], "mask", "no assistant message to train on"),
        ([USER, calling("a"), output("a")], "roles", "the last message is of role 'tool'; nothing answers it"),
    ],
)
def test_what_does_not_render_or_train_is_a_problem(audit, messages, check, message):
    ((line, found, text),) = [
        one for one in told(audit(CHAT, {"messages": messages})) if one[1] not in ("null_keys", "mixed_types")
    ]
    assert (line, found) == (2, check)
    assert text.startswith(message)


def test_an_order_of_roles_that_the_models_own_template_refuses_is_a_problem(templated, tmp_path):
    renderer = templated(ALTERNATES)
    two_users = {"messages": [USER, USER, ANSWER]}
    report = audit_rows(
        tmp_path, renderer, {"messages": [USER, ANSWER]}, CHAT, two_users, {"messages": [USER, ANSWER, USER, ANSWER]}
    )
    assert [(one.line, one.check) for one in report.problems] == [(2, "roles"), (3, "roles")]
    assert [one.message.split(": ", 1) for one in report.problems] == [
        ["the model's chat template refuses the roles system, user, assistant", "TemplateError: System role not supported"],
        ["the model's chat template refuses the roles user, user, assistant", "TemplateError: Conversation roles must alternate"],
    ]


@pytest.mark.parametrize("row", [{"input": "a", "output": "b"}, {"responses_create_params": {"input": [USER]}}])
def test_rows_of_other_kinds_are_rendered_by_the_models_own_template_too(templated, tmp_path, row):
    refuses = templated("{{ raise_exception('never') }}", name="default")
    (problem,) = audit_rows(tmp_path, refuses, row).problems
    assert (problem.check, problem.message.split(": ", 1)[1]) == ("roles", "TemplateError: never")


@pytest.mark.parametrize(
    ("template", "messages", "tools", "message"),
    [
        (TEXT_ONLY, [USER, calling("a"), output("a"), ANSWER], TOOLS, "leaves out message 2, of role 'tool'"),
        (NO_TOOLS, [USER, ANSWER], TOOLS, "leaves out the tools"),
        (NO_TOOLS, [USER, calling("a"), output("a"), ANSWER], None, "leaves out tool calls"),
    ],
)
def test_what_the_models_own_template_leaves_out_is_told(templated, tmp_path, template, messages, tools, message):
    report = audit_rows(tmp_path, templated(template), {"messages": messages, "tools": tools})
    assert (1, "unrendered", f"the model's chat template {message}") in told(report)
    assert report.num_problems == 0


@pytest.mark.parametrize(
    ("first", "is_told"),
    [
        ({**ANSWER, "content": "<think>\nsum\n</think>\n\n4"}, True),
        ({**ANSWER, "reasoning_content": "sum"}, False),  # which this template knows nothing of
        (ANSWER, False),
    ],
)
def test_a_template_that_rewrites_earlier_answers_is_told(templated, tmp_path, first, is_told):
    report = audit_rows(tmp_path, templated(FORGETS), {"messages": [USER, first, USER, ANSWER]}, {"messages": [USER, first]})
    message = (
        "the model's chat template writes message 1 otherwise once others follow; render whole conversations, not turn by turn"
    )
    assert [one for one in told(report) if one[1] == "history"] == [(1, "history", message)] * is_told
    assert report.num_problems == 0


def test_each_order_of_roles_is_rendered_once(templated):
    check = RoleCheck(templated(ALTERNATES))
    first = check.refusal(Conversation(messages=[USER, USER]))
    assert first is not None
    assert check.refusal(Conversation(messages=[{**USER, "content": "other"}, USER])) is first
    assert check.refusal(Conversation(messages=[USER, ANSWER])) is None


class Everything(ChatMLRenderer):
    """Takes every token for sampled."""

    def render(self, messages, **options):
        rendered = super().render(messages, **options)
        return dataclasses.replace(rendered, sampled_mask=[True] * len(rendered.token_ids))


def test_an_answer_that_trains_from_elsewhere_than_the_end_of_its_prompt_is_a_problem(renderer, tmp_path):
    report = audit_rows(tmp_path, Everything(renderer.tokenizer), {"messages": [USER, ANSWER]}, {"messages": [ANSWER]})
    begin, prompt = (len(renderer.render_ids([USER], add_generation_prompt=opened)) for opened in (False, True))
    wrong = f"message 1 trains from token {begin} on, and its prompt has {prompt} tokens"
    assert [one for one in told(report) if one[1] == "mask"] == [(1, "mask", wrong)]
    assert report.num_problems == 1


def test_every_sequence_of_a_rewritten_conversation_is_checked_and_shown(templated, tmp_path):
    thought = {**ANSWER, "content": "<think>\nsum\n</think>\n\n4"}
    report = audit_rows(tmp_path, templated(FORGETS), {"messages": [USER, thought, USER, ANSWER]}, show=1)
    trained = "".join(token for token, trains in report.shown[0].tokens if trains)
    assert trained.count("<think>\nsum\n</think>\n\n4") == 1
    assert trained.count("4") == 2


@pytest.mark.parametrize("name", ["qwen3", "qwen3.5"])  # the prompt of the second opens a thought, which this answer lacks
def test_an_answer_without_a_thought_and_one_without_a_prompt_are_in_order(tmp_path, name):
    control = (*QWEN3_CONTROL, *(f"<|{one}|>" for one in ("vision_start", "vision_end", "image_pad", "video_pad")))
    model = write_vocabulary(tmp_path / "model", control, QWEN3_MARKS, template=NO_TOOLS, eos_token="<|im_end|>")
    rows = ({"messages": [USER, ANSWER]}, {"messages": [ANSWER, USER, ANSWER]})
    report = audit_rows(tmp_path, load_renderer(model, name=name), *rows)
    assert [one for one in told(report) if one[1] in ("mask", "template")] == []


def test_where_the_template_alone_renders_an_answer_is_what_follows_its_prompt(templated, tmp_path):
    report = audit_rows(tmp_path, templated(NO_TOOLS, name="default"), {"messages": [USER, ANSWER]})
    assert (report.num_problems, [one[1] for one in told(report)]) == (0, [])
