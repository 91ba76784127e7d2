"""What a scorer's process is asked to do in tests: good and bad."""

import os
import socket
import time
from pathlib import Path


def act(how: str):
    """Do as told."""
    match how:
        case "print":
            print('{"result": "forged"}', flush=True)
            return "printed"
        case "raise":
            raise ValueError("nonsense")
        case "exit":
            os._exit(0)
        case "sleep":
            time.sleep(30)
        case "write":
            Path("/tmp/written").write_text("")
        case "fork":
            os.fork()
        case "connect":
            socket.socket()
    return 1 + 2
