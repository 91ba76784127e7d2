"""`gym-bridge serve model`."""

import signal
from typing import Any

import click
import orjson

from gym_bridge.api.serving_model import ServeModelSettings, serve_model
from gym_bridge.cli.options import given, output_options, settings_options
from gym_bridge.config import validate

INTERRUPTED = 130


@click.command(
    "model",
    epilog="Example: gym-bridge serve model runs/sft --port 8765, then NeMo Gym with ++policy_base_url=http://127.0.0.1:8765/v1",
)
@click.argument("model")
@settings_options(ServeModelSettings, without=("model",))
@output_options
def command(model: str, quiet: bool, as_json: bool, **options: Any) -> None:
    """Serve MODEL as an OpenAI endpoint that reports token ids, print its address when it is ready, and go on until Ctrl-C.

    POST /v1/responses and /v1/chat/completions answer with NeMo Gym's fields prompt_token_ids, generation_token_ids and
    generation_log_probs, and extend the tokens of a history that brings them back. The same under /ng-rollout/ID/ keeps the calls
    of a rollout together, for clients that drop these fields: GET /ng-rollout/ID/capture tells them.
    """
    settings = validate(ServeModelSettings, {**given(options), "model": model})
    with serve_model(settings) as policy:
        name = settings.model_name or model
        click.echo(orjson.dumps({"name": name, "url": policy.base_url}).decode() if as_json else f"{name}: {policy.base_url}")
        try:
            while True:
                signal.pause()
        except KeyboardInterrupt:  # how it is meant to end: there is nothing to say
            raise SystemExit(INTERRUPTED) from None
