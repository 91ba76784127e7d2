"""What the tests of the house read: every module of gym_bridge, its imports and its room."""

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "gym_bridge"

FLOORS: tuple[tuple[str, frozenset[str]], ...] = (
    ("1a", frozenset({"errors", "version"})),  # the foundation: everyone raises errors, config.py too
    ("1b", frozenset({"config", "algorithms"})),
    ("2", frozenset({"schemas"})),
    ("3a", frozenset({"io"})),  # files; below its neighbours because hub reads run directories and the auditor reads rollout files
    ("3b", frozenset({"tokens", "hub"})),
    ("4", frozenset({"rollouts", "transforms", "policy"})),
    ("5", frozenset({"evaluation", "resource_servers"})),
    ("6", frozenset({"trainers"})),
    ("7", frozenset({"cluster", "viewer"})),
    ("8", frozenset({"api", "recipes"})),
    ("9", frozenset({"cli"})),
    ("door", frozenset({"__init__", "__main__"})),  # `import gym_bridge` shows api's names, `python -m` opens the CLI
)
"""DESIGN.md, section 1, from the ground up: a room imports from the floors below its own."""

LEVEL = {room: level for level, (_, rooms) in enumerate(FLOORS) for room in rooms}


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """One imported module, in full, and where the import stands."""

    module: str
    line: int
    in_function: bool
    for_types_only: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """A parsed file of the package."""

    path: Path
    tree: ast.Module

    @property
    def place(self) -> str:
        """`io/jsonl.py`"""
        return self.path.relative_to(PACKAGE).as_posix()

    @property
    def name(self) -> str:
        """`gym_bridge.io.jsonl`"""
        parts = self.path.relative_to(ROOT).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)

    @property
    def room(self) -> str:
        """The first name below gym_bridge: `io`, `hub`."""
        return room_of(self.name)

    def imports(self) -> list[Import]:
        """Every import of the file, inside functions and for types only as well."""
        found: list[Import] = []
        _collect(self.tree, found, package=self.path.parent, in_function=False, for_types_only=False)
        return found


@cache
def modules() -> tuple[Module, ...]:
    """Every Python file of the package."""
    return tuple(Module(path=path, tree=ast.parse(path.read_text(encoding="utf-8"))) for path in sorted(PACKAGE.rglob("*.py")))


def room_of(module: str) -> str:
    """The room of `gym_bridge.io.jsonl` is `io`; `gym_bridge` itself is the room `__init__`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def _collect(node: ast.AST, found: list[Import], *, package: Path, in_function: bool, for_types_only: bool) -> None:
    if isinstance(node, ast.Import | ast.ImportFrom):
        for name in _imported(node, package):
            found.append(Import(module=name, line=node.lineno, in_function=in_function, for_types_only=for_types_only))
        return
    in_function = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    types_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    for child in ast.iter_child_nodes(node):
        _collect(child, found, package=package, in_function=in_function, for_types_only=for_types_only or types_only)


def _imported(node: ast.Import | ast.ImportFrom, package: Path) -> list[str]:
    """Full names; `from gym_bridge import api` names the module gym_bridge.api, and so does `from . import api`."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = node.module or ""
    if node.level:
        folder = package.relative_to(ROOT).parts
        base = ".".join((*folder[: len(folder) - node.level + 1], *filter(None, [base])))
    return [f"{base}.{alias.name}" if _is_module(f"{base}.{alias.name}") else base for alias in node.names]


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return name.startswith("gym_bridge") and (path.with_suffix(".py").is_file() or path.is_dir())
