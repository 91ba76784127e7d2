"""The office: its tools, its state, and what is rewarded. World 7 is read through the tools, never from the code."""

import asyncio
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gym_bridge.errors import ConfigError
from gym_bridge.resource_servers import office
from gym_bridge.resource_servers.office.app import OfficeServer
from tests.resource_servers.stage import Client, Request, Row, answered, bodies, posted, rolled_out, rows, with_clients
from tests.rollouts.stage import called, in_order, said, turn

TOOLS = OfficeServer.tools()


def office_row(*calls: tuple[str, dict[str, Any]], world: int = 7) -> Row:
    """A row whose ground truth is `calls`."""
    truth = [{"name": name, "arguments": json.dumps(arguments)} for name, arguments in calls]
    params = {"input": "go", "tools": TOOLS}
    return {"responses_create_params": params, "world": world, "ground_truth": truth}


DELETE = ("mail_delete", {"mail_id": "mail_3"})
CANCEL = ("calendar_cancel", {"event_id": "event_2"})
ROW = office_row(DELETE)


def outputs(*calls: tuple[str, dict[str, Any]], row: Row = ROW) -> list[Any]:
    """What the tools told, one after the other in one session."""
    replies = posted(OfficeServer(), [("/seed_session", row), *((f"/{name}", arguments) for name, arguments in calls)])
    assert {status for status, _ in replies} == {200}
    assert all(set(reply) == {"output"} for _, reply in replies[1:])
    return [reply["output"] for _, reply in replies[1:]]


def reward(row: Row, *calls: tuple[str, dict[str, Any]], text: str = "Done.") -> float:
    """The reward after `calls` in a session of `row`."""
    requests = [(f"/{name}", arguments) for name, arguments in calls]
    return posted(OfficeServer(), [("/seed_session", row), *requests, ("/verify", answered(row, text))])[-1][1]["reward"]


@cache
def address_of(number: int = 0) -> str:
    """The address of one of the people of world 7."""
    return outputs(("directory_find", {"name": ""}))[0][number]["address"]


def send(**changed: str) -> tuple[str, dict[str, Any]]:
    return "mail_send", {"recipient": address_of(), "subject": "Keys", "body": "They are here.", **changed}


def create(**changed: Any) -> tuple[str, dict[str, Any]]:
    arguments = {"title": "Coffee", "attendee": address_of(), "start": "2026-03-05 10:00", "minutes": 30}
    return "calendar_create", {**arguments, **changed}


def to_do(**changed: str) -> tuple[str, dict[str, Any]]:
    return "tasks_create", {"title": "Water", "assignee": address_of(), "due": "2026-03-05", "list_name": "backlog", **changed}


def test_there_are_fifteen_tools_with_schemas():
    tools = {one["name"]: one for one in TOOLS}
    assert list(tools) == [
        *("directory_find", "mail_search", "mail_read", "mail_send", "mail_reply", "mail_forward", "mail_delete"),
        *("calendar_search", "calendar_create", "calendar_move", "calendar_cancel"),
        *("tasks_search", "tasks_create", "tasks_update", "tasks_delete"),
    ]
    assert tools["tasks_update"]["parameters"]["properties"]["field"] == {
        "enum": ["title", "assignee", "due", "list_name"],
        "type": "string",
    }
    assert tools["calendar_create"]["parameters"]["required"] == ["title", "attendee", "start", "minutes"]


def test_people_are_found_by_a_part_of_name_or_address():
    everyone, nobody = outputs(("directory_find", {"name": ""}), ("directory_find", {"name": "zzz"}))
    assert (len(everyone), nobody) == (10, [])
    name = everyone[0]["name"]
    assert outputs(("directory_find", {"name": f" {name.split()[0].upper()} "}))[0] == [everyone[0]]
    assert everyone[0]["address"] == f"{name.replace(' ', '.').lower()}@office.example"


