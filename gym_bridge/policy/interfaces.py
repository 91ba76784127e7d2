"""The network interface over which the processes of one training talk."""

import fcntl
import os
import socket
import struct
import sys

CHOSEN = "GLOO_SOCKET_IFNAME"
"""Where gloo reads which interface it is to use."""
SIOCGIFADDR = 0x8915  # of Linux' sockios.h: the IPv4 address of an interface
ADDRESS = slice(20, 24)
"""Where it stands in the answer."""
ANY_PORT = 9


def use_interface_towards(host: str) -> None:
    """Let gloo talk over the interface that leads to `host`, where the user has not named one.

    By itself it takes the one that has the address of the machine's own name, which on Debian is the loopback.
    """
    name = None if CHOSEN in os.environ else interface_towards(host)
    if name is not None:
        os.environ[CHOSEN] = name


def interface_towards(host: str) -> str | None:
    """The interface of this machine that has the IPv4 address from which it would call `host`; None where that cannot be told."""
    if sys.platform != "linux":
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, ANY_PORT))  # of a datagram: nothing is sent
        except OSError:
            return None
        own = probe.getsockname()[0]
        return next((name for _, name in socket.if_nameindex() if _address(probe, name) == own), None)


def _address(probe: socket.socket, name: str) -> str | None:
    try:
        return socket.inet_ntoa(fcntl.ioctl(probe.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()))[ADDRESS])
    except OSError:  # it has none
        return None
