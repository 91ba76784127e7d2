"""What commands read: files and models that they name, and whether these are what they were."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gym_bridge.hub import REGISTRY, names_nothing
from gym_bridge.io.digests import digest_file, digest_weights
from gym_bridge.io.run_directory import model_directory_of
from gym_bridge.recipes.commands import Command
from gym_bridge.schemas.play_settings import KNOWN_ANSWERS, TRIED_ANSWERS

OUTPUT_OPTIONS, OUTPUT_KEYS = ("--output", "--report"), ("output=", "trainer.output=")
SUFFIXES = (".jsonl", ".yaml", ".yml", ".py")
"""Suffixes of what commands read, and a recipe's user may have misspelt."""
MAX_NAME = 256
"""A text in which something is longer names no file."""
_CLASS = re.compile(r"(.+\.py):\w+")
_MODEL = re.compile(r"(policy\.|policies\.[^.]+\.)model|algorithm\.teacher")


def input_words(argv: Sequence[str]) -> list[str]:
    """The words that name no output."""
    options = zip(("", *argv), argv, strict=False)
    return [word for option, word in options if option not in OUTPUT_OPTIONS and not word.startswith(OUTPUT_KEYS)]


def missing_of(command: Command) -> list[str]:
    """The files and models that a command names and that are not there."""
    files = [str(one) for one in _files(command) if one.suffix in SUFFIXES and "*" not in one.name and not one.exists()]
    return files + [one for one in _models(command) if names_nothing(one)]


def digests_of(command: Command, output: Path, known: dict[Path, str]) -> dict[str, str]:
    """By path the digest of each file and model outside of `output` that a command reads; `known` keeps what was read once."""
    files = {path: digest_file for path in _files(command) if path.is_file()}
    models = {path: _digest_model for path in map(Path, _models(command)) if path.is_dir()}
    found = {}
    for path, digest in (files | models).items():
        if not path.absolute().is_relative_to(output.absolute()):
            found[str(path)] = known[path] = known.get(path) or digest(path)
    return found


def _digest_model(path: Path) -> str:
    return digest_weights(model_directory_of(path))


def _files(command: Command) -> list[Path]:
    """What a command names besides its outputs and that has a suffix, as files have; of `server.py:Name` the file."""
    texts = (text for word in input_words(command.argv) for text in _texts(word))
    plain = (found[1] if (found := _CLASS.fullmatch(text)) else text for text in texts)
    paths = (Path(one) for one in dict.fromkeys(plain) if "://" not in one)
    return [one for one in paths if one.suffix and max(map(len, one.parts)) < MAX_NAME]


def _models(command: Command) -> Iterator[str]:
    """The models that are opened here: with an endpoint, a model's name is whatever that calls it."""
    if any("model_url" in word or "model-url" in word for word in command.argv):
        return
    for option, word in zip(("", *command.argv), command.argv, strict=False):
        key, _, value = word.partition("=")
        name = word if option == "--model" else value if _MODEL.fullmatch(key) else ""
        if name and name not in (KNOWN_ANSWERS, TRIED_ANSWERS, *REGISTRY):
            yield name


def _texts(word: str) -> Iterator[str]:
    """What a word may name: itself, or, of `key=value`, the value, in JSON each text in it."""
    key, given, value = word.partition("=")
    if not given or "/" in key:
        yield word
        return
    try:
        yield from _leaves(json.loads(value))
    except json.JSONDecodeError:
        yield value


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _leaves(one)