def test_mail_is_searched_by_words_latest_first_in_pages_and_read_whole():
    pages = outputs(*(("mail_search", {"query": "", "page": page}) for page in (1, 2, 3, 4, 5)))
    found = [mail for page in pages for mail in page]
    assert ([len(page) for page in pages], len({mail["id"] for mail in found})) == ([10, 10, 10, 10, 0], 40)
    assert [mail["sent"] for mail in found] == sorted((mail["sent"] for mail in found), reverse=True)
    assert "body" not in found[0]
    words = f"{found[5]['subject'].upper()} {found[5]['sender']}"
    again, read = outputs(("mail_search", {"query": words, "page": 1}), ("mail_read", {"mail_id": found[5]["id"]}))
    assert again == [found[5]]
    assert {name: read[name] for name in found[5]} == found[5]
    assert read["body"]


def test_replies_and_forwards_are_mails_in_the_folder_sent():
    inbox = next(mail for mail in outputs(("mail_search", {"query": "", "page": 1}))[0] if mail["folder"] == "inbox")
    recipient = address_of(3)
    replied, forwarded, newest, text = outputs(
        ("mail_reply", {"mail_id": inbox["id"], "body": "Yes."}),
        ("mail_forward", {"mail_id": inbox["id"], "recipient": recipient.upper()}),
        ("mail_search", {"query": inbox["subject"], "page": 1}),
        ("mail_read", {"mail_id": "mail_new_1"}),
    )
    assert (replied, forwarded) == ({"id": "mail_new_1"}, {"id": "mail_new_2"})
    assert [(mail["folder"], mail["recipient"], mail["subject"]) for mail in newest[:2]] == [
        ("sent", inbox["sender"], f"Re: {inbox['subject']}"),
        ("sent", recipient, f"Fw: {inbox['subject']}"),
    ]
    assert text["body"] == "Yes."


def test_events_and_tasks_are_made_changed_and_taken_away():
    told = outputs(
        create(),
        ("calendar_move", {"event_id": "event_new_1", "start": "2026-03-06T11:30"}),
        ("calendar_search", {"query": "coffee 2026-03-06", "page": 1}),
        ("calendar_cancel", {"event_id": "event_new_1"}),
        ("calendar_search", {"query": "coffee", "page": 1}),
        to_do(),
        ("tasks_update", {"task_id": "task_new_4", "field": "list_name", "value": "Done"}),
        ("tasks_search", {"query": "water done", "page": 1}),
        ("tasks_delete", {"task_id": "task_new_4"}),
        ("tasks_search", {"query": "water", "page": 1}),
    )
    event = {"id": "event_new_1", "title": "Coffee", "attendee": address_of(), "start": "2026-03-06 11:30", "minutes": 30}
    assert told[:5] == [{"id": "event_new_1"}, {"done": True}, [event], {"done": True}, []]
    task = {"id": "task_new_4", "title": "Water", "assignee": address_of(), "due": "2026-03-05", "list_name": "done"}
    assert told[5:] == [{"id": "task_new_4"}, {"done": True}, [task], {"done": True}, []]


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("mail_read", {"mail_id": "mail_99"}, "there is no 'mail_99' among the mail"),
        ("mail_delete", {"mail_id": ""}, "there is no ''"),
        ("mail_reply", {"mail_id": "x", "body": "y"}, "there is no 'x'"),
        ("mail_send", {"recipient": "nobody@office.example", "subject": "", "body": ""}, "no address of the directory"),
        ("calendar_move", {"event_id": "event_1", "start": "tomorrow"}, "no date and time"),
        ("calendar_move", {"event_id": "event_1", "start": "2026-02-30 09:00"}, "no date and time"),
        ("calendar_move", {"event_id": "event_1", "start": "２026-02-03 09:00"}, "no date and time"),
        ("calendar_cancel", {"event_id": "mail_1"}, "there is no 'mail_1' among the events"),
        ("tasks_update", {"task_id": "task_1", "field": "due", "value": "2026-13-01"}, "no date"),
        ("tasks_update", {"task_id": "task_1", "field": "list_name", "value": "someday"}, "there is no list 'someday'"),
        ("tasks_update", {"task_id": "task_1", "field": "assignee", "value": "me"}, "no address"),
        ("tasks_delete", {"task_id": "task_1' OR '1'='1"}, "there is no"),
    ],
)
def test_what_a_tool_cannot_do_it_tells_the_model_with_status_200(name: str, arguments: dict[str, Any], words: str):
    (told,) = outputs((name, arguments))
    assert told.startswith(f"Error executing tool '{name}': ")
    assert words in told


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("tasks_update", {"task_id": "task_1", "field": "id", "value": "x"}),
        ("tasks_update", {"task_id": "task_1", "field": "title = 'x' --", "value": "x"}),
        ("mail_search", {"query": "", "page": 0}),
        ("mail_search", {"query": "", "page": 10**30}),
        ("mail_read", {"mail_id": "x" * 201}),
        ("mail_reply", {"mail_id": "mail_1", "body": "x" * 2001}),
        ("calendar_create", {"title": "x", "attendee": "x", "start": "x", "minutes": 10**30}),
    ],
)
def test_arguments_out_of_bounds_are_refused(name: str, arguments: dict[str, Any]):
    assert posted(OfficeServer(), [("/seed_session", ROW), (f"/{name}", arguments)])[1][0] == 422


