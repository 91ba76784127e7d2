"""The tokens of a rollout as a page: each with its colour and its numbers."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gym_bridge.errors import ConfigError, GymBridgeError
from gym_bridge.io.charts import number_text
from gym_bridge.io.collection_manifest import CollectionManifest
from gym_bridge.io.rollout_log import sibling
from gym_bridge.io.run_directory import RunDirectory, model_directory_of
from gym_bridge.schemas.rollouts import RolloutKey
from gym_bridge.tokens.tokenizer import Tokenizer
from gym_bridge.viewer.library import Run
from gym_bridge.viewer.rollout_file import RolloutFile
from gym_bridge.viewer.rows_shown import FileShown, or_dash, reward_text
from gym_bridge.viewer.site import Site
from gym_bridge.viewer.token_view import RecordedSequences, Token, TokenView, token_view

PAGE_TOKENS = 4000
COLOURS = {
    "trained": "trained",
    "logprob": "log-prob of the sampler",
    "gap": "gap of sampler and trainer",
    "advantage": "advantage",
    "version": "policy version",
}
GAPS = (0.01, 0.05, 0.2, 1.0)
"""From each on, |gap| in nats has the next colour."""
LOGPROBS = (-0.01, -0.1, -1.0, -4.0)
"""Below each, a log-prob in nats has the next colour."""
NUM_VERSIONS = 8
"""Colours of policy versions."""


class TokenPages:
    """Pages of tokens; tokenizers and records of steps are read once."""

    def __init__(self, site: Site, *, tokenizer: Tokenizer | None = None):
        """`tokenizer` is that of all files; without it each file's own is looked for."""
        self._site, self._tokenizer = site, tokenizer
        self._tokenizers: dict[Path, Tokenizer] = {}
        self._recorded: dict[Path, RecordedSequences] = {}

    def page(self, number: int, place: str, *, colour: str = "trained", page: int = 1) -> str:
        """The tokens of one rollout. Raises ConfigError for a place without a rollout, DataError for damaged token ids."""
        if colour not in COLOURS:
            raise ConfigError(f"there is no colour {colour!r}; expected one of {', '.join(COLOURS)}")
        shown = self._site.shown(number)
        told = shown.rows.frame.row(shown.rows.number(place), named=True)
        view, notes = self._view(shown, told)
        tokens = [(part, token) for part, segment in enumerate(view.segments) for token in segment]
        start = (page - 1) * PAGE_TOKENS
        links = self._site.links
        ways = self._site.pager(
            page, len(tokens), PAGE_TOKENS, lambda one: links.tokens(number, place, {"colour": colour, "page": one})
        )
        return self._site.page(
            "tokens.html",
            f"tokens of rollout {shown.name(told)}",
            [
                {"text": shown.file.name, "href": links.rollouts(number), "key": "r"},
                {"text": f"rollout {shown.name(told)}", "href": None},
            ],
            file=number,
            place=place,
            one=told,
            facts=_facts(view, told),
            notes=notes,
            colour=colour,
            colours=COLOURS,
            legend=_legend(colour, view),
            segments=_segments(tokens[start : start + PAGE_TOKENS], colour, view),
            page=page,
            pages=ways,
        )

    def _view(self, shown: FileShown, told: dict[str, Any]) -> tuple[TokenView, list[str]]:
        """The tokens of a row, and what is to be said of them."""
        row, view = shown.view(told["number"])
        turns = shown.file.turns(row, view) if view is not None else ()
        if not turns:
            raise ConfigError("no token ids were reported for this rollout; collect with --model-api tokens or a model in process")
        key = RolloutKey(told["task_index"] or 0, told["rollout_index"] or 0)
        run, notes = self._site.library.run_of(shown.file), []
        recorded = self._records(run).find(key) if run is not None else None
        tokenizer = self._tokenizer or self._tokenizer_of(shown.file, run, told["model"])
        if tokenizer is None:
            notes.append("No tokenizer was found, so that tokens show their ids: name one with --model.")
        if recorded is None:
            notes.append("Advantages are known for runs with trainer.record=true, gaps where algorithm.old_logprobs=trainer too.")
        elif all(token.gap is None for segment in token_view(key, turns, None, recorded).segments for token in segment):
            notes.append("The trainer's log-probs were not recorded: algorithm.old_logprobs=trainer asks for them.")
        return token_view(key, turns, tokenizer, recorded), notes

    def _records(self, run: Run) -> RecordedSequences:
        if run.steps not in self._recorded:
            self._recorded[run.steps] = RecordedSequences(run.steps)
        return self._recorded[run.steps]

    def _tokenizer_of(self, file: RolloutFile, run: Run | None, model: str | None) -> Tokenizer | None:
        """That of the run's checkpoints, else of what the manifest names, else of the model, where these lie on this machine."""
        places: list[Callable[[], Path | None]] = [
            lambda: RunDirectory(run.path).last_checkpoint() if run is not None else None,
            lambda: _named(_in_manifest(file)),
            lambda: _named(model),
        ]
        for find in places:
            try:
                place = find()
                directory = model_directory_of(place) if place is not None else None
                if directory is not None and directory not in self._tokenizers:
                    self._tokenizers[directory] = Tokenizer(directory)
                if directory is not None:
                    return self._tokenizers[directory]
            except (GymBridgeError, OSError, ValueError):
                continue
        return None


