"""What tests of vLLM's token wires ask for, and what of it every wire sends."""

from gym_bridge.rollouts.models.vllm_sampler import seed_of
from gym_bridge.schemas.tokens import SampleKey, SamplingParams

PROMPT = (7, 8, 9)
KEY = SampleKey(11, 4, 2, 1)
PLAIN = SamplingParams(max_tokens=6, stop_token_ids=(2,))
SENT = {
    "max_tokens": 6,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "seed": seed_of(KEY),
    "stop_token_ids": [2],
    "n": 1,
    "logprobs": 0,
}
"""With `PLAIN` and `KEY`: every setting of the distribution, so that none comes from the server's defaults."""
