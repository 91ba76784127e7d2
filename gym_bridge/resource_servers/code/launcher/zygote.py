"""The launcher's main process: it takes a socket from the caller for every run and forks a supervisor for it."""

import gc
import os
import signal
import socket

from gym_bridge.resource_servers.code.launcher.order import message_length, pack_report, unpack_order
from gym_bridge.resource_servers.code.launcher.supervisor import Supervisor

_PART = 1 << 20


def main(control_fd: int) -> None:
    """Serve until the caller closes its end of the control socket, or is gone, which closes it too."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # supervisors are reaped by the kernel
    control = socket.socket(fileno=control_fd)
    gc.freeze()
    run = 0
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not message:
            return
        run += 1
        if os.fork() == 0:
            control.close()
            _serve(socket.socket(fileno=descriptors[0]), run)
            os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)


def _serve(connection: socket.socket, run: int) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    data = _read_message(connection)
    if data:
        report = Supervisor(unpack_order(data), connection=connection, run=run).report()
        if report is not None:
            connection.sendall(pack_report(report))


def _read_message(connection: socket.socket) -> bytes:
    """One whole message; empty when the caller left in the middle of it."""
    data = bytearray()
    while len(data) < 8 or len(data) < message_length(data):
        part = connection.recv(_PART)
        if not part:
            return b""
        data += part
    return bytes(data)
