"""The gymnasium dialect: rewards add up, observations become messages, and a slot is given back however the attempt ends."""

import re
from typing import Any

import pytest

from gym_bridge.rollouts.play import Play, Played
from gym_bridge.rollouts.rows import finished_row
from gym_bridge.rollouts.sessions.gymnasium import Gymnasium
from gym_bridge.schemas.rollouts import Failure, FailureType, RolloutKey, StopReason
from tests.rollouts.dialects import Handler, Server, abort, answering, half, hang, in_turn, looping, play_in
from tests.rollouts.stage import Script, called, in_order, said, turn

ROW = {"responses_create_params": {"input": "play", "temperature": 0.5}, "goal": 7}


def step(observation: str | None = None, reward: float = 0.0, **fields: Any) -> dict[str, Any]:
    """A /step reply."""
    return {"observation": observation, "reward": reward, "terminated": False, "truncated": False, "info": {}, **fields}


def user(text: str) -> dict[str, str]:
    return {"type": "message", "role": "user", "content": text}


def played(
    server: Server, script: Script | None = None, *, timeout_s: float = 10, row: Any = ROW, **limits: Any
) -> tuple[Any, Play]:
    """One attempt that says yes to everything, or follows the script."""
    loop = looping(script or in_order(turn(said("yes"))), **limits)
    return play_in(server, lambda url, http: Gymnasium(url=url, http=http, loop=loop, request_timeout_s=timeout_s), row)


def serving_steps(*steps: Any, reset: Any = None, **routes: Handler) -> Server:
    """A server that answers /step with one after the other."""
    begin = {"observation": "start", "info": {}} if reset is None else reset
    rest = {f"/{route}": handler for route, handler in routes.items()}
    return Server({"/reset": answering(begin), "/step": in_turn(*steps), "/close": answering({}), **rest})


def test_rewards_add_up_and_observations_stand_between_the_answers():
    server = serving_steps(step("left", 0.25), step("right", 0.5), step(None, 1.0, terminated=True, info={"won": True}))
    ended, play = played(server, in_order(turn(said("a")), turn(said("b")), turn(said("c"))))
    assert isinstance(ended, Played)
    assert ended.stop is StopReason.TERMINATED
    assert ended.row["reward"] == 1.75
    assert (ended.row["terminated"], ended.row["truncated"], ended.row["info"]) == (True, False, {"won": True})
    assert ended.row["goal"] == 7
    assert ended.row["response"]["output"] == [said("a"), user("left"), said("b"), user("right"), said("c")]
    assert ended.row["response"]["usage"]["total_tokens"] == 36
    assert play.num_turns == 3
    assert set(play.timings_s) == {"reset", "step", "model"}
    assert [stage for stage, _ in play.waits_s] == ["reset", *["model", "step"] * 3]
    assert play.timings_s["model"] == sum(seconds for stage, seconds in play.waits_s if stage == "model")


def test_the_row_tells_what_each_turn_earned_and_the_reward_is_their_sum():
    server = serving_steps(step("left", 0.1), step("right", -0.3), step(None, 0.7, terminated=True))
    ended, play = played(server, in_order(turn(said("a")), turn(said("b")), turn(said("c"))))
    row = finished_row(ended, play, RolloutKey(4, 2), attempt=0, elapsed_s=1.0)
    assert row["gym_bridge"]["turn_rewards"] == [0.1, -0.3, 0.7]
    assert row["reward"] == sum(row["gym_bridge"]["turn_rewards"])


def test_the_observation_of_the_reset_ends_the_input_that_the_row_keeps():
    ended, _ = played(serving_steps(step(terminated=True)))
    assert ended.row["responses_create_params"] == {"input": [user("play"), user("start")], "temperature": 0.5}


def test_without_a_first_observation_the_input_stays_as_it_is():
    ended, _ = played(serving_steps(step(terminated=True), reset={"observation": None}))
    assert ended.row["responses_create_params"] == ROW["responses_create_params"]


def test_a_step_is_sent_the_task_and_the_latest_response_alone():
    server = serving_steps(step("left"), step(terminated=True))
    played(server, in_order(turn(said("a"), tokens_in=10), turn(said("b"), tokens_in=30)))
    first, second = server.sent_to("/step")
    assert server.sent_to("/reset") == [{**ROW, "_ng_task_index": 4, "_ng_rollout_index": 2}]
    assert {name: value for name, value in second.items() if name != "response"} == server.sent_to("/reset")[0]
    assert [one["response"]["output"] for one in (first, second)] == [[said("a")], [said("b")]]
    assert [one["response"]["usage"]["input_tokens"] for one in (first, second)] == [10, 30]


