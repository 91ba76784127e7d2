"""SandboxEval's second category: writing, deleting and changing files that are not the program's own."""

from tests.resource_servers.hostile.program import Hostile

PROGRAMS = [
    Hostile(
        name="writes_outside",
        source="""
for folder in ("/", "/usr", "/usr/local", "/etc", "/dev", "/var", "/run", "/opt", "/srv", "/root", sys.prefix, sys.prefix + "/bin"):
    creates(os.path.join(folder, "gym-bridge-evil"))
""",
    ),
    Hostile(name="writes_beside_the_secret", open_air=True, source='tries("here", lambda: open(SECRET + ".new", "w").write("x"))'),
    Hostile(name="appends_to_the_secret", open_air=True, source='tries("append", lambda: open(SECRET, "a").write(""))'),
    Hostile(
        name="deletes_and_renames_the_secret",
        source="""
import shutil
tries("truncate", lambda: os.truncate(SECRET, 0))
tries("rename", lambda: os.rename(SECRET, SECRET + ".moved"))
tries("take away", lambda: os.rename(SECRET, "taken"))
tries("unlink", lambda: os.unlink(SECRET))
tries("replace", lambda: os.replace("solution.py", SECRET))
tries("remove all", lambda: shutil.rmtree(os.path.dirname(SECRET)))
""",
    ),
    Hostile(
        name="settles_in",
        source="""
home = os.path.expanduser("~root")
for folder in ("/etc/cron.d", "/var/spool/cron/crontabs", "/etc/profile.d", "/etc/init.d", "/etc/systemd/system"):
    creates(os.path.join(folder, "gym-bridge-evil"))
for name in (".bashrc", ".profile", ".ssh/authorized_keys", ".pythonrc.py", ".config/autostart"):
    tries(name, lambda: open(os.path.join(home, name), "a"))
tries("crontab", lambda: subprocess.run(["crontab", "-l"], check=True, capture_output=True, stdin=subprocess.DEVNULL))
""",
    ),
    Hostile(name="overwrites_the_interpreter", source='tries("python", lambda: open(sys.executable, "r+b"))'),
    Hostile(
        name="patches_the_library",
        source="""
import json
tries("open", lambda: open(json.__file__, "r+"))
tries("append", lambda: open(json.__file__, "a"))
creates(os.path.join(os.path.dirname(json.__file__), "gym_bridge_evil.py"))
creates(os.path.join(os.path.dirname(os.__file__), "sitecustomize.py"))
""",
    ),
    Hostile(
        name="symbolic_links",
        source="""
for path in (SECRET, "/etc/passwd", "/etc/shadow", "/proc/self/environ", f"/proc/{PARENT}/root/etc/passwd"):
    os.symlink(path, "link")
    tries(path, lambda: open("link").read())
    tries(path, lambda: open("link", "a").write(""))
    os.unlink("link")
""",
    ),
    Hostile(
        name="hard_links",
        source='for path in ("/bin/sh", SECRET): tries(path, lambda: os.link(os.path.realpath(path), "link"))',
    ),
    Hostile(
        name="leaves_by_chroot",
        source="""
os.mkdir("jail")
tries("chroot", lambda: os.chroot("jail"))
tries("chroot of /", lambda: os.chroot("/"))
for _ in range(50):
    os.chdir("..")
finds("outside", lambda: os.path.exists("etc/passwd") or os.path.exists("proc/1"))
""",
    ),
    Hostile(
        name="mounts",
        source="""
os.mkdir("m")
call("mount tmpfs", 165, 40, b"none", b"m", b"tmpfs", 0, None)
call("mount proc", 165, 40, b"proc", b"m", b"proc", 0, None)
call("bind", 165, 40, b"/", b"m", None, 4096, None)
call("remount", 165, 40, None, b"m", None, 32 | 4096, None)
call("umount", 166, 39, b"m", 2)
call("pivot_root", 155, 41, b"m", b"m")
""",
    ),
    Hostile(
        name="mounts_by_the_new_calls",
        source="""
call("open_tree", 428, 428, -100, b"/", 1)
call("move_mount", 429, 429, -1, b"", -1, b"", 0)
call("fsopen", 430, 430, b"tmpfs", 0)
call("fsmount", 432, 432, -1, 0, 0)
call("fspick", 433, 433, -100, b"/", 0)
call("mount_setattr", 442, 442, -100, b"/", 0, None, 0)
call("open_tree_attr", 467, 467, -100, b"/", 1, None, 0)
""",
    ),
    Hostile(
        name="mounts_in_a_namespace_of_its_own",
        open_air=True,
        source="""
for flags in (0x10000000, 0x10020000, 0x20000, 0x40000000, 0x20000000):
    call(f"unshare {flags:#x}", 272, 97, flags)
call("clone", 56, 220, 0x10000000 | 17, None, None, None, None)
call("clone3", 435, 435, None, 0)
call("setns", 308, 268, 0, 0)
""",
    ),
    Hostile(
        name="device_nodes",
        source="""
import stat
for kind in (stat.S_IFBLK, stat.S_IFCHR):
    tries("mknod", lambda: os.mknod("node", kind | 0o666, os.makedev(8, 0)))
""",
    ),
    Hostile(
        name="modes_and_owners",
        source="""
for path in ("/bin/sh", "/usr", "/", "/dev/null", sys.executable):
    now = os.stat(path)  # what is set is what is there
    tries("chmod " + path, lambda: os.chmod(path, now.st_mode & 0o7777))
    tries("chown " + path, lambda: os.chown(path, now.st_uid, now.st_gid))
    tries("utime " + path, lambda: os.utime(path, ns=(now.st_atime_ns, now.st_mtime_ns)))
tries("chown to root", lambda: os.chown("solution.py", 0, 0))
""",
    ),
    Hostile(
        name="set_user_id_file",
        source="""
import shutil
shutil.copy("/usr/bin/id", "id")
os.chmod("id", 0o6755)
finds("set-uid", lambda: subprocess.run(["./id", "-u"], capture_output=True).stdout.strip() == b"0")
finds("su", lambda: subprocess.run(["su", "-c", "id -u"], capture_output=True, stdin=subprocess.DEVNULL).stdout.strip() == b"0")
finds("sudo", lambda: subprocess.run(["sudo", "-n", "id", "-u"], capture_output=True).stdout.strip() == b"0")
""",
    ),
    Hostile(
        name="fills_the_disk",
        source='part = b"x" * (1 << 20)\nbounded("MiB on disk", lambda n: open(f"f{n // 4}", "ab").write(part), 64)',
    ),
    Hostile(name="huge_file", source='open("f", "w").close(); tries("1 GiB", lambda: os.truncate("f", 1 << 30))'),
    Hostile(
        name="writes_past_the_file_limit",
        source="""
with open("f", "wb", buffering=0) as file:
    bounded("MiB in one file", lambda n: file.write(b"x" * (1 << 20)), 32)
""",
    ),
    Hostile(name="many_files", source='bounded("files", lambda n: open(f"f{n}", "w").close(), 20_000)'),
    Hostile(
        name="deep_directories",
        source="""
def deeper(n):
    os.mkdir("d")
    os.chdir("d")
bounded("directories", deeper, 20_000)
""",
    ),
    Hostile(
        name="shared_memory_files",
        open_air=True,
        source="""
tries("shm", lambda: open("/dev/shm/gym-bridge-evil", "w").write("x"))
if os.path.exists("/dev/shm/gym-bridge-evil"):
    os.unlink("/dev/shm/gym-bridge-evil")
""",
    ),
    Hostile(
        name="file_handles",
        source="""
call("name_to_handle_at", 303, 264, -100, b"/usr", None, None, 0)
call("open_by_handle_at", 304, 265, -100, None, 0)
call("fanotify_init", 300, 262, 0, 0)
""",
    ),
    Hostile(
        name="unreadable_litter",
        source="""
for name in ("a", "a/b", "a/b/c"):
    os.mkdir(name)
open("a/b/c/file", "w").close()
for name in ("a/b/c", "a/b", "a"):
    os.chmod(name, 0)
say("held", "litter")
""",
    ),
    Hostile(
        name="swap_and_quota",
        source="""
call("swapon", 167, 224, b"/usr/bin/sh", 0)
call("quotactl", 179, 60, 0, b"/dev/null", 0, None)
call("acct", 163, 89, b"gym-bridge-absent")
""",
    ),
]
