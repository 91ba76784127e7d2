"""The house's rules (DESIGN.md, section 1), read off the code with `ast`; nothing is imported."""

import ast
from graphlib import CycleError, TopologicalSorter

import pytest

from tests.house import FLOORS, LEVEL, PACKAGE, ROOT, Import, Module, modules, room_of

TORCH_ROOMS = (
    "policy/",
    "trainers/",
    *(f"algorithms/{name}.py" for name in ("kl", "losses", "policy_losses", "preference_losses")),
)
HEAVY = ("torch", "transformers", "vllm", "ray")
DOORS = {
    "rollouts/attempts.py": 1,  # one rollout
    "rollouts/remote_player.py": 4,  # one worker: what breaks its start, a unit, a call or an answer reaches whoever waits for it
    "resource_servers/http.py": 1,  # one server request
    "policy/samplers/local.py": 1,  # one worker: what breaks a batch reaches each of its callers
    "io/loggers/fan_out.py": 1,  # loggers of others: one that breaks ends no training
    "io/remote_files.py": 1,  # file systems of others: each of them raises kinds of its own
    "viewer/application.py": 1,  # one request for a page
    "cli/main.py": 1,  # the CLI
}
BANNED_WORDS = ("utils", "util", "helpers", "helper", "common", "misc", "manager", "managers")
MAX_FUNCTION_LINES = 100
LINKS = ("resource_servers", "transforms", "trainers", "recipes")

Function = (ast.FunctionDef, ast.AsyncFunctionDef)


def own_imports(module: Module) -> list[Import]:
    return [one for one in module.imports() if one.module.split(".")[0] == "gym_bridge"]


def test_every_room_has_a_floor():
    assert {module.room for module in modules()} <= set(LEVEL)
    assert len(LEVEL) == sum(len(rooms) for _, rooms in FLOORS)


def test_every_room_imports_only_from_floors_below():
    wrong = [
        f"{module.place}:{one.line} imports {one.module}"
        for module in modules()
        for one in own_imports(module)
        if room_of(one.module) != module.room and LEVEL[room_of(one.module)] >= LEVEL[module.room]
    ]
    assert wrong == []


def test_no_two_modules_import_each_other_even_around_corners():
    graph = {
        module.name: {one.module for one in own_imports(module) if not one.for_types_only and one.module != module.name}
        for module in modules()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import circle: {' -> '.join(error.args[1])}")


def test_trainers_meet_transforms_in_a_file_only():
    rooms = {module.room: set[str]() for module in modules()}
    for module in modules():
        rooms[module.room] |= {room_of(one.module) for one in own_imports(module)}
    assert "transforms" not in rooms["trainers"]
    assert "trainers" not in rooms["transforms"]


def test_torch_is_imported_at_module_level_only_where_tensors_live():
    wrong = [
        f"{module.place}:{one.line}"
        for module in modules()
        for one in module.imports()
        if one.module.split(".")[0] == "torch" and not one.in_function and not one.for_types_only
        if not module.place.startswith(TORCH_ROOMS)
    ]
    assert wrong == []


def test_transformers_is_imported_only_by_the_policy_and_the_server_that_runs_a_model():
    wrong = [
        f"{module.place}:{one.line}"
        for module in modules()
        for one in module.imports()
        if one.module.split(".")[0] == "transformers" and not module.place.startswith(("policy/", "resource_servers/reward_model/"))
    ]
    assert wrong == []


@pytest.mark.parametrize("room", ["io", "hub", "rollouts", "transforms", "tokens"])
def test_a_room_without_torch_does_not_import_it_anywhere(room: str):
    heavy = [
        f"{module.place}:{one.line} imports {one.module}"
        for module in modules()
        for one in module.imports()
        if module.room == room and one.module.split(".")[0] in HEAVY
    ]
    assert heavy == []


def test_transforms_know_no_network():
    network = {"aiohttp", "httpx", "openai", "requests", "socket", "urllib", "huggingface_hub"}
    imported = {one.module.split(".")[0] for module in modules() if module.room == "transforms" for one in module.imports()}
    assert imported & network == set()


def test_no_function_is_longer_than_a_hundred_lines():
    long = [
        f"{module.place}:{node.lineno} {node.name}"
        for module in modules()
        for node in ast.walk(module.tree)
        if isinstance(node, Function) and (node.end_lineno or 0) - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert long == []


def test_no_file_is_longer_than_four_hundred_lines():
    assert [module.place for module in modules() if len(module.path.read_text().splitlines()) > 400] == []


def test_files_and_classes_are_named_after_a_noun():
    names = [path.relative_to(PACKAGE).with_suffix("").as_posix() for path in PACKAGE.rglob("*.py")]
    assert [name for name in names if {*name.replace("/", "_").split("_")} & {*BANNED_WORDS}] == []
    classes = [node.name for module in modules() for node in ast.walk(module.tree) if isinstance(node, ast.ClassDef)]
    assert [name for name in classes if name.lower().endswith(BANNED_WORDS)] == []


def test_every_exception_is_caught_at_the_known_doors_only():
    found: dict[str, int] = {}
    for module in modules():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ExceptHandler) and catches_all(node):
                found[module.place] = found.get(module.place, 0) + 1
    assert found == DOORS


def catches_all(handler: ast.ExceptHandler) -> bool:
    """`except:`, `except Exception`, `except BaseException`; a block that raises again only tidies up."""
    if handler.type is not None and not {"Exception", "BaseException"} & {
        node.id for node in ast.walk(handler.type) if isinstance(node, ast.Name)
    }:
        return False
    last = handler.body[-1]
    return not (isinstance(last, ast.Raise) and last.exc is None)


def test_public_functions_and_classes_say_what_they_are():
    wrong = [
        f"{module.place}:1" for module in modules() if module.path.name != "__init__.py" and not ast.get_docstring(module.tree)
    ]
    for module in modules():
        wrong += [f"{module.place}:{node.lineno} {node.name}" for node in public(module.tree) if not ast.get_docstring(node)]
    assert wrong == []


def public(body: ast.Module | ast.ClassDef) -> list[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """Public classes, functions and methods; what is inside a function or a private class is nobody's but its own."""
    found: list[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef] = []
    for node in body.body:
        if not isinstance(node, (*Function, ast.ClassDef)) or node.name.startswith("_"):
            continue
        found.append(node)
        if isinstance(node, ast.ClassDef):
            found += public(node)
    return found


def test_nothing_is_printed_outside_the_cli():
    wrong = [
        f"{module.place}:{node.lineno}"
        for module in modules()
        if module.room != "cli"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "click.echo", "sys.stdout.write")
    ]
    assert wrong == []


def test_logging_is_configured_by_the_cli_alone():
    wrong = [
        f"{module.place}:{node.lineno}"
        for module in modules()
        if module.room != "cli"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("logging.basicConfig", "logging.disable")
    ]
    assert wrong == []


@pytest.mark.parametrize("name", LINKS)
def test_the_top_level_shows_the_rooms_that_people_come_for(name: str):
    link = ROOT / name
    assert link.is_symlink()
    assert link.readlink().as_posix() == f"gym_bridge/{name}"
    assert link.resolve() == PACKAGE / name


def test_nothing_imports_through_the_links():
    files = [*PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in files
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom) and not getattr(node, "level", 0)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
        if name.split(".")[0] in LINKS
    ]
    assert wrong == []