def test_tools_that_ran_within_a_step_are_answered_before_the_observation():
    outputs = [{"call_id": "c0", "output": "seen"}]
    server = serving_steps(step("on", info={"tool_outputs": outputs}), step(terminated=True))
    ended, play = played(server, in_order(turn(called("look", {})), turn(said("done"))))
    assert ended.row["response"]["output"][1:3] == [{"type": "function_call_output", "call_id": "c0", "output": "seen"}, user("on")]
    assert (play.num_tool_calls, play.num_tool_errors) == (1, 0)


def test_what_the_last_step_says_is_kept():
    outputs = [{"call_id": "c0", "output": "seen"}]
    ended, _ = played(
        serving_steps(step("over", terminated=True, info={"tool_outputs": outputs})), in_order(turn(called("look", {})))
    )
    assert ended.row["response"]["output"][1:] == [
        {"type": "function_call_output", "call_id": "c0", "output": "seen"},
        user("over"),
    ]


def test_a_call_that_the_environment_passes_over_is_answered_with_an_error_and_counted():
    server = serving_steps(step(), step(terminated=True))
    ended, play = played(server, in_order(turn(called("look", {})), turn(said("done"))))
    (answer,) = [item for item in ended.row["response"]["output"] if item["type"] == "function_call_output"]
    assert (answer["call_id"], "no output" in answer["output"]) == ("c0", True)
    assert play.num_tool_errors == 1


def test_the_environment_may_cut_the_task_off():
    ended, _ = played(serving_steps(step(None, 0.5, truncated=True)))
    assert ended.stop is StopReason.ENVIRONMENT_TRUNCATED
    assert (ended.row["reward"], ended.row["truncated"], ended.stop.truncated) == (0.5, True, True)


@pytest.mark.parametrize(
    ("limits", "expected", "num_steps"),
    [
        ({"max_turns": 3}, StopReason.MAX_TURNS, 3),
        ({"max_total_tokens": 12}, StopReason.MAX_TOTAL_TOKENS, 1),
        ({"max_repeated_turns": 2}, StopReason.REPEATED_TURN, 2),
    ],
)
def test_a_limit_stops_it_truncated_with_the_reward_so_far(limits: dict[str, int], expected: StopReason, num_steps: int):
    server = serving_steps(step("on", 0.5))
    ended, _ = played(server, **limits)
    assert ended.stop is expected
    assert ended.row["reward"] == 0.5 * num_steps
    assert (ended.row["terminated"], ended.row["truncated"]) == (False, True)
    assert server.paths.count("/step") == num_steps


def test_calls_beyond_the_limit_of_tool_calls_are_not_made():
    server = serving_steps(step("on", 0.5))
    ended, play = played(server, in_order(turn(said("a")), turn(called("look", {}))), max_tool_calls=0)
    assert (ended.stop, ended.row["reward"], server.paths.count("/step")) == (StopReason.MAX_TOOL_CALLS, 0.5, 1)
    assert (play.num_turns, play.turn_rewards) == (2, [0.5, 0.0])


@pytest.mark.parametrize("over", [False, True])
def test_a_turn_that_was_cut_off_is_stepped_still_and_ends_the_rollout_truncated(over: bool):
    server = serving_steps(step("on", 0.5, terminated=over))
    ended, _ = played(server, in_order(turn(said("a"), incomplete="max_output_tokens")))
    assert (ended.stop, ended.row["reward"], server.paths.count("/step")) == (StopReason.MAX_OUTPUT_TOKENS, 0.5, 1)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (step(reward=float("nan")), "no JSON"),
        (step() | {"reward": None}, "the reward None"),
        ({"terminated": True}, "the reward None"),
        (step() | {"reward": True}, "the reward True"),
        (step() | {"terminated": "yes"}, "'terminated' as 'yes'"),
        (step() | {"observation": 3}, "observation is of type int"),
        (step() | {"info": []}, "info is of type list"),
        (step() | {"info": {"tool_outputs": [{"call_id": "c9", "output": "x"}]}}, "'c9'"),
        (step() | {"info": {"tool_outputs": {"c0": "x"}}}, "tool_outputs"),
        (step() | {"info": {"tool_outputs": [{"call_id": "c0"}]}}, "tool_outputs"),
        ([], "list, not an object"),
    ],
)
def test_a_step_of_the_wrong_shape_is_a_step_error(reply: Any, message: str):
    ended, _ = played(serving_steps(reply))
    assert isinstance(ended, Failure)
    assert ended.type is FailureType.STEP
    assert re.search(message, ended.message)


