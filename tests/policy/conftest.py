"""Sequences for a step."""

import pytest


@pytest.fixture
def group(training_sequence):
    """Two prompts that begin alike, three answers to the first, one of them over two turns."""
    return [
        training_sequence("pppppTTT", [3, 9, 4, 8, 20, 31, 32, 2], advantage=1.5),
        training_sequence("pppppTT", [3, 9, 4, 8, 20, 31, 2], advantage=-0.5),
        training_sequence("pppppTTpppTTT", [3, 9, 4, 8, 20, 77, 2, 5, 6, 7, 100, 101, 2], advantage=-1.0),
        training_sequence("ppppT", [3, 9, 4, 60, 61], advantage=2.0),
    ]
