"""A machine that gives the sandbox less: this program takes system calls or uid 0 from itself, then runs programs in a sandbox.

    python narrow_machine.py '{"denied": ["unshare"], "uid": 0, "allow_unsandboxed": false, "sources": ["print(1)"]}'

It prints the layers, what is missing, and how the programs ended, or the error of a sandbox that refused.
"""

import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))

from gym_bridge.errors import ConfigError
from gym_bridge.resource_servers.code.launcher import kernel, seccomp
from gym_bridge.resource_servers.code.limits import Limits
from gym_bridge.resource_servers.code.program import Program
from gym_bridge.resource_servers.code.sandbox import Sandbox


async def run_all(wish: dict) -> dict:
    """What the wish asks for, as JSON can say it."""
    limits = Limits(cpu_s=2, wall_s=3.0, memory_mib=256, file_mib=4, disk_mib=16, output_kib=256)
    try:
        async with Sandbox(limits=limits, allow_unsandboxed=wish["allow_unsandboxed"]) as sandbox:
            ends = [await sandbox.run(Program(source=one)) for one in wish["sources"]]
            found = {"layers": sandbox.layers(), "missing": sandbox.missing_layers()}
    except ConfigError as error:
        return {"refused": str(error)}
    found["ends"] = [[one.ended_by, one.stdout.decode(), one.stderr.decode()] for one in ends]
    found["left"] = [one.name for one in Path(tempfile.gettempdir()).glob("gym-bridge-sandbox-*") if one.stat().st_uid != 0]
    return found


def main() -> None:
    """Become narrow, run, print."""
    wish = json.loads(sys.argv[1])
    if wish["uid"]:
        os.setgroups([])
        os.setresgid(wish["uid"], wish["uid"], wish["uid"])
        os.setresuid(wish["uid"], wish["uid"], wish["uid"])
        kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
    if wish["denied"]:
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        seccomp.install(wish["denied"])
    print(json.dumps(asyncio.run(run_all(wish))))


main()
