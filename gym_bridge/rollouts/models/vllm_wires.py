"""vLLM's two token wires: what is sent, and where in a reply the tokens stand. Both take and give token ids."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """The parts of a reply, as the server wrote them: nothing of it is checked yet."""

    ids: Any
    logprobs: Any
    finish_reason: Any
    prompt_ids: Any
    labels: tuple[str, ...] = ()
    """Names of the weights that sampled, in order: more than one where they changed on the way."""


class Wire(Protocol):
    """One way to ask vLLM for tokens."""

    route: str

    def payload(self, prompt: list[int], settings: Mapping[str, Any]) -> dict[str, Any]:
        """The body of a request; `settings` are vLLM's sampling parameters."""
        ...

    def read(self, reply: Mapping[str, Any]) -> Sampled:
        """The parts of a reply. Raises KeyError, TypeError or ValueError for what is none."""
        ...


class CompletionsWire:
    """`/v1/completions`, which every vLLM offers, under an address that ends in `/v1`. It does not say which weights sampled."""

    route = "completions"

    def __init__(self, model: str | None):
        self.model = model

    def payload(self, prompt: list[int], settings: Mapping[str, Any]) -> dict[str, Any]:
        """The body of a request."""
        return {
            "model": self.model,
            "prompt": prompt,
            **settings,
            "n": 1,
            "logprobs": 0,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "add_special_tokens": False,
            "skip_special_tokens": False,
        }

    def read(self, reply: Mapping[str, Any]) -> Sampled:
        """The parts of a reply."""
        (choice,) = reply["choices"]
        return Sampled(
            ids=choice["token_ids"],
            logprobs=choice["logprobs"]["token_logprobs"],
            finish_reason=choice["finish_reason"],
            prompt_ids=choice["prompt_token_ids"],
        )


class GenerateWire:
    """`/inference/v1/generate` of a server with `--enable-scale-out`: it says which weights sampled each token.

    `model` names an adapter; None is the model itself. Without `seeded` the server draws on, as it was started: on a CPU, vLLM 0.32
    dies of a seeded request whose prompt it computes in parts ("CPU Generator does not use offset").
    """

    route = "inference/v1/generate"

    def __init__(self, model: str | None, *, seeded: bool = True):
        self.model, self.seeded = model, seeded

    def payload(self, prompt: list[int], settings: Mapping[str, Any]) -> dict[str, Any]:
        """The body of a request."""
        chosen = {name: value for name, value in settings.items() if self.seeded or name != "seed"}
        params = {**chosen, "n": 1, "logprobs": 0, "detokenize": False}
        named = {} if self.model is None else {"model": self.model}
        return {**named, "token_ids": prompt, "return_token_ids": True, "sampling_params": params}

    def read(self, reply: Mapping[str, Any]) -> Sampled:
        """The parts of a reply."""
        (choice,) = reply["choices"]
        return Sampled(
            ids=choice["token_ids"],
            logprobs=[one["logprob"] for one in choice["logprobs"]["content"]],
            finish_reason=choice["finish_reason"],
            prompt_ids=reply["prompt_token_ids"],
            labels=tuple(str(span["version"]) for span in choice["weight_versions"] or ()),
        )
