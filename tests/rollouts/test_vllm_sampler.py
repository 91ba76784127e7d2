"""The sampler over vLLM's token wire, against a server that answers as vLLM 0.32 does, and as it must not."""

import asyncio
from typing import Any

import pytest

from gym_bridge.errors import ContextOverflowError, PolicyError
from gym_bridge.rollouts.models.model_http import EndpointError, ModelHttp
from gym_bridge.rollouts.models.vllm_sampler import VLLMSampler, seed_of
from gym_bridge.schemas.tokens import Completion, SampleKey, SamplingParams
from tests.rollouts.model_stage import Answer, ModelServer, answer, client, model_server
from tests.rollouts.vllm_stage import KEY, PLAIN, PROMPT, SENT

CUT = SamplingParams(max_tokens=6, temperature=0.7)


def completion(ids: Any = (5, 2), logprobs: Any = (-0.5, -0.25), *, prompt: Any = PROMPT, **choice: Any) -> dict[str, Any]:
    """What vLLM replies."""
    tokens = {"token_ids": ids, "prompt_token_ids": prompt, "logprobs": {"token_logprobs": logprobs}}
    return {"choices": [{"index": 0, "text": "", "finish_reason": "stop", **tokens, **choice}]}


def refusal(message: str) -> Answer:
    """A 400 of vLLM."""
    return answer({"error": {"message": message, "type": "BadRequestError", "code": 400}}, status=400)


def sampled(
    *answers: Answer, params: SamplingParams = PLAIN, times: int = 1, prompt: Any = PROMPT
) -> tuple[list[Any], ModelServer]:
    """The outcome of each of `times` calls after another, completions or errors, and the server."""

    async def run() -> tuple[list[Any], ModelServer]:
        async with model_server(*answers) as server, client() as pool:
            sampler = VLLMSampler(ModelHttp(server.url, client=pool, api_key=None, timeout_s=20, max_retries=0), "org/m")
            outcomes: list[Any] = []
            for _ in range(times):
                try:
                    outcomes.append(await sampler.sample(prompt, params, key=KEY))
                except (EndpointError, PolicyError) as error:
                    outcomes.append(error)
            return outcomes, server

    return asyncio.run(run())


def test_ids_and_logprobs_are_the_engines_the_stop_token_with_them():
    (found,), server = sampled(answer(completion()))
    assert found == Completion(ids=(5, 2), logprobs=(-0.5, -0.25), finish_reason="stop", policy_version=0)
    assert server.paths == ["/v1/completions"]


def test_every_setting_of_the_distribution_is_sent_so_that_none_comes_from_the_servers_defaults():
    _, server = sampled(answer(completion()))
    assert server.bodies == [
        {
            "model": "org/m",
            "prompt": [7, 8, 9],
            **SENT,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "add_special_tokens": False,
            "skip_special_tokens": False,
        }
    ]


def test_equal_keys_draw_alike_and_no_two_turns_do():
    seeds = {seed_of(SampleKey(0, task, rollout, turn)) for task in range(9) for rollout in range(9) for turn in range(9)}
    assert len(seeds) == 729
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(SampleKey(0, 1, 2, 3)) == seed_of(SampleKey(0, 1, 2, 3))


def test_a_completion_that_was_cut_off_says_so():
    (found,), _ = sampled(answer(completion(finish_reason="length")))
    assert found.finish_reason == "length"


def test_a_certain_token_that_rounding_puts_above_zero_has_logprob_zero():
    (found,), _ = sampled(answer(completion(logprobs=[1e-7, -0.25])))
    assert found.logprobs == (0.0, -0.25)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (completion(ids=None), "token_ids is no list of ids"),
        (completion(ids=[]), "token_ids is no list of ids"),
        (completion(ids=[5, "2"]), "token_ids is no list of ids"),
        (completion(ids=[5, True]), "token_ids is no list of ids"),
        (completion(logprobs=[-0.5]), "2 token ids and 1 log-probs"),
        (completion(logprobs=None), "2 token ids and no log-probs"),
        (completion(logprobs=[-0.5, None]), "log-prob 1 is None"),
        (completion(logprobs=[-0.5, -9999.0]), "log-prob 1 is -9999.0"),
        (completion(logprobs=[17.5, -0.5]), "log-prob 0 is 17.5; expected a finite number that is not above 0"),
        (completion(prompt=[1, 7, 8, 9]), "the prompt's ids are not those sent"),
        (completion(prompt=None), "the prompt's ids are not those sent"),
        (completion(finish_reason="abort"), "finish_reason 'abort'"),
        (completion(finish_reason=None), "finish_reason None"),
        ({"choices": []}, "no completion with token ids and log-probs"),
        ({"choices": [{"text": "x", "finish_reason": "stop", "logprobs": None}]}, "KeyError('token_ids')"),
        ({"choices": [{"token_ids": [5], "logprobs": None}]}, "no completion with token ids and log-probs"),
        ({"object": "error"}, "KeyError('choices')"),
    ],
)
def test_a_reply_that_cannot_be_exact_is_an_error_that_says_what_is_wrong(reply: Any, message: str):
    (error,), _ = sampled(answer(reply))
    assert isinstance(error, EndpointError)
    assert message in str(error)