@pytest.mark.parametrize(
    ("reset", "expected"),
    [
        (answering("boom", 500), FailureType.SEED),
        (answering({"observation": ["x"]}), FailureType.SEED),
        (answering({"info": 3}), FailureType.SEED),
        (abort, FailureType.SEED),
        (answering({"detail": []}, 422), FailureType.INVALID_ROW),
    ],
)
def test_an_environment_that_cannot_be_reset_is_a_seed_error(reset: Handler, expected: FailureType):
    ended, _ = played(Server({"/reset": reset}))
    assert isinstance(ended, Failure)
    assert ended.type is expected


@pytest.mark.parametrize("fault", [abort, half, answering("boom", 500)])
def test_a_step_without_an_answer_is_never_made_again(fault: Handler):
    server = Server({"/reset": answering({"info": {}}), "/step": fault})
    ended, play = played(server)
    assert isinstance(ended, Failure)
    assert ended.type is FailureType.STEP
    assert server.paths.count("/step") == 1
    assert play.num_turns == 1


def test_a_server_that_knows_steps_by_their_id_is_asked_again_with_the_same_id_after_a_broken_connection():
    server = serving_steps(step("on"), step(terminated=True), reset={"info": {"supports_step_idempotency": True}})
    good, broken = server.routes["/step"], iter([True])

    async def once_broken(request):
        return await (half if next(broken, False) else good)(request)

    server.routes["/step"] = once_broken
    ended, _ = played(server)
    assert isinstance(ended, Played)
    first, again, last = [body["_ng_step_request_id"] for body in server.sent_to("/step")]
    assert first == again
    assert len({first, last}) == 2
    assert re.fullmatch("[0-9a-f]{32}", first)


def test_such_a_server_is_not_asked_again_after_an_error():
    server = Server({"/reset": answering({"info": {"supports_step_idempotency": True}}), "/step": answering("boom", 500)})
    ended, _ = played(server)
    assert isinstance(ended, Failure)
    assert server.paths.count("/step") == 1


CLOSES = {"observation": "start", "info": {"supports_explicit_close": True}}


def test_a_server_that_wants_to_be_closed_is_closed_once_at_the_end():
    server = serving_steps(step(terminated=True), reset=CLOSES)
    played(server)
    assert server.paths == ["/reset", "/step", "/close"]


def test_other_servers_are_not_closed():
    server = serving_steps(step(terminated=True))
    played(server)
    assert "/close" not in server.paths


@pytest.mark.parametrize("fault", [abort, answering([]), answering("boom", 500)])
def test_it_is_closed_when_the_attempt_fails(fault: Handler):
    server = serving_steps(step(), reset=CLOSES, step=fault)
    ended, _ = played(server)
    assert isinstance(ended, Failure)
    assert server.paths[-1] == "/close"


def test_it_is_closed_when_its_first_observation_is_of_the_wrong_type():
    server = serving_steps(step(), reset={"observation": 3, "info": CLOSES["info"]})
    ended, _ = played(server)
    assert isinstance(ended, Failure)
    assert server.paths == ["/reset", "/close"]


def test_it_is_closed_when_the_attempt_is_cancelled():
    server = serving_steps(step(), reset=CLOSES, step=hang)
    loop = looping(in_order(turn(said("yes"))))
    with pytest.raises(TimeoutError):
        play_in(server, lambda url, http: Gymnasium(url=url, http=http, loop=loop, request_timeout_s=20), ROW, cancel_after_s=0.3)
    assert server.paths == ["/reset", "/step", "/close"]


@pytest.mark.parametrize("close", [abort, answering("boom", 500)])
def test_a_close_that_fails_costs_no_reward(close: Handler, caplog: pytest.LogCaptureFixture):
    ended, _ = played(serving_steps(step(None, 1.0, terminated=True), reset=CLOSES, close=close))
    assert isinstance(ended, Played)
    assert ended.row["reward"] == 1.0
    assert "was not closed" in caplog.text
