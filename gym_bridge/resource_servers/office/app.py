"""A small office: mail, calendar and tasks in a database of each session's own, scored by the state they are left in."""

import json
from collections.abc import Callable, Iterator
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationError, model_validator

from gym_bridge.config import StrictModel
from gym_bridge.resource_servers.base import InvalidTask, KnownAnswers, ResourceServer, Response, Split, Task, Verdict
from gym_bridge.resource_servers.office.database import Office, OfficeError, Record, State
from gym_bridge.resource_servers.office.look_ups import look_ups
from gym_bridge.resource_servers.office.requests import Call, Request, random_request
from gym_bridge.resource_servers.office.world import NUM_WORLDS, TODAY, world_of
from gym_bridge.resource_servers.sessions import SessionMissing
from gym_bridge.resource_servers.splits import drawn, refuse_more_than
from gym_bridge.resource_servers.tools import Tool, tool, tools_of
from gym_bridge.schemas.content import conversation_text
from gym_bridge.schemas.rollouts import Item, Row

MAX_TASKS = 10_000
SYSTEM = (
    f"You keep mail, calendar and tasks of an office with your tools. It is {TODAY:%A, %Y-%m-%d %H:%M}. Do what you are asked and "
    "nothing else, then say that it is done. Look up ids and addresses; do not guess them."
)

ShortText = Annotated[str, StringConstraints(max_length=200)]
LongText = Annotated[str, StringConstraints(max_length=2000)]
Page = Annotated[int, Field(ge=1, le=1000)]
Output = dict[str, Any]


class Action(StrictModel):
    """A call of the ground truth, as NeMo Gym's rows write it."""

    name: str
    arguments: str
    """A JSON object."""

    @model_validator(mode="after")
    def _is_a_call(self) -> "Action":
        known = _tools().get(self.name)
        if known is None:
            raise ValueError(f"there is no tool {self.name!r}")
        try:
            known.arguments.model_validate_json(self.arguments)
        except ValidationError as error:
            raise ValueError(f"arguments do not fit {self.name}: {error.errors()[0]['msg']}") from error
        return self


class OfficeTask(Task):
    """What the verifier reads of a row."""

    world: int = Field(ge=0, lt=NUM_WORLDS)
    """Which office it is."""
    ground_truth: tuple[Action, ...] = Field(min_length=1, max_length=10)


class Knobs(StrictModel):
    """What to ask for."""

    num_actions: int = Field(1, ge=1, le=3)
    """Changes that a task asks for."""


