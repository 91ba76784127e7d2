"""Secrets blotted out of messages."""

import json
import re
from collections.abc import Iterable
from urllib.parse import quote

SCHEMES = ("basic", "bearer", "digest")
SHORT = 4


class Redaction:
    """Replaces every secret in a text by its label, also where a server echoes it escaped for JSON or for a URL.

    Each word of a secret counts too, since `Bearer sk-...` may come back as `sk-...`; one of less than four characters is
    replaced only where it stands alone, or it would tear every message apart.
    """

    def __init__(self, secrets: Iterable[tuple[str | None, str]]):
        self._labels: dict[str, str] = {}
        for secret, label in secrets:
            for word in (secret or "", *(secret or "").split()):
                if word.lower() not in SCHEMES:
                    for form in (word, json.dumps(word)[1:-1], quote(word), quote(word, safe="")):
                        self._labels.setdefault(form, label)
        self._labels.pop("", None)
        longest_first = sorted(self._labels, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(_pattern, longest_first)) or r"(?!)")

    def __call__(self, text: str) -> str:
        """`text` without secrets."""
        return self._pattern.sub(lambda match: self._labels[match[0]], text)


def _pattern(secret: str) -> str:
    return re.escape(secret) if len(secret) >= SHORT else rf"(?<!\w){re.escape(secret)}(?!\w)"