def test_a_session_may_make_twenty_changes():
    told = outputs(*[send()] * 21)
    assert told[19] == {"id": "mail_new_20"}
    assert "20 changes are all" in told[20]


def test_texts_that_look_like_sql_are_texts():
    text = "x'); DROP TABLE mail; DELETE FROM tasks; --\u0000\"%_"
    told = outputs(
        send(subject=text, body=text),
        ("mail_read", {"mail_id": "mail_new_1"}),
        ("tasks_update", {"task_id": "task_1", "field": "title", "value": text}),
        ("mail_search", {"query": "drop table", "page": 1}),
        ("mail_search", {"query": "' OR 1=1 --", "page": 1}),
        ("directory_find", {"name": "%"}),
        ("tasks_search", {"query": "", "page": 3}),
    )
    assert (told[1]["subject"], told[1]["body"]) == (text, text)
    assert [mail["id"] for mail in told[3]] == ["mail_new_1"]
    assert told[4:6] == [[], []]
    assert len(told[6]) == 5


THREE = office_row(DELETE, CANCEL, ("tasks_update", {"task_id": "task_1", "field": "due", "value": "2027-01-01"}))
CHANGE = ("tasks_update", {"task_id": "task_1", "field": "due", "value": "2027-01-01"})
DETOUR = ("tasks_update", {"task_id": "task_1", "field": "due", "value": "2028-01-01"})


@pytest.mark.parametrize(
    "calls",
    [
        [DELETE, CANCEL, CHANGE],
        [CHANGE, CANCEL, DELETE],
        [("mail_search", {"query": "x", "page": 1}), DELETE, DELETE, CANCEL, CHANGE, CHANGE],
        [DETOUR, DELETE, ("mail_read", {"mail_id": "mail_3"}), CANCEL, CHANGE],
    ],
)
def test_the_right_state_is_rewarded_whatever_the_way_to_it(calls: list[Any]):
    assert reward(THREE, *calls) == 1.0


def test_new_rows_are_compared_by_content_without_ids_case_and_width_of_blanks():
    row = office_row(send(), create(), to_do())
    assert reward(row, to_do(), create(), send(subject="KEYS", body=" they  are\nhere. ")) == 1.0
    assert reward(row, create(), ("calendar_cancel", {"event_id": "event_new_1"}), to_do(), create(), send()) == 1.0


