"""SandboxEval's last category, dangerous operations: using up the machine, killing, tracing, gaining rights, outliving the run."""

from tests.resource_servers.hostile.program import Hostile

PROGRAMS = [
    Hostile(
        name="fork_bomb",
        source="""
def fork(n):
    if os.fork() == 0:
        time.sleep(30)
        os._exit(0)
bounded("processes", fork, 300)
""",
    ),
    Hostile(
        name="fork_bomb_that_grows",
        source="""
deadline = time.time() + 1
for _ in range(9):
    try:
        os.fork()
    except OSError:
        pass
while time.time() < deadline:
    time.sleep(0.1)
say("held", "grown")
""",
    ),
    Hostile(
        name="threads",
        source="""
bounded("threads", lambda n: threading.Thread(target=time.sleep, args=(30,), daemon=True).start(), 300)
os._exit(0)
""",
    ),
    Hostile(name="memory", source='bounded("16 MiB", lambda n: bytearray(16 << 20), 64)'),
    Hostile(name="memory_at_once", source='tries("2 GiB", lambda: len(bytearray(2 << 30)))'),
    Hostile(
        name="memory_of_many",
        ends=("memory",),
        source="""
for _ in range(20):
    if os.fork() == 0:
        kept = bytearray(b"x") * (100 << 20)
        time.sleep(30)
        os._exit(0)
time.sleep(30)
say("ESCAPED", "2 GB")
""",
    ),
    Hostile(name="shared_memory", source='import mmap; tries("2 GiB", lambda: mmap.mmap(-1, 2 << 30))'),
    Hostile(
        name="memory_files",
        open_air=True,
        source='tries("memfd", lambda: os.memfd_create("evil")); call("memfd_secret", 447, 447, 0)',
    ),
    Hostile(name="endless_loop", ends=("cpu_time",), source="while True: pass"),
    Hostile(
        name="endless_loop_that_ignores_the_warning",
        ends=("cpu_time",),
        source="signal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
    ),
    Hostile(name="endless_loops_in_parallel", ends=("cpu_time",), source="for _ in range(3): os.fork()\nwhile True: pass"),
    Hostile(name="catastrophic_pattern", ends=("cpu_time",), source='import re; re.match("(a+)+b", "a" * 50)'),
    Hostile(name="huge_power", ends=("cpu_time", "exit", "memory"), source='tries("power", lambda: 9 ** 9 ** 9)'),
    Hostile(name="sleeps", ends=("wall_time",), source="time.sleep(3600)"),
    Hostile(name="waits_for_input", source='finds("input", lambda: sys.stdin.read())'),
    Hostile(name="stops_itself", ends=("wall_time",), source="os.kill(os.getpid(), signal.SIGSTOP)"),
    Hostile(
        name="ignores_every_signal",
        ends=("wall_time",),
        source="""
for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
time.sleep(3600)
""",
    ),
    Hostile(
        name="kills",
        ends=("exit", "signal"),
        source="""
own = os.getpid() < 100  # process ids of its own; without, what follows would be the machine's
for pid in (PARENT, *((os.getppid(), 1, -1) if own else ())):
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP):
        try:
            os.kill(pid, number)
        except OSError as error:
            say("held", pid, error)
say("held", "alive")
""",
    ),
    Hostile(
        name="has_the_kernel_send_signals",
        open_air=True,
        source="""
import fcntl, socket, struct
reader, writer = os.pipe()
tries("F_SETOWN", lambda: fcntl.fcntl(reader, fcntl.F_SETOWN, PARENT))
tries("F_SETSIG", lambda: fcntl.fcntl(reader, fcntl.F_SETSIG, signal.SIGKILL))
tries("F_SETOWN_EX", lambda: fcntl.fcntl(reader, 15, struct.pack("ii", 1, PARENT)))
one, other = socket.socketpair()
tries("FIOSETOWN", lambda: fcntl.ioctl(one, 0x8901, struct.pack("i", PARENT)))
tries("SIOCSPGRP", lambda: fcntl.ioctl(one, 0x8902, struct.pack("i", PARENT)))
""",
    ),
    Hostile(name="kills_its_group", ends=("signal",), source="os.killpg(0, signal.SIGKILL)"),
    Hostile(
        name="leaves_a_daemon",
        source="""
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
        time.sleep(300)
    os._exit(0)
say("held", "gone")
""",
    ),
    Hostile(
        name="leaves_a_writer",
        source="""
if os.fork() == 0:
    os.setsid()
    while True:
        os.write(2, b"x")
        time.sleep(0.001)
say("held", "gone")
os._exit(0)
""",
    ),
    Hostile(name="zombies", source='bounded("zombies", lambda n: os.fork() or os._exit(0), 300)'),
    Hostile(
        name="traces",
        source="""
call("traceme", 101, 117, 0, 0, 0, 0)
call("attach parent", 101, 117, 16, PARENT, 0, 0)
call("seize 1", 101, 117, 0x4206, 1, 0, 0)
call("process_vm_writev", 311, 271, PARENT, None, 0, None, 0, 0)
call("kcmp", 312, 272, 1, 1, 0, 0, 0)
call("process_madvise", 440, 440, 0, None, 0, 0, 0)
""",
    ),
    Hostile(
        name="becomes_root",
        source="""
tries("setuid", lambda: os.setuid(0))
tries("seteuid", lambda: os.seteuid(0))
tries("setresuid", lambda: os.setresuid(-1, 0, -1))
tries("setgid", lambda: os.setgid(0))
tries("setgroups", lambda: os.setgroups([0]))
call("setfsuid", 122, 151, 0)
call("capset", 126, 91, (0x20080522).to_bytes(4, "little") + bytes(4), b"\\xff" * 24)
finds("root", lambda: 0 in os.getresuid())
""",
    ),
    Hostile(
        name="could_gain_rights",
        open_air=True,
        source="""
libc = ctypes.CDLL(None)
finds("new privileges", lambda: libc.prctl(39, 0, 0, 0, 0) != 1)
finds("capabilities to be had", lambda: [one for one in range(64) if libc.prctl(23, one, 0, 0, 0) == 1])
""",
    ),
    Hostile(
        name="raises_its_limits",
        source="""
import resource
for kind in (resource.RLIMIT_NPROC, resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE):
    tries(kind, lambda: resource.setrlimit(kind, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)))
tries("another's", lambda: resource.prlimit(1, resource.RLIMIT_NOFILE))
tries("the parent's", lambda: resource.prlimit(PARENT, resource.RLIMIT_CPU, (1, 1)))
tries("nice", lambda: os.nice(-20))
tries("real time", lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)))
""",
    ),
    Hostile(
        name="sets_clocks_and_names",
        source="""
call("clock_settime", 227, 112, 99, bytes(16))
call("settimeofday", 164, 170, None, None)
call("adjtimex", 159, 171, bytes(208))
call("sethostname", 170, 161, b"x" * 999, 999)
call("setdomainname", 171, 162, b"x" * 999, 999)
call("reboot", 169, 142, 0, 0, 0, None)
""",
    ),
    Hostile(
        name="installs_a_package",
        source="""
import sysconfig
for kind in ("purelib", "platlib", "scripts", "stdlib"):
    creates(os.path.join(sysconfig.get_path(kind), "gym_bridge_evil.pth"))
creates("/var/lib/dpkg/info/gym-bridge-evil.list")
creates("/usr/local/bin/gym-bridge-evil")
""",
    ),
    Hostile(
        name="keys",
        source="""
call("keyctl", 250, 219, 0, -3, 0)
call("add_key", 248, 217, b"user", b"evil", b"x", 1, -3)
call("request_key", 249, 218, b"user", b"evil", None, 0)
""",
    ),
    Hostile(
        name="kernel_code",
        source="""
call("bpf", 321, 280, 0, None, 0)
call("perf_event_open", 298, 241, None, 0, -1, -1, 0)
call("init_module", 175, 105, None, 0, b"")
call("finit_module", 313, 273, -1, b"", 0)
call("kexec_load", 246, 104, 0, 0, None, 0)
call("userfaultfd", 323, 282, 0)
call("personality", 135, 92, 0x0040000)
call("vmsplice", 278, 75, 0, None, 0, 0)
call("newer than anybody looked at", 500, 500)
""",
    ),
    Hostile(
        name="deep_recursion",
        ends=("exit", "signal", "cpu_time", "memory"),
        source='sys.setrecursionlimit(1 << 30)\ndef down(n): return down(n + 1)\ntries("bottom", lambda: down(0))',
    ),
    Hostile(name="crashes", ends=("signal",), source="ctypes.string_at(0)"),
    Hostile(name="floods_stdout", ends=("output",), source='while True: os.write(1, b"x" * 65536)'),
    Hostile(name="floods_stderr", ends=("output",), source='while True: os.write(2, b"x" * 65536)'),
    Hostile(name="floods_the_result", ends=("output",), source='while True: os.write(3, b"x" * 65536)'),
    Hostile(
        name="floods_from_children",
        ends=("output",),
        source='for _ in range(4): os.fork()\nwhile True: os.write(1, b"x" * 65536)',
    ),
    Hostile(name="descriptors", source='bounded("descriptors", lambda n: os.open("/dev/null", os.O_RDONLY), 5000)'),
    Hostile(name="closes_everything", source='say("held", "closing"); os.closerange(0, 100); os._exit(0)'),
    Hostile(name="closes_everything_and_stays", ends=("wall_time",), source="os.closerange(0, 100); time.sleep(3600)"),
    Hostile(
        name="replaces_itself",
        open_air=True,
        source="""
say("held", "about to execute")
sys.stdout.flush()
os.execv("/bin/sh", ["sh", "-c", "cat /proc/1/status /etc/passwd > /dev/null 2>&1 && echo ESCAPED || true"])
""",
    ),
    Hostile(
        name="javascript_forks_and_loops",
        language="javascript",
        ends=("cpu_time", "wall_time"),
        source="""
const { spawn } = require("child_process");
for (let n = 0; n < 100; n++) { try { spawn("sleep", ["30"]).on("error", () => {}); } catch (error) { } }
setInterval(() => { for (;;) {} }, 1);
""",
    ),
    Hostile(
        name="javascript_memory",
        language="javascript",
        ends=("signal", "exit", "memory"),
        source="""
const kept = [];
for (let n = 0; n < 128; n++) kept.push(new Uint8Array(16 << 20).fill(1));
console.log("ESCAPED");
""",
    ),
    Hostile(
        name="c_forks",
        language="c",
        source="""
#include <stdio.h>
#include <unistd.h>
int main(void) {
  int made = 0;
  for (int n = 0; n < 300; n++) {
    int pid = fork();
    if (pid == 0) { sleep(30); _exit(0); }
    made += pid > 0;
  }
  puts(made < 100 ? "held" : "ESCAPED");
  return 0;
}
""",
    ),
    Hostile(
        name="c_compiles_a_bomb",
        language="c",
        ends=("compile",),
        source="char bomb[1u << 31] = {1};\nint main(void) { return 0; }\n",
    ),
    Hostile(name="c_includes_zeros", language="c", ends=("compile",), source='#include "/dev/zero"\n'),
    Hostile(name="c_includes_itself", language="c", ends=("compile",), source='#include "solution.c"\n#include "solution.c"\n'),
]
