"""The resource servers that ship with gym-bridge, by name. Loading one imports its folder; naming it imports nothing."""

from typing import TYPE_CHECKING

from gym_bridge.config import Registry

if TYPE_CHECKING:
    from gym_bridge.resource_servers.base import ResourceServer

SERVERS: "Registry[type[ResourceServer]]" = Registry(
    "resource server",
    {"arithmetic": "gym_bridge.resource_servers.arithmetic.app:ArithmeticServer"},
)
