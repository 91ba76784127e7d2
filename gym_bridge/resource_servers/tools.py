"""Tools of a resource server: methods marked `@tool`, from whose signatures and docstrings schema and validation derive."""

import inspect
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model

from gym_bridge.errors import ConfigError
from gym_bridge.schemas.rollouts import Item

RESERVED = frozenset({"seed_session", "verify", "aggregate_metrics", "reverify_mode", "mcp", "reset", "step", "close"})
"""Paths that NeMo Gym gives another meaning."""

Method = TypeVar("Method", bound=Callable[..., Awaitable[Any]])


def tool(method: Method) -> Method:
    """Mark an async method `name(self, session, argument: type, ...)` as a tool; its docstring tells the model what it does."""
    method.__dict__["gym_bridge_tool"] = True
    return method


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """One tool: what the model reads of it and how its arguments are checked."""

    name: str
    description: str
    arguments: type[BaseModel]
    """Its fields carry the arguments' names as aliases: an argument may be called `schema` or `copy`, a field may not."""

    @property
    def schema(self) -> Item:
        """The tool in the flat Responses form."""
        parameters = _without_titles(self.arguments.model_json_schema())
        return {
            "type": "function",
            "name": self.name,
            "description": self.description,
            "parameters": {"type": "object", "properties": {}, "required": [], **parameters},
            "strict": True,
        }

    def values(self, arguments: BaseModel) -> dict[str, Any]:
        """Keyword arguments of the method, from an instance of `arguments`."""
        return {str(field.alias): getattr(arguments, name) for name, field in type(arguments).model_fields.items()}


def tools_of(server: type) -> dict[str, Tool]:
    """The marked methods of a server class by name, in order of definition, inherited ones first.

    Raises ConfigError for a method that cannot be a strict tool.
    """
    return {name: _tool(name, getattr(server, name)) for name in _marked(server)}


def _marked(server: type) -> Iterator[str]:
    names = {name: None for base in reversed(server.__mro__) for name in vars(base)}
    return (name for name in names if getattr(getattr(server, name, None), "gym_bridge_tool", False))


def _tool(name: str, method: Callable[..., Any]) -> Tool:
    place = f"tool {method.__qualname__}"
    if name in RESERVED:
        raise ConfigError(f"{place}: the name {name!r} is reserved; choose another")
    description = inspect.getdoc(method)
    if not description or not inspect.iscoroutinefunction(method):
        raise ConfigError(f"{place}: found a plain method or no docstring; expected `async def` and a docstring for the model")
    hints = get_type_hints(method, include_extras=True)
    fields: dict[str, Any] = {}
    _self, _session, *parameters = inspect.signature(method).parameters.values()
    for position, parameter in enumerate(parameters):
        if (
            parameter.kind is not parameter.POSITIONAL_OR_KEYWORD
            or parameter.default is not parameter.empty
            or parameter.name not in hints
        ):
            raise ConfigError(
                f"{place}: argument {str(parameter)!r} is not `name: type`; a strict tool has no defaults, write `x: int | None`"
            )
        fields[f"argument_{position}"] = (hints[parameter.name], Field(alias=parameter.name))
    arguments = create_model(name, __config__=ConfigDict(frozen=True, extra="forbid"), **fields)
    return Tool(name=name, description=description, arguments=arguments)


def _without_titles(schema: Any) -> Any:
    """A JSON schema without pydantic's titles; a property that is itself called `title` stays, for it is an object."""
    if isinstance(schema, list):
        return [_without_titles(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: _without_titles(value) for key, value in schema.items() if key != "title" or isinstance(value, dict)}