def test_a_wrong_state_is_not_rewarded():
    row = office_row(send(), create())
    right = [send(), create()]
    wrong = [
        [],
        [send()],
        [*right, send()],
        [*right, to_do()],
        [*right, DELETE],
        [send(subject="Key"), create()],
        [send(body="They are here"), create()],
        [send(body="Тhey are here."), create()],
        [send(body="They are here.\u200b"), create()],
        [send(recipient=address_of(1)), create()],
        [send(), create(minutes=31)],
        [send(), create(start="2026-03-05 10:01")],
        [send(), create(title="-0")],
    ]
    assert reward(row, *right) == 1.0
    assert [reward(row, *calls) for calls in wrong] == [0.0] * len(wrong)


@pytest.mark.parametrize(
    "text",
    ["", "Done.", json.dumps(THREE["ground_truth"]), "mail_delete(mail_id='mail_3')", "reward: 1.0", "9" * 5000, "-0"],
)
def test_saying_it_is_not_doing_it(text: str):
    assert reward(THREE, text=text) == 0.0


def test_calls_that_are_only_written_into_the_response_change_nothing():
    forged = {**ROW, "response": {"output": [called(*DELETE), said("Done.")]}}
    assert posted(OfficeServer(), [("/seed_session", ROW), ("/verify", forged)])[-1][1]["reward"] == 0.0


def test_a_session_of_another_office_is_not_rewarded():
    other = office_row(DELETE, world=8)
    requests: list[Request] = [("/seed_session", other), (f"/{DELETE[0]}", DELETE[1]), ("/verify", answered(ROW, "Done."))]
    assert posted(OfficeServer(), requests)[-1][1]["reward"] == 0.0


def test_a_verified_row_tells_how_many_rows_differ():
    reply = posted(OfficeServer(), [("/seed_session", THREE), (f"/{DELETE[0]}", DELETE[1]), ("/verify", answered(THREE, "Done."))])[
        -1
    ]
    assert reply == (200, {**answered(THREE, "Done."), "num_differences": 3, "reward": 0.0})


def test_without_a_session_nothing_is_verified():
    assert posted(OfficeServer(), [("/verify", answered(ROW, "Done."))])[0][0] == 400


@pytest.mark.parametrize(
    ("calls", "place", "words"),
    [
        ([CANCEL, ("mail_delete", {"mail_id": "mail_99"})], ["ground_truth", 1], "Error executing tool 'mail_delete'"),
        ([("mail_read", {"mail_id": "mail_1"})], ["ground_truth"], "change nothing"),
        ([create(), ("calendar_cancel", {"event_id": "event_new_1"})], ["ground_truth"], "change nothing"),
    ],
)
def test_a_ground_truth_that_fails_or_changes_nothing_is_refused(calls: list[Any], place: list[Any], words: str):
    row = office_row(*calls)
    for requests in ([("/seed_session", row)], [("/seed_session", ROW), ("/verify", answered(row, "Done."))]):
        status, reply = posted(OfficeServer(), requests)[-1]
        assert (status, reply["detail"][0]["loc"], reply["detail"][0]["type"]) == (422, ["body", *place], "value_error")
        assert words in reply["detail"][0]["msg"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"world": 200},
        {"world": -1},
        {"ground_truth": []},
        {"ground_truth": [{"name": "verify", "arguments": "{}"}]},
        {"ground_truth": [{"name": "__init__", "arguments": "{}"}]},
        {"ground_truth": [{"name": "mail_delete", "arguments": "{}"}]},
        {"ground_truth": [{"name": "mail_delete", "arguments": "nonsense"}]},
        {"ground_truth": [{"name": "mail_delete", "arguments": {"mail_id": "mail_1"}}]},
    ],
)
def test_a_row_that_names_no_office_or_no_calls_is_refused(wrong: Row):
    assert posted(OfficeServer(), [("/seed_session", {**ROW, **wrong})])[0][0] == 422


