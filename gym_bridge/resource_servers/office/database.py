"""A session's office: an SQLite database in memory, opened from a template, and what may be done to it.

Every argument is a bound parameter. Whatever is not there, or not allowed, is an OfficeError for the model to read.
"""

import re
import sqlite3
from collections.abc import Mapping
from dataclasses import astuple
from datetime import date, datetime
from functools import lru_cache
from typing import Any

from gym_bridge.resource_servers.office.world import LISTS, ME, NUM_WORLDS, TODAY, world_of

MAX_CHANGES = 20
"""Changes that a session may make: no database grows without end."""
PAGE = 10
"""Rows that a search gives."""
_SCHEMA = """
PRAGMA page_size = 1024;
CREATE TABLE people (name TEXT, address TEXT);
CREATE TABLE mail (id TEXT PRIMARY KEY, folder TEXT, sender TEXT, recipient TEXT, subject TEXT, sent TEXT, body TEXT) WITHOUT ROWID;
CREATE TABLE events (id TEXT PRIMARY KEY, title TEXT, attendee TEXT, start TEXT, minutes INTEGER) WITHOUT ROWID;
CREATE TABLE tasks (id TEXT PRIMARY KEY, title TEXT, assignee TEXT, due TEXT, list_name TEXT) WITHOUT ROWID;
"""
_TABLES = ("mail", "events", "tasks")
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_MINUTE = re.compile(_DAY.pattern + r"[ T][0-9]{2}:[0-9]{2}")

Record = dict[str, Any]
State = Mapping[tuple[Any, ...], int]
"""How often each row is there: by table, by id where it was there from the start, and by content."""


class OfficeError(Exception):
    """Something that the office does not do, in words for the model."""


@lru_cache(maxsize=NUM_WORLDS)
def _template(world_number: int) -> bytes:
    """The database of a world, as bytes."""
    world = world_of(world_number)
    connection = sqlite3.connect(":memory:")
    connection.executescript(_SCHEMA)
    for table, rows in (("people", world.people), ("mail", world.mail), ("events", world.events), ("tasks", world.tasks)):
        for row in map(astuple, rows):
            connection.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)
    connection.commit()
    serialized = connection.serialize()
    connection.close()
    return serialized


@lru_cache(maxsize=NUM_WORLDS)
def _first_ids(world_number: int) -> frozenset[str]:
    world = world_of(world_number)
    return frozenset(one.id for one in (*world.mail, *world.events, *world.tasks))


