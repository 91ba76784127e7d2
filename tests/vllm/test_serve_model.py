"""`serve model --backend vllm`: a real vLLM behind our endpoint, which reports the tokens that it sampled."""

import json
import urllib.request
from typing import Any

import pytest

from gym_bridge.api.serving_model import ServeModelSettings, serve_model
from gym_bridge.tokens.renderers import load_renderer
from tests.vllm.playing import MODEL, ServedModel

pytestmark = pytest.mark.vllm


def posted(url: str, body: dict[str, Any]) -> dict[str, Any]:
    headers = {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers), timeout=120) as reply:
        return json.loads(reply.read())


def test_turns_are_vllms_and_each_prompt_extends_the_tokens_before_it(served: ServedModel):
    settings = ServeModelSettings(
        model=str(served.directory), backend="vllm", model_url=(served.url,), model_name=MODEL, max_output_tokens=24
    )
    renderer = load_renderer(served.directory)
    messages: list[dict[str, Any]] = [{"role": "user", "content": "What is 17 + 25?"}]
    with serve_model(settings) as policy:
        first = posted(f"{policy.base_url}/chat/completions", {"model": MODEL, "messages": messages})["choices"][0]["message"]
        messages += [first, {"role": "user", "content": "And 18 + 25?"}]
        second = posted(f"{policy.base_url}/chat/completions", {"model": MODEL, "messages": messages})["choices"][0]["message"]
    assert first["prompt_token_ids"] == renderer.render_ids(messages[:1], add_generation_prompt=True)
    for one in (first, second):
        ids, logprobs = one["generation_token_ids"], one["generation_log_probs"]
        assert 0 < len(ids) == len(logprobs) <= 24
        assert all(logprob <= 0 for logprob in logprobs)
    said = renderer.tokenizer.decode([one for one in first["generation_token_ids"] if one not in renderer.get_stop_token_ids()])
    assert said.strip() == first["content"].strip()
    before = first["prompt_token_ids"] + first["generation_token_ids"]
    assert second["prompt_token_ids"][: len(before)] == before