@pytest.mark.parametrize("num_actions", [1, 2, 3])
def test_the_ground_truth_of_a_task_is_rewarded_in_any_order_and_less_is_not(num_actions: int):
    tasks = rows(OfficeServer, num_tasks=60, num_actions=num_actions)

    async def talk(clients: list[Client]) -> list[tuple[float, float]]:
        rewards = []
        for row in tasks:
            calls = [(call["name"], json.loads(call["arguments"])) for call in row["ground_truth"]]
            assert len(calls) == num_actions
            one = []
            for done in (calls[::-1], calls[1:]):
                await clients[0].post("/seed_session", row)
                for name, arguments in done:
                    await clients[0].post(f"/{name}", arguments)
                one.append((await clients[0].post("/verify", answered(row, "Done.")))[1]["reward"])
            rewards.append(tuple(one))
        return rewards

    assert with_clients(OfficeServer(), 1, talk) == [(1.0, 0.0)] * 60


def test_known_answers_look_up_every_id_and_address_before_they_use_it_and_less_is_worth_nothing():
    tasks = [row for num_actions in (1, 2, 3) for row in rows(OfficeServer, num_tasks=20, num_actions=num_actions)]
    looked_up = 0
    for row in tasks:
        known = OfficeServer.known_answers(row)
        (right,), (wrong,) = known["good"], known["bad"]
        calls = [(one["name"], json.loads(one["arguments"])) for one in right if isinstance(one, dict)]
        told = [json.dumps(one) for one in outputs(*calls, row=row)]
        for number, (name, arguments) in enumerate(calls):
            searched = name.endswith(("_search", "_find"))
            for argument, value in {} if searched else {key: str(one) for key, one in arguments.items()}.items():
                if argument.endswith("_id") or "@" in value:
                    looked_up += 1
                    assert any(f'"{value}"' in one for one in told[:number]), (row["ground_truth"], argument)
        assert reward(row, *calls, text=str(right[-1])) == 1.0
        assert reward(row, *calls[:-1], text=str(wrong[-1])) == 0.0
    assert looked_up > 60
    assert OfficeServer.answers_to({"expected_answer": "4"}) == {}


def test_what_a_task_asks_names_no_id_and_no_address():
    for row in rows(OfficeServer, num_tasks=100, num_actions=3):
        text = row["responses_create_params"]["input"][1]["content"]
        assert not any(word in text for word in ("mail_", "event_", "task_", "@"))


def test_a_seed_gives_the_same_tasks_again_and_the_splits_share_no_office():
    train, heldout = (rows(OfficeServer, num_tasks=300, seed=1, split=split) for split in ("train", "heldout"))
    assert train == rows(OfficeServer, num_tasks=300, seed=1)
    assert train != rows(OfficeServer, num_tasks=300, seed=2)
    assert not {row["world"] for row in train} & {row["world"] for row in heldout}
    asked = {(row["world"], row["responses_create_params"]["input"][1]["content"]) for row in train}
    assert len(asked) == 300


@pytest.mark.parametrize(("knobs", "words"), [({"num_actions": 4}, "num_actions"), ({"num_tasks": 10_001}, "10000 different")])
def test_wrong_knobs_are_refused(knobs: dict[str, int], words: str):
    with pytest.raises(ConfigError, match=words):
        rows(OfficeServer, **knobs)


def test_the_examples_are_five_tasks_that_the_ground_truth_solves():
    lines = Path(office.__file__).with_name("data").joinpath("example.jsonl").read_text().splitlines()
    examples = [json.loads(line) for line in lines]
    assert len(examples) == 5
    for row in examples:
        assert reward(row, *((call["name"], json.loads(call["arguments"])) for call in row["ground_truth"])) == 1.0


