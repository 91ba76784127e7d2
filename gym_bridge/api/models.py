"""The policy that plays: what a model's name means, and the endpoint through which it is asked."""

import os
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gym_bridge.errors import missing_extra
from gym_bridge.io.digests import digest_weights
from gym_bridge.io.run_directory import version_of_model
from gym_bridge.schemas.play_settings import PlaySettings

if TYPE_CHECKING:
    from gym_bridge.api.serving_model import ServeModelSettings
    from gym_bridge.policy.samplers.local import LocalSampler
    from gym_bridge.rollouts.http import HttpClient
    from gym_bridge.rollouts.models.model_http import ModelHttp
    from gym_bridge.schemas.seams import ModelEndpoint

DEFAULT_MAX_TOKENS = 512  # of one completion that is sampled as tokens, where neither the command nor the task says less
IN_PROCESS_MAX_BATCH = 64  # where the concurrency is auto


def model_directory(name: str) -> Path:
    """The Hugging Face directory that a model name means; a GGUF file is unpacked beside itself. Raises ConfigError."""
    from gym_bridge.hub import resolve

    path = resolve(name)
    if path.suffix != ".gguf":
        return path
    unpacked = path.with_suffix("")
    if (unpacked / "config.json").exists():  # told without torch, which takes seconds to import
        return unpacked
    try:
        from gym_bridge.policy.loading import unpack_gguf
    except ImportError:
        raise missing_extra(f"unpacking {path.name}", "train") from None
    from gym_bridge.tokens.chatml import TEMPLATE

    return unpack_gguf(path, unpacked, plain_chatml_template=TEMPLATE)


def model_identity(settings: PlaySettings) -> dict[str, Any]:
    """What tells one policy from another in a manifest."""
    if settings.played_by == "agent":
        return {"model": "the agent's own"}
    if settings.model_url or not settings.samples_here:
        return {"model": settings.model}
    return {"model_sha256": digest_weights(model_directory(settings.model))}


def nemo_gym_policy(settings: PlaySettings) -> list[str]:
    """Words of NeMo Gym's command line that make `--model-url` and `--model` the policy of its agents; none without a URL."""
    if not settings.model_url:
        return []
    key = "${oc.env:OPENAI_API_KEY}" if os.environ.get("OPENAI_API_KEY") else "none"
    return [
        f"++policy_base_url={settings.model_url[0]}",
        f"++policy_model_name={settings.model}",
        f"++policy_api_key={key}",
    ]


def public_url(url: str) -> str:
    """`url` without what may be secret: user, password and query."""
    from yarl import URL

    try:
        return str(URL(url).with_user(None).with_query(None))
    except ValueError:
        return url  # it cannot be reached, and whoever tries says so


@contextmanager
def open_sampler(settings: PlaySettings) -> "Iterator[LocalSampler]":
    """The in-process sampler of `--model`, for as long as the block lasts."""
    max_batch = settings.concurrency if isinstance(settings.concurrency, int) else IN_PROCESS_MAX_BATCH
    with closing(local_sampler(settings, max_batch=max_batch)) as sampler:
        yield sampler


def local_sampler(settings: "PlaySettings | ServeModelSettings", *, max_batch: int) -> "LocalSampler":
    """A sampler in this process, of the model that the settings name. Raises ConfigError, also without torch."""
    try:
        import torch
    except ImportError:
        raise missing_extra("playing a model in this process", "train") from None
    from gym_bridge.policy.loading import load_module, resolve_dtype
    from gym_bridge.policy.samplers.local import LocalSampler

    device, directory = torch.device(settings.device), model_directory(settings.model)
    module = load_module(directory, device=device, dtype=resolve_dtype(settings.compute_dtype, device))
    return LocalSampler(module, max_batch=max_batch, version=version_of_model(directory))


def sampled_endpoint(settings: PlaySettings, sampler: "LocalSampler") -> "ModelEndpoint":
    """The endpoint over the in-process sampler."""
    from gym_bridge.rollouts.models.sampled import SampledEndpoint
    from gym_bridge.tokens.renderers import load_renderer

    renderer = load_renderer(model_directory(settings.model), name=settings.renderer, options=settings.chat_template_kwargs)
    max_tokens = settings.max_output_tokens or DEFAULT_MAX_TOKENS
    return SampledEndpoint(sampler, renderer, max_tokens=max_tokens, model=settings.model)


def http_endpoint(settings: PlaySettings, client: "HttpClient") -> "ModelEndpoint":
    """The endpoint at `--model-url`, or the replicas."""
    from gym_bridge.rollouts.models.model_http import ModelHttp
    from gym_bridge.rollouts.models.replicas import Replicas

    endpoints = [
        _wire(
            settings,
            ModelHttp(
                url,
                client=client,
                api_key=os.environ.get("OPENAI_API_KEY"),
                timeout_s=settings.request_timeout_s,
                headers=_headers(settings.header),
                extra_body=settings.extra_body,
            ),
        )
        for url in settings.model_url
    ]
    return endpoints[0] if len(endpoints) == 1 else Replicas(endpoints)


def _wire(settings: PlaySettings, http: "ModelHttp") -> "ModelEndpoint":
    if settings.model_api == "tokens":
        return _tokens_endpoint(settings, http)
    from gym_bridge.rollouts.models.chat import ChatEndpoint
    from gym_bridge.rollouts.models.responses import ResponsesEndpoint

    kind = ChatEndpoint if settings.model_api == "chat" else ResponsesEndpoint
    return kind(http, settings.model, chat_template_kwargs=settings.chat_template_kwargs)


def _tokens_endpoint(settings: PlaySettings, http: "ModelHttp") -> "ModelEndpoint":
    from gym_bridge.rollouts.models.sampled import SampledEndpoint
    from gym_bridge.rollouts.models.vllm_sampler import VLLMSampler
    from gym_bridge.tokens.renderers import load_renderer

    tokenizer = model_directory(settings.tokenizer or settings.model)
    renderer = load_renderer(tokenizer, name=settings.renderer, options=settings.chat_template_kwargs)
    max_tokens = settings.max_output_tokens or DEFAULT_MAX_TOKENS
    return SampledEndpoint(VLLMSampler(http, settings.model), renderer, max_tokens=max_tokens, model=settings.model)


def _headers(given: Iterable[str]) -> dict[str, str]:
    named = (line.partition(":") for line in given)
    return {name: value.strip() for name, _, value in named}