def _in_manifest(file: RolloutFile) -> str | None:
    found = CollectionManifest(sibling(file.path, "_manifest.json")).read() or {}
    name = (found.get("identity") or {}).get("tokenizer")
    return name if isinstance(name, str) else None


def _named(name: str | None) -> Path | None:
    """A path that is there: nothing is fetched."""
    return Path(name) if name and Path(name).is_dir() else None


def _facts(view: TokenView, told: dict[str, Any]) -> list[tuple[str, str]]:
    advantages = {token.advantage for segment in view.segments for token in segment if token.advantage is not None}
    versions = sorted({token.version for segment in view.segments for token in segment if token.version is not None})
    facts = [
        ("reward", reward_text(told)),
        ("tokens", number_text(view.num_tokens)),
        ("of them trained", number_text(view.num_trained)),
        ("segments", number_text(len(view.segments))),
        ("mean log-prob", or_dash(view.mean_logprob)),
        ("mean exp |gap|", "–" if view.mean_gap is None else f"{view.mean_gap:.5f}"),
    ]
    if advantages:
        low, high = min(advantages), max(advantages)
        facts.append(("advantage", number_text(low) if low == high else f"{number_text(low)} to {number_text(high)}"))
    if versions:
        facts.append(("policy version", ", ".join(map(str, versions[:4])) + ("…" if len(versions) > 4 else "")))
    if view.step is not None:
        facts.append(("trained in step", number_text(view.step)))
    return facts


def _segments(tokens: Sequence[tuple[int, Token]], colour: str, view: TokenView) -> list[dict[str, Any]]:
    known = _known_versions(view)
    parts: dict[int, list[dict[str, Any]]] = {}
    for part, token in tokens:
        shown = {"text": token.text, "class": _class(token, colour, known), "words": _words(token)}
        parts.setdefault(part, []).append(shown)
    several = len(view.segments) > 1
    return [{"title": f"Segment {part + 1}" if several else "Tokens", "tokens": found} for part, found in parts.items()]


def _class(token: Token, colour: str, versions: Sequence[int]) -> str:
    """The colour of a token; one that was not sampled has none."""
    own = "t on" if token.trained else "t"
    if colour == "trained" or token.version is None:
        return own
    if colour == "version":
        return f"t v{versions.index(token.version) % NUM_VERSIONS}"
    if colour == "advantage":
        value = token.advantage
        return own if not value else f"t {'up' if value > 0 else 'down'}{1 + (abs(value) >= 0.5) + (abs(value) >= 1)}"
    if colour == "gap":
        return own if token.gap is None else f"t h{sum(abs(token.gap) >= bound for bound in GAPS)}"
    return own if token.logprob is None else f"t h{sum(token.logprob < bound for bound in LOGPROBS)}"


def _words(token: Token) -> str:
    told = [f"id {token.id}", "trained" if token.trained else "not trained"]
    for name, value in (("log-prob", token.logprob), ("gap", token.gap), ("advantage", token.advantage)):
        if value is not None:
            told.append(f"{name} {value:+.4g}" if name != "log-prob" else f"{name} {value:.4g} (p {math.exp(value):.3g})")
    if token.version is not None:
        told.append(f"policy version {token.version}")
    return ", ".join(told)


def _known_versions(view: TokenView) -> list[int]:
    return sorted({token.version for segment in view.segments for token in segment if token.version is not None})


def _legend(colour: str, view: TokenView) -> list[tuple[str, str]]:
    if colour == "version":
        return [(f"v{place % NUM_VERSIONS}", f"version {one}") for place, one in enumerate(_known_versions(view)[:12])]
    if colour == "advantage":
        return [("up3", "above 0"), ("down3", "below 0"), ("t on", "0 or not known")]
    if colour == "gap":
        return [("h0", f"|gap| below {GAPS[0]} nats"), *((f"h{n}", f"from {bound} on") for n, bound in enumerate(GAPS, 1))]
    if colour == "logprob":
        return [("h0", f"{LOGPROBS[0]} nats and above"), *((f"h{n}", f"below {bound}") for n, bound in enumerate(LOGPROBS, 1))]
    return [("t on", "trained"), ("t", "not trained")]
