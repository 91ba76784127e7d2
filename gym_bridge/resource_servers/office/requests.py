"""What somebody asks for in the office: one to three changes in words, and the calls that make them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeVar

from gym_bridge.resource_servers.base import Split
from gym_bridge.resource_servers.office.world import LISTS, NUM_WORLDS, Event, Mail, Person, ToDo, World, random_start, world_of
from gym_bridge.resource_servers.splits import split_of

T = TypeVar("T", bound=Mail | Event | ToDo)
V = TypeVar("V")
Call = tuple[str, dict[str, Any]]
Change = tuple[str, Call]
"""A sentence, and the call that does what it says."""

_ANSWERS = (
    "Thank you, I will look at it tomorrow.",
    "Yes, that works for me.",
    "No, please wait until next week.",
    "Please ask the whole team first.",
    "I am on it.",
    "Let us speak about it on Monday.",
)
_MESSAGES = (
    ("Team dinner", "We meet at seven."),
    ("Keys", "Your keys are at the reception."),
    ("New printer", "The printer on the second floor works again."),
    ("Holiday", "I will be away next week."),
    ("Slides", "Please send me the slides of yesterday."),
)
_TITLES = ("Coffee", "Status call", "Design session", "Retrospective", "Handover")
_TO_DOS = ("Book the train", "Water the plants", "Renew the licence", "Update the wiki", "Print the badges")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A task of the office."""

    world: int
    text: str
    actions: tuple[Call, ...]


@dataclass(frozen=True, slots=True)
class _Choice:
    """Draws from a world what no earlier change of the request has touched."""

    generator: Random
    world: World
    touched: set[str] = field(default_factory=set)

    def of(self, things: Sequence[T]) -> T:
        chosen = self.generator.choice([one for one in things if one.id not in self.touched])
        self.touched.add(chosen.id)
        return chosen

    def person(self, *, but: str = "") -> Person:
        return self.generator.choice([one for one in self.world.people if one.address != but])

    def among(self, values: Sequence[V]) -> V:
        return self.generator.choice(values)


def random_request(generator: Random, *, num_actions: int, split: Split) -> Request:
    """A request in a world of the split, whose changes touch different things, so that their order is free."""
    number = generator.choice(_WORLDS[split])
    choice = _Choice(generator, world_of(number))
    changes = [maker(choice) for maker in generator.sample(_MAKERS, num_actions)]
    return Request(world=number, text=" ".join(text for text, _ in changes), actions=tuple(call for _, call in changes))


def _reply(choice: _Choice) -> Change:
    mail = choice.of([one for one in choice.world.mail if one.folder == "inbox"])
    body = choice.among(_ANSWERS)
    return f'Reply to the mail "{mail.subject}" with "{body}"', ("mail_reply", {"mail_id": mail.id, "body": body})


def _reply_to_latest(choice: _Choice) -> Change:
    latest: dict[str, Mail] = {}
    for one in choice.world.mail:  # the latest first
        if one.folder == "inbox":
            latest.setdefault(one.sender, one)
    mail, body = choice.of(list(latest.values())), choice.among(_ANSWERS)
    name = next(one.name for one in choice.world.people if one.address == mail.sender)
    return f'Reply to the latest mail from {name} with "{body}"', ("mail_reply", {"mail_id": mail.id, "body": body})


def _forward(choice: _Choice) -> Change:
    mail = choice.of(choice.world.mail)
    person = choice.person(but=mail.sender)
    call = ("mail_forward", {"mail_id": mail.id, "recipient": person.address})
    return f'Forward the mail "{mail.subject}" to {person.name}.', call


def _delete_mail(choice: _Choice) -> Change:
    mail = choice.of(choice.world.mail)
    return f'Delete the mail "{mail.subject}".', ("mail_delete", {"mail_id": mail.id})


def _send(choice: _Choice) -> Change:
    person, (subject, body) = choice.person(), choice.among(_MESSAGES)
    call = ("mail_send", {"recipient": person.address, "subject": subject, "body": body})
    return f'Send {person.name} a mail with the subject "{subject}" and the text "{body}"', call


def _create_event(choice: _Choice) -> Change:
    person, title, minutes = choice.person(), choice.among(_TITLES), choice.among((15, 30, 45, 60))
    start = random_start(choice.generator)
    call = {"title": title, "attendee": person.address, "start": f"{start:%Y-%m-%d %H:%M}", "minutes": minutes}
    when = f"{start:%A, %Y-%m-%d} at {start:%H:%M}"
    return f'Put "{title}" with {person.name} into the calendar, on {when}, for {minutes} minutes.', ("calendar_create", call)


def _move_event(choice: _Choice) -> Change:
    event = choice.of(choice.world.events)
    start = next(one for one in iter(lambda: f"{random_start(choice.generator):%Y-%m-%d %H:%M}", "") if one != event.start)
    return f'Move the event "{event.title}" to {start}.', ("calendar_move", {"event_id": event.id, "start": start})


def _cancel_event(choice: _Choice) -> Change:
    event = choice.of(choice.world.events)
    return f'Cancel the event "{event.title}".', ("calendar_cancel", {"event_id": event.id})


def _create_task(choice: _Choice) -> Change:
    person, title, name = choice.person(), choice.among(_TO_DOS), choice.among(LISTS[:2])
    due = f"{random_start(choice.generator):%Y-%m-%d}"
    call = {"title": title, "assignee": person.address, "due": due, "list_name": name}
    return f'Create a task "{title}" for {person.name} on the list "{name}", due on {due}.', ("tasks_create", call)


def _put_task_on_list(choice: _Choice) -> Change:
    task = choice.of(choice.world.tasks)
    name = choice.among([one for one in LISTS if one != task.list_name])
    return f'Put the task "{task.title}" on the list "{name}".', _update(task, "list_name", name)


def _reassign_task(choice: _Choice) -> Change:
    task = choice.of(choice.world.tasks)
    person = choice.person(but=task.assignee)
    return f'Give the task "{task.title}" to {person.name}.', _update(task, "assignee", person.address)


def _delete_task(choice: _Choice) -> Change:
    task = choice.of(choice.world.tasks)
    return f'Delete the task "{task.title}".', ("tasks_delete", {"task_id": task.id})


def _update(task: ToDo, name: str, value: str) -> Call:
    return "tasks_update", {"task_id": task.id, "field": name, "value": value}


_MAKERS = (
    _reply,
    _reply_to_latest,
    _forward,
    _delete_mail,
    _send,
    _create_event,
    _move_event,
    _cancel_event,
    _create_task,
    _put_task_on_list,
    _reassign_task,
    _delete_task,
)
_WORLDS = {
    split: [number for number in range(NUM_WORLDS) if split_of(f"world {number}") == split] for split in ("train", "heldout")
}
