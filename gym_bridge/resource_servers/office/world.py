"""The office as it is when a session opens: people, mail, events and tasks, made by rule from the world's number."""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache

ME = "me@office.example"
TODAY = datetime(2026, 3, 2, 9, 0)
NUM_WORLDS = 200
LISTS = ("backlog", "in progress", "in review", "done")

_FIRST = ("Ada", "Boris", "Chloe", "Elena", "Farid", "Greta", "Hugo", "Jonas", "Kavya", "Mona", "Nils", "Olga", "Pedro")
_LAST = ("Adler", "Bauer", "Costa", "Diaz", "Ekman", "Gupta", "Haas", "Jansen", "Kaya", "Lopez", "Novak", "Patel", "Rossi")
_TOPICS = ("Atlas", "Beacon", "Cedar", "Delta", "Ember", "Falcon", "Garnet", "Harbor", "Juniper", "Lotus", "Maple", "Orchid")
_SUBJECTS = ("Budget for {}", "Draft of the {} report", "Question about {}", "Update on {}", "Contract for {}", "Invoice for {}")
_EVENTS = ("{} kick-off", "{} review", "Lunch on {}", "{} planning", "Interview for {}", "{} workshop")
_TASKS = ("Write the {} summary", "Fix the {} page", "Test the {} build", "Order parts for {}", "Translate the {} guide")
_BODIES = (
    "Could you look at it before Friday?",
    "I attached the latest version.",
    "Please tell me what you think.",
    "We should talk about it soon.",
    "It will take a week longer.",
    "Thanks for your help with this.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Somebody in the directory."""

    name: str
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mail:
    """A mail; `folder` is inbox or sent."""

    id: str
    folder: str
    sender: str
    recipient: str
    subject: str
    sent: str
    body: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """An hour in the calendar; `start` is `2026-03-02 09:00`."""

    id: str
    title: str
    attendee: str
    start: str
    minutes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ToDo:
    """A task on one of LISTS; `due` is `2026-03-02`."""

    id: str
    title: str
    assignee: str
    due: str
    list_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """All that is there. No two mails share a subject, no two events or tasks a title."""

    people: tuple[Person, ...]
    mail: tuple[Mail, ...]
    events: tuple[Event, ...]
    tasks: tuple[ToDo, ...]


@lru_cache(maxsize=NUM_WORLDS)
def world_of(number: int) -> World:
    """The world of that number, always the same."""
    generator = random.Random(f"office {number}")
    people = _people(generator)
    return World(
        people=people,
        mail=tuple(_mail(generator, people)),
        events=tuple(_events(generator, people)),
        tasks=tuple(_to_dos(generator, people)),
    )


def _people(generator: random.Random) -> tuple[Person, ...]:
    names = zip(generator.sample(_FIRST, len(_FIRST)), generator.sample(_LAST, len(_LAST)), strict=True)
    return tuple(Person(name=f"{first} {last}", address=f"{first}.{last}@office.example".lower()) for first, last in names)


def _phrases(generator: random.Random, patterns: Iterable[str], count: int) -> list[str]:
    return generator.sample([pattern.format(topic) for pattern in patterns for topic in _TOPICS], count)


def _mail(generator: random.Random, people: tuple[Person, ...]) -> list[Mail]:
    sent = TODAY
    mail: list[Mail] = []
    for number, subject in enumerate(_phrases(generator, _SUBJECTS, 40)):
        sent -= timedelta(minutes=generator.randint(30, 900))
        other, incoming = generator.choice(people).address, generator.random() < 0.8
        mail.append(
            Mail(
                id=f"mail_{number + 1}",
                folder="inbox" if incoming else "sent",
                sender=other if incoming else ME,
                recipient=ME if incoming else other,
                subject=subject,
                sent=_minute(sent),
                body=generator.choice(_BODIES),
            )
        )
    return mail


def _events(generator: random.Random, people: tuple[Person, ...]) -> list[Event]:
    return [
        Event(
            id=f"event_{number + 1}",
            title=title,
            attendee=generator.choice(people).address,
            start=_minute(random_start(generator)),
            minutes=generator.choice((15, 30, 45, 60, 90)),
        )
        for number, title in enumerate(_phrases(generator, _EVENTS, 25))
    ]


def _to_dos(generator: random.Random, people: tuple[Person, ...]) -> list[ToDo]:
    return [
        ToDo(
            id=f"task_{number + 1}",
            title=title,
            assignee=generator.choice(people).address,
            due=random_start(generator).date().isoformat(),
            list_name=generator.choice(LISTS),
        )
        for number, title in enumerate(_phrases(generator, _TASKS, 25))
    ]


def random_start(generator: random.Random) -> datetime:
    """A half hour of the next four weeks between 9 and 17 o'clock."""
    return TODAY + timedelta(days=generator.randint(1, 28), minutes=30 * generator.randint(0, 15))


def _minute(moment: datetime) -> str:
    return moment.isoformat(sep=" ", timespec="minutes")
