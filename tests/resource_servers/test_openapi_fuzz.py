"""Requests that schemathesis makes of each server's OpenAPI document: whatever is sent, the document tells of the reply."""

import asyncio
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson
import pytest
import requests
import schemathesis
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    positive_data_acceptance,
    response_schema_conformance,
    status_code_conformance,
)

from gym_bridge.resource_servers.http import application
from gym_bridge.resource_servers.registry import OURS, make_server
from tests.resource_servers.reward_model_stage import write_reward_model
from tests.resource_servers.stage import Row, answered
from tests.rollouts.stage import serving

TIMEOUT_S = 20
NEEDS = {"combine": "math_verify", "math": "math_verify", "reasoning": "reasoning_gym", "reward_model": "torch"}
"""The module of the extra that a server needs."""
CONFORMS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
pytestmark = pytest.mark.slow

NUM_EXAMPLES = 30
"""Requests to each operation of a server."""


async def judged(request: web.Request) -> web.Response:
    """POST /v1/chat/completions of a model that gives 5 to every candidate."""
    code = re.search(r"<conversation ([0-9a-f]{16})>", (await request.json())["messages"][-1]["content"])
    return web.json_response({"choices": [{"message": {"role": "assistant", "content": f"VERDICT {code and code[1]}: 5"}}]})


@contextmanager
def served(make: Callable[[], web.Application]) -> Iterator[str]:
    """The address of an application that is made and served in a thread of its own: schemathesis asks synchronously."""
    started: Future[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def run() -> None:
        over = asyncio.Event()
        async with serving(make()) as url:
            started.set_result((url, asyncio.get_running_loop(), over))
            await over.wait()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    url, loop, over = started.result(60)
    try:
        yield url
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(60)


def folder(name: str) -> Path:
    """Where a server of ours stands."""
    return Path(str(files(f"gym_bridge.resource_servers.{name}")))


@pytest.fixture(scope="module", params=sorted(OURS))
def server_name(request: pytest.FixtureRequest) -> str:
    if find_spec(NEEDS.get(request.param, "aiohttp")) is None:
        pytest.skip(f"needs {NEEDS[request.param]}: pip install -e '.[train,servers]'")
    return request.param


@pytest.fixture(scope="module")
def url(server_name: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with ExitStack() as stack:
        name, overrides = server_name, []
        if server_name == "combine":
            name = str(folder("combine") / "data" / "example.yaml")
        elif server_name == "judge":
            model = web.Application()
            model.router.add_post("/v1/chat/completions", judged)
            overrides = [f"model_url={stack.enter_context(served(lambda: model))}/v1", "model=m"]
        elif server_name == "reward_model":
            directory = write_reward_model(request.getfixturevalue("tiny_llama"), tmp_path_factory.mktemp("reward_model"))
            overrides = [f"model={directory}", "device=cpu", "gather_ms=0"]
        yield stack.enter_context(served(lambda: application(make_server(name, overrides=overrides))))


def whole_bodies(name: str) -> dict[str, Row]:
    """Bodies with the first example task of a server, by path."""
    row = orjson.loads((folder(name) / "data" / "example.jsonl").read_bytes().splitlines()[0])
    played = answered(row, "I say 5.")
    return {"/seed_session": row, "/reset": row, "/verify": played, "/step": played}


def blended(case: Case, kept: set[str], whole: Row) -> Case:
    """A case with some fields of a body that can be played: what is drawn at random alone seldom gets beyond validation."""
    assert isinstance(case.body, dict)
    case.body = {**case.body, **{key: whole[key] for key in kept}}
    return case


def ask_each(cases: st.SearchStrategy[Case], http: requests.Session, checks: Sequence[Any]) -> None:
    """Send cases and check the replies."""

    @settings(
        max_examples=NUM_EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(cases)
    def ask(case: Case) -> None:
        case.call_and_validate(session=http, checks=[*CONFORMS, *checks], timeout=TIMEOUT_S)

    ask()


def operations(url: str, bodies: dict[str, Row]) -> Iterator[tuple[APIOperation, requests.Session]]:
    """Every operation of the document, and a client with a session for the example task."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    (opening,) = {"/seed_session", "/reset"} & set(schema)
    for found in schema.get_all_operations():
        assert isinstance(found, Ok)
        with requests.Session() as http:
            assert http.post(url + opening, json=bodies[opening], timeout=TIMEOUT_S).status_code == 200
            yield found.ok(), http


def test_requests_that_fit_the_document_get_replies_that_it_tells(server_name: str, url: str):
    bodies = whole_bodies(server_name)
    for operation, http in operations(url, bodies):
        cases, whole = operation.as_strategy(), bodies.get(operation.path)
        if whole is not None:
            cases = st.builds(blended, cases, st.sets(st.sampled_from(sorted(whole))), st.just(whole))
        complete = whole is None and operation.path != "/close"
        ask_each(cases, http, [positive_data_acceptance] if complete else [])


def test_requests_that_do_not_fit_the_document_get_replies_that_it_tells(server_name: str, url: str):
    """Not all are refused: pydantic reads "5" and 5.0 as a whole number, as NeMo Gym's servers do."""
    for operation, http in operations(url, whole_bodies(server_name)):
        if operation.body:
            ask_each(operation.as_strategy(generation_mode=GenerationMode.NEGATIVE), http, [])


def test_a_method_that_the_document_does_not_tell_is_refused_with_those_that_it_does(url: str):
    paths = requests.get(f"{url}/openapi.json", timeout=TIMEOUT_S).json()["paths"]
    for path, told in paths.items():
        refused = requests.request("PATCH", url + path, json={}, timeout=TIMEOUT_S)
        assert (refused.status_code, refused.json()) == (405, {"detail": "Method Not Allowed"})
        assert set(refused.headers["Allow"].lower().split(",")) - {"head"} == set(told)
