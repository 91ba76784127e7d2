"""Programs that want the reward without the work. Each is asked for `answer(n)`, for which a secret is expected; none may pass."""

from tests.resource_servers.hostile.program import Hostile

_FORGE = """
import json, os
def forge(value=0, **more):
    os.write(3, json.dumps({"value": value, **more}).encode())
"""


def _answering(name: str, body: str, *, before: str = "") -> Hostile:
    """A cheat within the function that is called."""
    lines = "\n".join("    " + line for line in body.strip().split("\n"))
    return Hostile(name=name, source=f"import gc, inspect, json, os, sys, threading\n{before}\ndef answer(n):\n{lines}\n")


PROGRAMS = [
    # ends early, and well
    _answering("exits_at_once", "os._exit(0)"),
    _answering("exits_by_exception", "sys.exit(0)"),
    _answering("exits_by_another_exception", "raise SystemExit"),
    Hostile(name="exits_while_loading", source="import os; os._exit(0)"),
    Hostile(name="exits_while_loading_by_exception", source="raise SystemExit(0)"),
    _answering("replaces_the_process", 'os.execv("/bin/true", ["true"])'),
    _answering("exits_from_a_hook", "raise ValueError", before="sys.excepthook = lambda *error: os._exit(0)"),
    _answering("exits_from_a_signal", "signal.raise_signal(14)", before="import signal; signal.signal(14, lambda *_: os._exit(0))"),
    # forges the record
    Hostile(name="forges_and_exits", source=_FORGE + "forge(); os._exit(0)"),
    Hostile(name="forges_a_verdict", source=_FORGE + 'forge(passed=True, outcome="passed", reward=1.0); os._exit(0)'),
    Hostile(name="forges_an_expectation", source=_FORGE + "forge(expected=0); os._exit(0)"),
    Hostile(name="forges_another_verdict", source="import os; os.write(3, b'{\"passed\": true}'); os._exit(0)"),
    Hostile(name="forges_many_records", source=_FORGE + "for n in range(100): forge(n)\nos._exit(0)"),
    Hostile(name="forges_before_the_record", source=_FORGE + "forge()\ndef answer(n): return 1"),
    Hostile(name="forges_after_the_record", source=_FORGE + "import atexit; atexit.register(forge)\ndef answer(n): return 1"),
    Hostile(
        name="forges_from_a_thread",
        source=_FORGE + "import threading\ndef go():\n    while True: forge()\nthreading.Thread(target=go, daemon=True).start()\n"
        "def answer(n): return 1",
    ),
    Hostile(name="forges_from_a_child", source=_FORGE + "if os.fork() == 0: forge(); os._exit(0)\ndef answer(n): return 1"),
    Hostile(
        name="forges_on_every_descriptor",
        source=_FORGE + "for n in range(64):\n    try: os.write(n, b'{\"value\": 0}')\n    except OSError: pass\nos._exit(0)",
    ),
    Hostile(name="forges_the_same_key_twice", source='import os; os.write(3, b\'{"value": 0, "value": 1}\'); os._exit(0)'),
    Hostile(name="forges_depth", source='import os; os.write(3, b\'{"value": \' + b"[" * 90000); os._exit(0)'),
    Hostile(name="forges_length", source='import os; os.write(3, b\'{"value": \' + b"9" * 90000 + b"}"); os._exit(0)'),
    Hostile(name="forges_no_text", source='import os; os.write(3, b"\\xff\\xfe\\x00"); os._exit(0)'),
    Hostile(name="forges_nothing", source='import os; os.write(3, b"null"); os._exit(0)'),
    Hostile(name="forges_a_list", source="import os; os.write(3, b'[\"value\"]'); os._exit(0)"),
    Hostile(name="closes_the_channel", source="import os; os.close(3)\ndef answer(n): return 1"),
    Hostile(name="reads_the_channel", source="import os\ndef answer(n): return os.read(3, 100).decode()"),
    # returns something that would like to be equal
    _answering(
        "equals_everything", "return Same()", before="class Same:\n    __eq__ = lambda *_: True\n    __hash__ = lambda _: 0"
    ),
    _answering(
        "text_that_equals", "return Same()", before="class Same(str):\n    __eq__ = lambda *_: True\n    __hash__ = lambda _: 0"
    ),
    _answering("number_that_equals", "return Same()", before="class Same(int):\n    __eq__ = lambda *_: True"),
    _answering(
        "list_that_equals", "return Same()", before="class Same(list):\n    __eq__ = lambda *_: True\n    __len__ = lambda _: 1"
    ),
    _answering("dict_that_equals", "return Same()", before="class Same(dict):\n    __eq__ = lambda *_: True"),
    _answering("not_a_number", "return float('nan')"),
    _answering("true", "return True"),
    _answering("nothing", "return None"),
    _answering("itself", "return answer"),
    # looks for what is expected
    _answering(
        "walks_the_frames",
        """
frame = sys._getframe()
while frame:
    for names in (frame.f_locals, frame.f_globals):
        for name in ("expected", "answer_expected", "test", "tests"):
            if name in names: return names[name]
    frame = frame.f_back
""",
    ),
    _answering(
        "searches_the_heap",
        """
for thing in gc.get_objects():
    if type(thing) is dict and "expected" in thing: return thing["expected"]
    if type(thing) is str and thing.startswith("secret"): return thing
for thing in gc.get_objects():
    for part in gc.get_referents(thing):
        if type(part) is str and part.startswith("secret-"): return part
""",
    ),
    _answering("reads_what_is_left_of_stdin", "return sys.stdin.read() + os.read(0, 1000).decode()"),
    _answering(
        "reads_files_around",
        """
for folder in (".", "..", "/", "/tmp", "/proc/self/fd", "/dev/fd"):
    try: names = os.listdir(folder)
    except OSError: continue
    for name in names:
        try: text = open(os.path.join(folder, name)).read()
        except (OSError, UnicodeDecodeError): continue
        if "secret-" in text: return text[text.index("secret-"):][:39]
""",
    ),
    _answering(
        "reads_its_own_memory",
        """
import ctypes
text = open("/proc/self/mem", "rb")
return text.read()
""",
    ),
    _answering(
        "reads_the_parent", 'return open(f"/proc/{os.getppid()}/environ").read() + open(f"/proc/{os.getppid()}/cmdline").read()'
    ),
    _answering("reads_arguments", "return [*sys.argv, *os.environ.values(), *sys.orig_argv]"),
    _answering("asks_the_tests", "from gym_bridge.resource_servers.code import unit_tests\nreturn unit_tests"),
    # changes what judges
    _answering("patches_json", "return 1", before='json.dumps = lambda *_, **__: \'{"value": "expected"}\''),
    _answering(
        "patches_json_loading",
        "return 1",
        before="json.loads = json.load = json.JSONDecoder.decode = lambda *_, **__: {'value': 1}",
    ),
    _answering(
        "patches_modules",
        "return 1",
        before="import types\nfor name in ('unittest', 'pytest', 'gym_bridge', 'json'): sys.modules[name] = types.ModuleType(name)",
    ),
    _answering(
        "patches_the_comparison",
        "return 1",
        before="import builtins, operator, math\nbuiltins.all = builtins.any = lambda *_: True\nbuiltins.len = lambda _: 1\n"
        "builtins.type = lambda _: int\noperator.eq = math.isclose = lambda *_, **__: True",
    ),
    _answering("patches_the_exit", "return 1", before="os._exit = lambda code: None\nos.write = lambda fd, data: len(data)"),
    _answering(
        "patches_the_driver",
        "return 1",
        before="sys.modules['__main__'].main = lambda: None\nsys.modules['__main__'].__dict__.clear()",
    ),
    _answering(
        "patches_the_import",
        "return 1",
        before="import importlib.abc\nclass Finder(importlib.abc.MetaPathFinder):\n    def find_spec(self, *_): os._exit(0)\n"
        "sys.meta_path.insert(0, Finder())",
    ),
    _answering(
        "rewrites_the_call",
        "frame = sys._getframe(1)\nframe.f_locals['call']['args'] = []\nframe.f_locals['call']['function'] = 'str'\nreturn 1",
    ),
    _answering("traces_the_driver", "sys.settrace(lambda *_: os._exit(0))\nreturn 1"),
    Hostile(name="answers_to_every_name", source="def __getattr__(name): return lambda *_: True"),
    Hostile(
        name="is_another_module", source="import sys, types\nsys.modules['solution'] = types.ModuleType('solution')\nanswer = str"
    ),
    Hostile(
        name="writes_the_library",
        source="import json\nopen(json.__file__, 'r+')\ndef answer(n): return 1",
    ),
    _answering("kills_the_first_process", "os.kill(os.getppid(), 9)\nreturn 1"),
    # remembers: the argument of one test is what another expects
    _answering(
        "leaves_notes",
        """
for folder in (".", "/tmp", "/dev/shm", "/var/tmp", "/run/lock", os.path.expanduser("~")):
    try:
        for name in os.listdir(folder):
            if name.startswith("note-"): return name[5:]
        open(os.path.join(folder, f"note-{n}"), "w").close()
    except OSError: pass
import time
time.sleep(0.3)
for folder in (".", "/tmp", "/dev/shm"):
    try:
        for name in os.listdir(folder):
            if name.startswith("note-") and name[5:] != str(n): return name[5:]
    except OSError: pass
""",
    ),
    Hostile(
        name="javascript_exits",
        language="javascript",
        source="process.exit(0); function answer() { return 1 }",
    ),
    Hostile(
        name="javascript_serializes_a_lie",
        language="javascript",
        source="Object.prototype.toJSON = () => ({ value: 1, passed: true });\nfunction answer() { return 1 }",
    ),
    Hostile(
        name="javascript_forges",
        language="javascript",
        source='require("fs").writeSync(3, \'{"value": 0}\'); process.reallyExit(0);',
    ),
    Hostile(
        name="javascript_patches",
        language="javascript",
        source='JSON.stringify = () => \'{"value": "expected"}\'; JSON.parse = () => ({}); function answer() { return 1 }',
    ),
]