def test_a_nan_among_the_logprobs_is_an_error():
    raw = b'{"choices": [{"finish_reason": "stop", "token_ids": [5], "logprobs": {"token_logprobs": [NaN]}}]}'
    (error,), _ = sampled(answer(raw=raw))
    assert isinstance(error, EndpointError)


def test_an_empty_prompt_is_refused_before_it_is_sent():
    (error,), server = sampled(answer(completion()), prompt=())
    assert str(error) == "the prompt is empty; give one token at least"
    assert server.bodies == []


def test_more_tokens_than_the_context_holds_are_lowered_to_its_room_from_then_on():
    too_many = refusal("max_tokens=6 cannot be greater than max_model_len=5. Please request fewer output tokens.")
    (first, second), server = sampled(too_many, answer(completion()), times=2)
    assert (first.ids, second.ids) == ((5, 2), (5, 2))
    assert [body["max_tokens"] for body in server.bodies] == [6, 2, 2]


def test_an_older_vllm_that_adds_prompt_and_completion_up_is_asked_again_for_what_fits():
    older = (
        "This model's maximum context length is 8 tokens. However, you requested 9 tokens (3 in the messages, 6 in the completion)."
    )
    (found,), server = sampled(refusal(older), answer(completion()))
    assert found.ids == (5, 2)
    assert [body["max_tokens"] for body in server.bodies] == [6, 5]


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 3 tokens. However, your prompt contains 3 input tokens, which exceeds this limit.",
        "max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)",
    ],
)
def test_a_prompt_that_leaves_no_room_is_an_overflow_and_asked_once(message: str):
    outcomes, server = sampled(refusal(message), times=2)
    assert [type(one) for one in outcomes] == [ContextOverflowError, ContextOverflowError]
    assert str(outcomes[0]) == "a prompt of 3 tokens fills the model's context of 3"
    assert len(server.bodies) == 1


def test_other_refusals_are_told_as_they_are():
    (error,), server = sampled(refusal("Token id 99999 is out of vocabulary"))
    assert isinstance(error, EndpointError)
    assert "Token id 99999 is out of vocabulary" in str(error)
    assert not error.context_overflow
    assert len(server.bodies) == 1


@pytest.mark.parametrize("params", [CUT, SamplingParams(max_tokens=6, top_p=0.9), SamplingParams(max_tokens=6, top_k=20)])
def test_where_the_distribution_is_not_the_models_the_server_is_asked_once_what_its_logprobs_are(params: SamplingParams):
    probe = completion(ids=[7], logprobs=[-13.2], prompt=[7], finish_reason="length")
    outcomes, server = sampled(answer(probe), answer(completion()), params=params, times=2)
    assert [one.ids for one in outcomes] == [(5, 2), (5, 2)]
    asked, *others = server.bodies
    assert (asked["prompt"], asked["allowed_token_ids"], asked["max_tokens"]) == ([7], [7], 1)
    assert [body["prompt"] for body in others] == [[7, 8, 9]] * 2
    assert (others[0]["temperature"], others[0]["top_p"], others[0]["top_k"]) == (params.temperature, params.top_p, params.top_k)


def test_logprobs_that_the_server_processed_are_refused_where_that_makes_a_difference():
    probe = completion(ids=[7], logprobs=[0.0], prompt=[7], finish_reason="length")
    (error,), server = sampled(answer(probe), params=CUT)
    assert isinstance(error, EndpointError)
    assert "start vLLM with --logprobs-mode raw_logprobs" in str(error)
    assert error.configuration
    assert len(server.bodies) == 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_at_temperature_one_and_zero_nothing_is_asked_beside(temperature: float):
    _, server = sampled(answer(completion()), params=SamplingParams(max_tokens=6, temperature=temperature))
    assert len(server.bodies) == 1
