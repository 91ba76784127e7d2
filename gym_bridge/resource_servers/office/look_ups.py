"""How somebody who knows nothing yet does what is asked: each id and address looked up before it is used."""

from collections.abc import Iterator, Mapping
from typing import Any

from gym_bridge.resource_servers.office.requests import Call
from gym_bridge.resource_servers.office.world import Mail, World

_SEARCHES = {
    "mail_id": ("mail_search", "mail", "subject"),
    "event_id": ("calendar_search", "events", "title"),
    "task_id": ("tasks_search", "tasks", "title"),
}
"""By the argument that is an id: the tool that finds it, the table, and what a request calls its rows by."""


def look_ups(world: World, text: str, arguments: Mapping[str, Any]) -> Iterator[Call]:
    """The calls that tell the ids and addresses of `arguments`: by title, or a mail by its sender where `text` names that alone."""
    names = {person.address: person.name for person in world.people}
    for argument, value in arguments.items():
        if argument in _SEARCHES:
            search, table, title = _SEARCHES[argument]
            sought = next((one for one in getattr(world, table) if one.id == value), None)
            if sought is None:
                continue
            query = getattr(sought, title)
            if isinstance(sought, Mail) and query not in text and (sender := names.get(sought.sender, "")) and sender in text:
                yield "directory_find", {"name": sender}
                query = sought.sender
            yield search, {"query": query, "page": 1}
        elif value in names:
            yield "directory_find", {"name": names[value]}
