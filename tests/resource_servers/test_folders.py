"""Every resource server is a folder that brings the same things, and leans on no other server's."""

import ast
import json
from pathlib import Path

import pytest

from gym_bridge import resource_servers
from gym_bridge.resource_servers.registry import OURS

ROOM = Path(resource_servers.__file__).parent
TESTS = Path(__file__).parent


def test_the_registry_names_every_folder():
    assert sorted(path.parent.name for path in ROOM.glob("*/app.py")) == sorted(OURS)
    assert all(place.startswith(f"gym_bridge.resource_servers.{name}.app:") for name, place in OURS.items())


@pytest.mark.parametrize("name", sorted(OURS))
def test_a_server_brings_a_short_readme_example_tasks_and_tests(name: str):
    lines = (ROOM / name / "README.md").read_text().splitlines()
    assert lines[0] == f"# {name}"
    assert 8 <= len(lines) <= 14
    examples = [json.loads(line) for line in (ROOM / name / "data" / "example.jsonl").read_text().splitlines()]
    assert len(examples) >= 5
    assert all(row["responses_create_params"]["input"] for row in examples)
    assert (TESTS / f"test_{name}.py").is_file()


@pytest.mark.parametrize("name", sorted(OURS))
def test_a_server_imports_no_other_server(name: str):
    imported = {
        node.module
        for path in (ROOM / name).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module
    }
    servers = {module.split(".")[2] for module in imported if module.startswith("gym_bridge.resource_servers.")}
    assert servers & set(OURS) <= {name}