def test_a_whole_rollout_is_played_by_our_collector():
    row = rows(OfficeServer, num_tasks=1, num_actions=2)[0]
    turns = [turn(called(call["name"], call["arguments"], f"c{n}")) for n, call in enumerate(row["ground_truth"])]
    ended = rolled_out(
        OfficeServer(), row, in_order(turn(called("mail_read", {"mail_id": "?"}, "look")), *turns, turn(said("Done.")))
    )
    assert (ended.row["reward"], ended.row["num_differences"]) == (1.0, 0)
    first = next(item for item in ended.row["response"]["output"] if item["type"] == "function_call_output")
    assert "Error executing tool 'mail_read'" in first["output"]
    assert rolled_out(OfficeServer(), row, in_order(turn(said("Done.")))).row["reward"] == 0.0


def test_two_hundred_sessions_with_interleaved_calls_keep_their_offices_apart():
    async def talk(clients: list[Client]) -> list[Any]:
        tasks = [office_row(("mail_delete", {"mail_id": f"mail_{1 + n % 40}"}), CANCEL, world=n % 3) for n in range(200)]
        pairs = list(zip(clients, tasks, strict=True))
        await asyncio.gather(*(client.post("/seed_session", row) for client, row in pairs))
        for position in (1, 0):
            calls = [(client, row["ground_truth"][position]) for client, row in reversed(pairs)]
            told = [client.post(f"/{call['name']}", json.loads(call["arguments"])) for client, call in calls]
            assert {json.dumps(reply) for _, reply in await asyncio.gather(*told)} == {'{"output": {"done": true}}'}
        return await asyncio.gather(*(client.post("/verify", answered(row, "Done.")) for client, row in pairs))

    assert [reply["reward"] for _, reply in with_clients(OfficeServer(), 200, talk)] == [1.0] * 200


MEMORY = """
import asyncio
from gym_bridge.resource_servers.office.app import OfficeServer
from gym_bridge.resource_servers.office.database import Office

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

async def fill(office):
    server = OfficeServer()
    address = office.find_people("")[0]["address"]
    for _ in range(20):
        await server.mail_send(office, address, "s" * 200, "b" * 2000)

Office(0).close()
before = resident()
offices = [Office(number % 200) for number in range(250)]
for office in offices:
    asyncio.run(fill(office))
print(resident() - before)
for office in offices:
    office.close()
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the resident memory is read from /proc")
def test_a_thousand_full_offices_stay_under_500_mib():
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(done.stdout) * 4 < 500


def test_a_session_that_ends_closes_its_database():
    server, made = OfficeServer(), []

    class Watched(OfficeServer):
        async def seed(self, task: Any) -> Any:
            made.append(await server.seed(task))
            return made[-1]

    posted(Watched(), [("/seed_session", ROW)])
    with pytest.raises(Exception, match="closed database"):
        made[0].find_people("")


texts = st.sampled_from(["mail_1", "event_1", "task_1", "2026-03-05", "2026-03-05 10:00", "backlog"]) | st.text(max_size=20)
arguments_of = {
    one["name"]: st.fixed_dictionaries(
        {
            name: st.integers(1, 9)
            if schema["type"] == "integer"
            else st.sampled_from(schema["enum"])
            if "enum" in schema
            else texts
            for name, schema in one["parameters"]["properties"].items()
        }
    )
    for one in TOOLS
}
calls_that_fit = st.sampled_from(sorted(arguments_of)).flatmap(lambda name: st.tuples(st.just(f"/{name}"), arguments_of[name]))
paths = st.sampled_from(["/seed_session", "/verify", "/aggregate_metrics", *(f"/{name}" for name in arguments_of)])
any_calls = st.tuples(paths, bodies(ROW, "query", "page", "mail_id", "name", "arguments"))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(calls_that_fit | any_calls, min_size=1, max_size=12))
def test_no_body_makes_the_server_fail_or_hang(requests: list[Request]):
    replies = posted(OfficeServer(), [("/seed_session", ROW), *requests])
    assert {status for status, _ in replies} <= {200, 400, 422}
