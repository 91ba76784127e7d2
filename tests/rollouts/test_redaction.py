"""Secrets in every form in which they may come back."""

import pytest

from gym_bridge.rollouts.models.redaction import Redaction


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("bad key sk-a/b", "bad key <key>"),
        ("Bearer sk-a/b!", "<key>!"),
        ("?key=sk-a%2Fb", "?key=<key>"),
        ('{"was": "p\\"w"}', '{"was": "<X-Pass>"}'),
        ("7 of 17, 77", "<n> of 17, 77"),
        ("sk-a/b-longer", "<longer>"),
        ("nothing", "nothing"),
    ],
)
def test_a_secret_is_replaced_wherever_a_server_echoes_it(text: str, shown: str):
    secrets = [(None, "<none>"), ("", "<empty>"), ("Bearer sk-a/b", "<key>"), ('p"w', "<X-Pass>")]
    assert Redaction([*secrets, ("7", "<n>"), ("sk-a/b-longer", "<longer>")])(text) == shown


def test_without_secrets_a_text_stays():
    assert Redaction([])("as it is") == "as it is"
