"""SandboxEval's third category: reaching anything outside, over a network, a socket or a neighbour. Loopback targets only."""

from tests.resource_servers.hostile.program import Hostile

PROGRAMS = [
    Hostile(
        name="tcp_to_loopback",
        open_air=True,
        source='import socket; tries("tcp", lambda: socket.create_connection(("127.0.0.1", PORT), 1).send(b"x"))',
    ),
    Hostile(
        name="tcp_over_ipv6",
        source='import socket; tries("tcp6", lambda: socket.socket(socket.AF_INET6).connect(("::1", PORT)))',
    ),
    Hostile(
        name="udp",
        open_air=True,
        source='import socket; tries("udp", lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", PORT)))',
    ),
    Hostile(
        name="dns",
        open_air=True,
        source="""
import socket
tries("localhost", lambda: socket.create_connection(("localhost", PORT), 1))
def query():
    asker = socket.socket(type=socket.SOCK_DGRAM)
    return asker.sendto(bytes.fromhex("0001010000010000000000000161076578616d706c650000010001"), ("127.0.0.1", 53))
tries("query", query)
""",
    ),
    Hostile(
        name="http",
        open_air=True,
        source="""
import http.client
tries("http", lambda: http.client.HTTPConnection("127.0.0.1", PORT, timeout=1).request("GET", "/"))
""",
    ),
    Hostile(
        name="listens",
        open_air=True,
        source='import socket; tries("server", lambda: socket.create_server(("127.0.0.1", 0)).getsockname())',
    ),
    Hostile(
        name="unix_socket_by_path",
        open_air=True,
        source='import socket; tries("unix", lambda: socket.socket(socket.AF_UNIX).connect(SOCKET))',
    ),
    Hostile(
        name="unix_socket_in_the_abstract",
        open_air=True,
        source="""
import socket
tries("connect", lambda: socket.socket(socket.AF_UNIX).connect(ABSTRACT))
tries("bind", lambda: socket.socket(socket.AF_UNIX).bind(b"\\0gym-bridge-evil"))
""",
    ),
    Hostile(
        name="raw_and_odd_sockets",
        source="""
import socket
for family, kind in ((socket.AF_INET, socket.SOCK_RAW), (17, socket.SOCK_RAW), (16, socket.SOCK_RAW), (40, 1), (38, 5), (31, 3)):
    tries((family, kind), lambda: socket.socket(family, kind, 1 if kind == socket.SOCK_RAW else 0))
tries("pair", lambda: socket.socketpair(socket.AF_INET))
tries("tipc pair", lambda: socket.socketpair(30))
""",
    ),
    Hostile(
        name="socket_by_number",
        open_air=True,
        source='call("socket", 41, 198, 2, 1, 0); call("connect", 42, 203, 0, None, 0); call("bind", 49, 200, 0, None, 0)',
    ),
    Hostile(
        name="socket_by_io_uring",
        source="""
call("setup", 425, 425, 1, bytes(120))
call("enter", 426, 426, 0, 0, 0, 0, None, 0)
call("register", 427, 427, 0, 0, None, 0)
""",
    ),
    Hostile(
        name="socket_by_the_32_bit_door",
        ends=("exit", "signal"),
        source="""
if platform.machine() != "x86_64":
    say("held", "no such door")
else:
    import mmap
    code = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, 7)
    code.write(bytes.fromhex("b814000000" "cd80" "c3"))  # mov eax, 20 (getpid); int 0x80; ret
    say("held", "about to jump")
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    say("ESCAPED", "int 0x80", ctypes.CFUNCTYPE(ctypes.c_int)(address)())
""",
    ),
    Hostile(
        name="socket_by_x32",
        ends=("exit", "signal"),
        source="""
say("held", "about to call")
if platform.machine() == "x86_64":
    result = ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(0x40000000 + 41), 2, 1, 0)
    say("ESCAPED" if result >= 0 else "held", "x32", result)
""",
    ),
    Hostile(
        name="a_child_connects",
        open_air=True,
        source="""
source = f"import socket; socket.create_connection(('127.0.0.1', {PORT}), 1); print('through')"
finds("child", lambda: subprocess.run([sys.executable, "-I", "-S", "-c", source], capture_output=True).stdout == b"through\\n")
""",
    ),
    Hostile(
        name="message_queues",
        source="""
call("shmget", 29, 194, 0, 4096, 0o600 | 0o1000)
call("msgget", 68, 186, 0, 0o600 | 0o1000)
call("semget", 64, 190, 0, 1, 0o600 | 0o1000)
call("mq_open", 240, 180, b"gym-bridge-evil", 0o102, 0o600, None)
""",
    ),
    Hostile(
        name="descriptors_of_the_parent",
        source="""
call("pidfd_open", 434, 434, PARENT, 0)
call("pidfd_open of 1", 434, 434, 1, 0)
call("pidfd_getfd", 438, 438, 0, 0, 0)
call("pidfd_send_signal", 424, 424, 0, 0, None, 0)
tries("fd", lambda: os.listdir(f"/proc/{PARENT}/fd"))
""",
    ),
    Hostile(
        name="javascript_connects",
        language="javascript",
        source="""
const socket = require("net").connect(9, "127.0.0.1");
socket.on("connect", () => { console.log("ESCAPED"); process.exit(0); });
socket.on("error", (error) => console.log(error.code === "ECONNREFUSED" ? "ESCAPED refused by somebody" : "held", error.code));
""",
    ),
]