class Office:
    """One office. It must be closed."""

    def __init__(self, world_number: int):
        self.world_number = world_number
        self._connection = sqlite3.connect(":memory:", isolation_level=None, cached_statements=8)
        self._connection.row_factory = sqlite3.Row
        self._connection.deserialize(_template(world_number))
        self._num_changes = 0

    def close(self) -> None:
        """Let the database go."""
        self._connection.close()

    def find_people(self, name: str) -> list[Record]:
        """Directory entries whose name or address holds `name`."""
        condition = "instr(lower(name || ' ' || address), ?)"
        return self._all(f"SELECT * FROM people WHERE {condition} ORDER BY name LIMIT ?", name.strip().lower(), PAGE)

    def search_mail(self, query: str, page: int) -> list[Record]:
        """Mail in which every word of `query` stands, the latest first, without bodies."""
        where = "lower(sender || ' ' || recipient || ' ' || subject || ' ' || body)"
        columns = "id, folder, sender, recipient, subject, sent"
        return self._search(f"SELECT {columns} FROM mail", where, query, "sent DESC, id", page)

    def search_events(self, query: str, page: int) -> list[Record]:
        """Events in which every word of `query` stands, by start."""
        return self._search("SELECT * FROM events", "lower(title || ' ' || attendee || ' ' || start)", query, "start, id", page)

    def search_tasks(self, query: str, page: int) -> list[Record]:
        """Tasks in which every word of `query` stands, by due date."""
        where = "lower(title || ' ' || assignee || ' ' || due || ' ' || list_name)"
        return self._search("SELECT * FROM tasks", where, query, "due, id", page)

    def mail(self, mail_id: str) -> Record:
        """One mail, whole."""
        return self._one("mail", mail_id)

    def send_mail(self, recipient: str, subject: str, body: str) -> str:
        """Send a mail to somebody in the directory; its id."""
        sent = TODAY.isoformat(sep=" ", timespec="minutes")
        return self._insert("mail", "sent", ME, self._address(recipient), subject, sent, body)

    def delete(self, table: str, row_id: str) -> None:
        """Delete a row."""
        self._one(table, row_id)
        self._change(f"DELETE FROM {table} WHERE id = ?", row_id)

    def create_event(self, title: str, attendee: str, start: str, minutes: int) -> str:
        """Put an event into the calendar; its id."""
        return self._insert("events", title, self._address(attendee), minute_of(start), minutes)

    def move_event(self, event_id: str, start: str) -> None:
        """Give an event another start."""
        self._one("events", event_id)
        self._change("UPDATE events SET start = ? WHERE id = ?", minute_of(start), event_id)

    def create_task(self, title: str, assignee: str, due: str, list_name: str) -> str:
        """Put a task on a list; its id."""
        return self._insert("tasks", title, self._address(assignee), day_of(due), _list(list_name))

    def update_task(self, task_id: str, field: str, value: str) -> None:
        """Change one field of a task."""
        self._one("tasks", task_id)
        checks = {"title": str, "assignee": self._address, "due": day_of, "list_name": _list}
        checked = checks[field](value)
        self._change(f"UPDATE tasks SET {field} = ? WHERE id = ?", checked, task_id)  # `field` is a key of `checks`

    def state(self) -> State:
        """What there is, without regard to order, the ids of new rows, case, and the width of blanks."""
        first = _first_ids(self.world_number)
        counts: dict[tuple[Any, ...], int] = {}
        for table in _TABLES:
            for row_id, *values in self._connection.execute(f"SELECT * FROM {table}"):
                content = (" ".join(value.casefold().split()) if isinstance(value, str) else value for value in values)
                key = (table, row_id if row_id in first else None, *content)
                counts[key] = counts.get(key, 0) + 1
        return counts

    def _all(self, statement: str, *values: Any) -> list[Record]:
        return [dict(row) for row in self._connection.execute(statement, values)]

    def _search(self, select: str, where: str, query: str, order: str, page: int) -> list[Record]:
        words = query.lower().split()[:PAGE]
        condition = " AND ".join([f"instr({where}, ?)"] * len(words)) or "1"
        return self._all(f"{select} WHERE {condition} ORDER BY {order} LIMIT ? OFFSET ?", *words, PAGE, PAGE * (page - 1))

    def _one(self, table: str, row_id: str) -> Record:
        found = self._all(f"SELECT * FROM {table} WHERE id = ?", row_id)
        if not found:
            raise OfficeError(f"there is no {row_id!r} among the {table}")
        return found[0]

    def _address(self, address: str) -> str:
        wanted = address.strip().lower()
        if not self._all("SELECT 1 FROM people WHERE address = ?", wanted):
            raise OfficeError(f"{address!r} is no address of the directory")
        return wanted

    def _insert(self, table: str, *values: Any) -> str:
        row_id = f"{ {'mail': 'mail', 'events': 'event', 'tasks': 'task'}[table] }_new_{self._num_changes + 1}"
        self._change(f"INSERT INTO {table} VALUES (?{', ?' * len(values)})", row_id, *values)
        return row_id

    def _change(self, statement: str, *values: Any) -> None:
        if self._num_changes >= MAX_CHANGES:
            raise OfficeError(f"{MAX_CHANGES} changes are all that this session may make")
        self._connection.execute(statement, values)
        self._num_changes += 1


def minute_of(text: str) -> str:
    """`2026-03-02 09:00`, checked."""
    try:
        if _MINUTE.fullmatch(text.strip()):
            return datetime.fromisoformat(text.strip()).isoformat(sep=" ", timespec="minutes")
    except ValueError:
        pass
    raise OfficeError(f"{text!r} is no date and time; write 2026-03-02 09:00")


def day_of(text: str) -> str:
    """`2026-03-02`, checked."""
    try:
        if _DAY.fullmatch(text.strip()):
            return date.fromisoformat(text.strip()).isoformat()
    except ValueError:
        pass
    raise OfficeError(f"{text!r} is no date; write 2026-03-02")


def _list(name: str) -> str:
    if name.strip().lower() not in LISTS:
        raise OfficeError(f"there is no list {name!r}; there are {', '.join(LISTS)}")
    return name.strip().lower()