class OfficeServer(ResourceServer[OfficeTask, Office]):
    """Asks for changes in an office; the reward is 1 when it ends as the ground truth would have left it, else 0.

    Order, ids of new rows, case and blanks are ignored. Errors of a tool are results that the model reads.
    """

    Task = OfficeTask
    Knobs = Knobs
    reverify_mode = "unsupported"  # the database is gone with its session
    max_sessions = 10_000

    @tool
    async def directory_find(self, session: Office, name: ShortText) -> Output:
        """Find people and their mail addresses by a part of the name."""
        return _told("directory_find", lambda: session.find_people(name))

    @tool
    async def mail_search(self, session: Office, query: ShortText, page: Page) -> Output:
        """Find mail by words in sender, recipient, subject or body, all of which must stand in it. Latest first, ten a page."""
        return _told("mail_search", lambda: session.search_mail(query, page))

    @tool
    async def mail_read(self, session: Office, mail_id: ShortText) -> Output:
        """Read one mail."""
        return _told("mail_read", lambda: session.mail(mail_id))

    @tool
    async def mail_send(self, session: Office, recipient: ShortText, subject: ShortText, body: LongText) -> Output:
        """Send a mail to an address of the directory."""
        return _told("mail_send", lambda: {"id": session.send_mail(recipient, subject, body)})

    @tool
    async def mail_reply(self, session: Office, mail_id: ShortText, body: LongText) -> Output:
        """Answer the sender of a mail in the inbox."""
        return _told("mail_reply", lambda: {"id": _reply(session, mail_id, body)})

    @tool
    async def mail_forward(self, session: Office, mail_id: ShortText, recipient: ShortText) -> Output:
        """Forward a mail, as it is, to an address of the directory."""
        return _told("mail_forward", lambda: {"id": _forward(session, mail_id, recipient)})

    @tool
    async def mail_delete(self, session: Office, mail_id: ShortText) -> Output:
        """Delete a mail."""
        return _told("mail_delete", lambda: session.delete("mail", mail_id))

    @tool
    async def calendar_search(self, session: Office, query: ShortText, page: Page) -> Output:
        """Find events by words in title, attendee or start, all of which must stand in it. Earliest first, ten a page."""
        return _told("calendar_search", lambda: session.search_events(query, page))

    @tool
    async def calendar_create(
        self, session: Office, title: ShortText, attendee: ShortText, start: ShortText, minutes: Annotated[int, Field(ge=5, le=480)]
    ) -> Output:
        """Put an event with one attendee's address into the calendar; the start is written 2026-03-02 09:00."""
        return _told("calendar_create", lambda: {"id": session.create_event(title, attendee, start, minutes)})

    @tool
    async def calendar_move(self, session: Office, event_id: ShortText, start: ShortText) -> Output:
        """Give an event another start, written 2026-03-02 09:00."""
        return _told("calendar_move", lambda: session.move_event(event_id, start))

    @tool
    async def calendar_cancel(self, session: Office, event_id: ShortText) -> Output:
        """Take an event out of the calendar."""
        return _told("calendar_cancel", lambda: session.delete("events", event_id))

    @tool
    async def tasks_search(self, session: Office, query: ShortText, page: Page) -> Output:
        """Find tasks by words in title, assignee, due or list, all of which must stand in it. Earliest due first, ten a page."""
        return _told("tasks_search", lambda: session.search_tasks(query, page))

    @tool
    async def tasks_create(
        self, session: Office, title: ShortText, assignee: ShortText, due: ShortText, list_name: ShortText
    ) -> Output:
        """Create a task for the address of an assignee, due on a day written 2026-03-02, on one of the lists
        backlog, in progress, in review, done."""
        return _told("tasks_create", lambda: {"id": session.create_task(title, assignee, due, list_name)})

    @tool
    async def tasks_update(
        self, session: Office, task_id: ShortText, field: Literal["title", "assignee", "due", "list_name"], value: ShortText
    ) -> Output:
        """Change one field of a task; values are written as for tasks_create."""
        return _told("tasks_update", lambda: session.update_task(task_id, field, value))

    @tool
    async def tasks_delete(self, session: Office, task_id: ShortText) -> Output:
        """Delete a task."""
        return _told("tasks_delete", lambda: session.delete("tasks", task_id))

    async def seed(self, task: OfficeTask) -> Office:
        """The task's office, untouched. Raises InvalidTask for a ground truth that cannot be done, or changes nothing."""
        await self._expected(task)
        return Office(task.world)

    def end(self, session: Office) -> None:
        """Close the session's database."""
        session.close()

    async def verify(self, task: OfficeTask, response: Response, session: Office | None) -> Verdict:
        """1.0 for the state that the ground truth leaves; `num_differences` counts rows that are missing or too many."""
        if session is None:
            raise SessionMissing
        expected = await self._expected(task)
        differences = _num_differences(session.state(), expected)
        right = differences == 0 and session.world_number == task.world
        return Verdict(reward=float(right), fields={"num_differences": differences})

    async def _expected(self, task: OfficeTask) -> State:
        office = Office(task.world)
        try:
            untouched = office.state()
            for number, action in enumerate(task.ground_truth):
                known = _tools()[action.name]
                arguments = known.values(known.arguments.model_validate_json(action.arguments))
                told = await getattr(self, action.name)(office, **arguments)
                if isinstance(told["output"], str):
                    raise InvalidTask(f"the call cannot be done: {told['output']}", loc=("ground_truth", number))
            expected = office.state()
        finally:
            office.close()
        if expected == untouched:
            raise InvalidTask("the calls change nothing: doing nothing would be right", loc=("ground_truth",))
        return expected

    @classmethod
    def known_answers(cls, row: Row) -> KnownAnswers:
        """The calls of the ground truth, what they need looked up first; the same without the last of them, and a mere claim."""
        task = OfficeTask.model_validate(row)
        text = conversation_text(task.responses_create_params.get("input"))
        right: list[Item] = []
        for action in task.ground_truth:
            arguments = json.loads(action.arguments)
            calls = [*look_ups(world_of(task.world), text, arguments), (action.name, arguments)]
            right += map(_called, calls)
        return {"good": [[*right, "It is done."]], "bad": [[*right[:-1], "It is done."]], "adversarial": ["It is done."]}

    @classmethod
    def make_tasks(cls, knobs: Knobs, *, num_tasks: int, seed: int, split: Split) -> Iterator[Row]:
        """Rows of one split; the worlds of one split are not those of the other."""
        refuse_more_than(MAX_TASKS, num_tasks)
        requests = drawn(
            lambda generator: random_request(generator, num_actions=knobs.num_actions, split=split),
            identity=lambda request: f"{request.world} {request.text}",
            num_tasks=num_tasks,
            seed=seed,
            split=split,
        )
        tools = cls.tools()
        return (_row(request, tools, split) for request in requests)


def _told(name: str, do: Callable[[], list[Record] | Record | None]) -> Output:
    """What a tool gave, or its error: both are answered 200, as NeMo Gym's workplace_assistant does."""
    try:
        done = do()
    except OfficeError as error:
        return {"output": f"Error executing tool '{name}': {error}"}
    return {"output": {"done": True} if done is None else done}


def _reply(office: Office, mail_id: str, body: str) -> str:
    mail = office.mail(mail_id)
    if mail["folder"] != "inbox":
        raise OfficeError(f"{mail_id!r} is a mail that was sent from here")
    return office.send_mail(mail["sender"], _prefixed("Re", mail["subject"]), body)


def _forward(office: Office, mail_id: str, recipient: str) -> str:
    mail = office.mail(mail_id)
    return office.send_mail(recipient, _prefixed("Fw", mail["subject"]), mail["body"])


def _prefixed(prefix: str, subject: str) -> str:
    return subject if subject.startswith(f"{prefix}: ") else f"{prefix}: {subject}"


def _num_differences(found: State, expected: State) -> int:
    return sum(abs(found.get(key, 0) - expected.get(key, 0)) for key in found.keys() | expected.keys())


def _called(call: Call) -> Item:
    name, arguments = call
    return {"type": "function_call", "name": name, "arguments": json.dumps(arguments)}


@cache
def _tools() -> dict[str, Tool]:
    return tools_of(OfficeServer)


def _row(request: Request, tools: list[Item], split: Split) -> Row:
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": request.text}]
    return {
        "responses_create_params": {
            "input": messages,
            "tools": tools,
            "parallel_tool_calls": False,
        },
        "world": request.world,
        "ground_truth": [{"name": name, "arguments": json.dumps(arguments)} for name, arguments in request.actions],
        "split": split,
    }
