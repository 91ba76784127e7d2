"""The OpenAPI document of a resource server: its routes, and what each takes and gives."""

from typing import Any

from pydantic import BaseModel

from gym_bridge.resource_servers.aggregate import AggregateRequest
from gym_bridge.resource_servers.base import ResourceServer, TaskServer
from gym_bridge.version import __version__

ANY_OBJECT: dict[str, Any] = {"type": "object"}
RESPONSE: dict[str, Any] = {
    "type": "object",
    "properties": {"output": {"type": "array", "items": ANY_OBJECT}},
    "required": ["output"],
}
INVALID: dict[str, Any] = {
    "type": "object",
    "properties": {
        "detail": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"loc": {"type": "array"}, "msg": {"type": "string"}, "type": {"type": "string"}},
                "required": ["loc", "msg", "type"],
            },
        }
    },
    "required": ["detail"],
}
DETAIL: dict[str, Any] = {"type": "object", "properties": {"detail": {"type": "string"}}, "required": ["detail"]}
STEP: dict[str, Any] = {
    "type": "object",
    "properties": {
        "observation": {"type": ["string", "null"]},
        "reward": {"type": "number"},
        "terminated": {"type": "boolean"},
        "truncated": {"type": "boolean"},
        "info": ANY_OBJECT,
    },
    "required": ["observation", "reward", "terminated", "truncated", "info"],
}
REWARDED: dict[str, Any] = {"type": "object", "properties": {"reward": {"type": "number"}}, "required": ["reward"]}
NO_SESSION = {"400": DETAIL}
REFUSED = {"413": DETAIL, "504": DETAIL}


def document(server: TaskServer) -> dict[str, Any]:
    """The document, as GET /openapi.json answers it."""
    components: dict[str, Any] = {}
    task = _schema(server.Task, components)
    paths: dict[str, Any] = {"/": {"get": _route("Whether the server lives", gives=ANY_OBJECT)}}
    verified = _schema(AggregateRequest, components)
    paths["/aggregate_metrics"] = _post("Statistics over verified rollouts", takes=verified, gives=ANY_OBJECT)
    if isinstance(server, ResourceServer):
        paths["/reverify_mode"] = {"get": _route("Whether /verify may be asked again later", gives={"type": "string"})}
        paths["/seed_session"] = _post("Open a session", takes=task, gives=ANY_OBJECT)
        paths["/verify"] = _post("The reward of a rollout", takes=_with_response(task), gives=REWARDED, more=NO_SESSION)
        for tool in server.tool_table().values():
            takes = _schema(tool.arguments, components)
            paths[f"/{tool.name}"] = _post(tool.description, takes=takes, gives={}, more=NO_SESSION)
    else:
        paths["/reset"] = _post("Open an episode", takes=task, gives=ANY_OBJECT)
        paths["/step"] = _post("Take the model's response", takes=_with_response(task), gives=STEP, more=NO_SESSION)
        paths["/close"] = {"post": _route("End the episode", gives=ANY_OBJECT, more=NO_SESSION | REFUSED)}
    info = {"title": type(server).__name__, "description": (type(server).__doc__ or "").strip(), "version": __version__}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": {"schemas": components}}


def _schema(model: type[BaseModel], components: dict[str, Any]) -> dict[str, Any]:
    """A model's schema; the models within it stand in `components`."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    components |= schema.pop("$defs", {})
    return schema


def _with_response(task: dict[str, Any]) -> dict[str, Any]:
    properties = {**task.get("properties", {}), "response": RESPONSE}
    return {**task, "properties": properties, "required": [*task.get("required", []), "response"]}


def _post(summary: str, *, takes: dict[str, Any], gives: dict[str, Any], more: dict[str, Any] | None = None) -> dict[str, Any]:
    body = {"required": True, "content": {"application/json": {"schema": takes}}}
    return {"post": {**_route(summary, gives=gives, more={"422": INVALID, **REFUSED, **(more or {})}), "requestBody": body}}


def _route(summary: str, *, gives: dict[str, Any], more: dict[str, Any] | None = None) -> dict[str, Any]:
    schemas = {"200": gives, **(more or {})}
    told = {
        "200": "done",
        "400": "no session",
        "413": "the body is too large",
        "422": "the body does not fit",
        "504": "not done in time",
    }
    return {
        "summary": summary,
        "responses": {
            status: {"description": told[status], "content": {"application/json": {"schema": schema}}}
            for status, schema in schemas.items()
        },
    }
