"""SandboxEval's first category: what a program learns of the machine, its users, its other processes and their secrets."""

from tests.resource_servers.hostile.program import Hostile

PROGRAMS = [
    Hostile(name="environment", open_air=True, source='finds("environment", lambda: "canary" in str(os.environ).lower())'),
    Hostile(
        name="parent_environment", open_air=True, source='tries("environ", lambda: open(f"/proc/{PARENT}/environ", "rb").read())'
    ),
    Hostile(name="first_process", open_air=True, source='tries("init", lambda: open("/proc/1/cmdline", "rb").read())'),
    Hostile(
        name="own_proc_entry",
        open_air=True,
        source='for one in ("environ", "cmdline", "maps", "mountinfo"): tries(one, lambda: open(f"/proc/self/{one}").read())',
    ),
    Hostile(
        name="proc_roots",
        open_air=True,
        source='for pid in ("self", "1", PARENT): tries("root", lambda: os.listdir(f"/proc/{pid}/root/etc"))',
    ),
    Hostile(
        name="process_list",
        open_air=True,
        source='finds("pids", lambda: [one for one in os.listdir("/proc") if one.isdigit()]); '
        'finds("ps", lambda: len(subprocess.run(["ps", "ax"], capture_output=True).stdout.splitlines()) > 1)',
    ),
    Hostile(
        name="accounts",
        open_air=True,
        source='for path in ("/etc/passwd", "/etc/group", "/etc/hosts"): tries(path, lambda: open(path).read())',
    ),
    Hostile(name="password_hashes", source='tries("shadow", lambda: open("/etc/shadow").read())'),
    Hostile(name="account_module", open_air=True, source='import pwd; finds("pwd", lambda: pwd.getpwall())'),
    Hostile(
        name="home_directories",
        source="""
def others(folder):  # the way to the interpreter may lead through a home
    ours = os.path.realpath(sys.prefix)
    return [one for one in os.listdir(folder) if not ours.startswith(os.path.join(os.path.realpath(folder), one))]
for folder in ("/root", "/home", "/root/.ssh", os.path.expanduser("~/.ssh"), os.path.expanduser("~/.aws"), "/var/lib", "/srv"):
    finds(folder, lambda: others(folder))
""",
    ),
    Hostile(name="secret_file", open_air=True, source='tries("secret", lambda: open(SECRET).read())'),
    Hostile(
        name="secret_file_by_dots",
        open_air=True,
        source='tries("secret", lambda: open("/usr/../" + "../" * 40 + SECRET[1:]).read())',
    ),
    Hostile(
        name="search_of_the_tree",
        source="""
def search():
    hits = []
    for folder, folders, files in os.walk("/"):
        folders[:] = [one for one in folders if os.path.join(folder, one) not in ("/usr", "/lib", sys.prefix)]
        hits += [one for one in files if one == os.path.basename(SECRET)]
    return hits
finds("secret", search)
""",
    ),
    Hostile(name="tests_of_the_sandbox", open_air=True, source='tries("tests", lambda: os.listdir(HERE))'),
    Hostile(
        name="our_packages",
        source="""
for name in ("gym_bridge", "pytest", "pydantic", "aiohttp"):
    tries(name, lambda: __import__(name))
sys.path.insert(0, os.path.dirname(os.path.dirname(HERE)))
tries("gym_bridge by path", lambda: __import__("gym_bridge"))
""",
    ),
    Hostile(
        name="kernel_tables",
        source="""
for path in ("/proc/kallsyms", "/proc/cpuinfo", "/proc/net/tcp", "/sys/kernel", "/sys/class/net", "/boot", "/dev/kmsg"):
    tries(path, lambda: os.listdir(path) if os.path.isdir(path) else open(path).read(100))
call("syslog", 103, 116, 10, None, 0)
""",
    ),
    Hostile(
        name="devices",
        open_air=True,
        source="""
known = {"null", "zero", "full", "random", "urandom"}
finds("devices", lambda: set(os.listdir("/dev")) - known)
for path in ("/dev/mem", "/dev/vda", "/dev/sda", "/dev/tty", "/dev/ptmx", "/dev/fuse", "/dev/kvm"):
    tries(path, lambda: os.open(path, os.O_RDONLY))
""",
    ),
    Hostile(
        name="container_secrets",
        source="""
for path in ("/.dockerenv", "/run/secrets", "/run/docker.sock", "/var/run/secrets/kubernetes.io", "/etc/machine-id", "/var/log"):
    finds(path, lambda: os.path.exists(path))
""",
    ),
    Hostile(
        name="network_interfaces",
        source="""
import socket
finds("interfaces", lambda: [name for _, name in socket.if_nameindex() if name != "lo"])
for path in ("/proc/net/route", "/proc/net/dev", "/etc/resolv.conf", "/etc/hosts"):
    tries(path, lambda: open(path).read())
finds("address of this machine", lambda: socket.gethostbyname(HOST))
""",
    ),
    Hostile(name="machine_name", open_air=True, source='finds("hostname", lambda: platform.node() == HOST)'),
    Hostile(name="own_identity", source='finds("root", lambda: 0 in (*os.getresuid(), *os.getresgid(), *os.getgroups()))'),
    Hostile(
        name="inherited_descriptors",
        source="""
def look():
    found = []
    for number in range(4, 1024):
        try:
            found.append((number, os.fstat(number)))
        except OSError:
            pass
    return found
finds("descriptors", look)
""",
    ),
    Hostile(
        name="runs_beside_it",
        source="""
for folder in ("..", "/", "/tmp", "/var/tmp", "/dev/shm", "/run"):
    finds(folder, lambda: [one for one in os.listdir(folder) if one.startswith(("gym-bridge", "pytest"))])
finds("own directory", lambda: os.listdir() != ["solution.py"])
""",
    ),
    Hostile(
        name="parent_memory",
        open_air=True,
        source="""
tries("mem", lambda: open(f"/proc/{PARENT}/mem", "rb"))
tries("maps", lambda: open(f"/proc/{PARENT}/maps").read())
call("process_vm_readv", 310, 270, PARENT, None, 0, None, 0, 0)
call("process_vm_readv of 1", 310, 270, 1, None, 0, None, 0, 0)
""",
    ),
    Hostile(
        name="javascript_reads_files",
        language="javascript",
        source="""
const fs = require("fs");
for (const path of ["/etc/passwd", "/etc/shadow", "/proc/self/environ", "/root"]) {
  try { fs.statSync(path).isDirectory() ? fs.readdirSync(path) : fs.readFileSync(path); console.log("ESCAPED", path); }
  catch (error) { console.log("held", path, error.code); }
}
console.log(JSON.stringify(process.env).toLowerCase().includes("canary") ? "ESCAPED env" : "held env");
""",
    ),
    Hostile(
        name="c_includes_a_secret",
        language="c",
        ends=("compile",),
        source='#include "/etc/passwd"\nint main() { return 0; }\n',
    ),
]
