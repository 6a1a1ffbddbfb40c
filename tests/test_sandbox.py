"""What a program may not do, and that a right one passes. Each of these is one program in the
sandbox."""

import os
import time

import pytest

from cegppo.config import Limits
from cegppo.problems import sandbox

LIMITS = Limits(timeout=2, memory_mb=512)
DOUBLES = "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate([1]) == [1, 1]\n"


@pytest.fixture(autouse=True)
def switched_on(monkeypatch):
    monkeypatch.setenv(sandbox.FLAG, "1")


def passes(program: str, test: str = DOUBLES, context: str = "", limits: Limits = LIMITS) -> bool | None:
    return sandbox.run([sandbox.Job(program, "f", test, context)], limits)[0]


def test_it_is_off_unless_switched_on(monkeypatch):
    monkeypatch.delenv(sandbox.FLAG)
    with pytest.raises(RuntimeError, match="CEGPPO_RUN_CODE=1 only"):
        passes("def f(x): return 2 * x")


def test_right_programs_pass_and_wrong_ones_do_not():
    right, wrong = "def f(x):\n    return 2 * x", "def f(x):\n    return x"
    jobs = [sandbox.Job(program, "f", DOUBLES) for program in (right, wrong, right, "def g(x): return 2 * x", "def f(")]
    assert sandbox.run(jobs, LIMITS) == [True, False, True, False, False]
    shapes = "x = {1: (2.5, None), 'a': {True, b'c'}, 'n': float('inf'), 'i': 10**5000}\nassert f(x) == x"
    assert passes("def f(x): return x", shapes)
    raises = "try:\n    f(-1)\nexcept ValueError:\n    pass\nelse:\n    assert False"
    assert passes("def f(x): raise ValueError(x)", raises) and not passes("def f(x): return x", raises)
    helped = "assert f(2) == twice(2)"
    assert passes("def f(x): return 2 * x", helped, context="def twice(x): return 2 * x\ndef f(x):\n    '''doc'''")


@pytest.mark.parametrize(
    "program",
    [
        "class Equal:\n    __eq__ = lambda a, b: True\n    __ne__ = lambda a, b: False\ndef f(x): return Equal()",
        "class Whole(int):\n    __eq__ = lambda a, b: True\n    __hash__ = int.__hash__\ndef f(x): return Whole(7)",
        "import builtins, json\nbuiltins.AssertionError = ValueError\njson.loads = lambda *_: [2]\ndef f(x): return 7",
        "import sys\nsys.exit(0)",
        "import os\nos._exit(0)",
        "def f(x): raise SystemExit(0)",
        "import os\n[os.write(fd, b'1') for fd in (1, 2)]\nos._exit(0)",
        "import sys\nmark, found, frame = ')2(etadidnac', False, sys._getframe()\nwhile frame:\n"
        "    found |= any(mark in str(value)[::-1] for value in frame.f_locals.values())\n    frame = frame.f_back\n"
        "def f(x): return x + x if found else None",
    ],
    ids=[
        "equal to all",
        "an int equal to all",
        "patched",
        "exit",
        "os._exit",
        "exit later",
        "prints 1",
        "reads the test",
    ],
)
def test_a_program_cannot_say_that_it_passed(program):
    assert passes(program) is False


@pytest.mark.parametrize(
    "program",
    [
        "def f(x):\n    while True: pass",
        "import time, signal\nsignal.setitimer(signal.ITIMER_REAL, 0)\ndef f(x): time.sleep(100)",
        "def f(x):\n    while True: print('x' * 10**6)",
        "import os\nos.setsid()\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    ],
    ids=["endless", "asleep", "endless output", "fork bomb"],
)
def test_time_is_limited(program):
    start = time.perf_counter()
    assert passes(program, limits=Limits(timeout=1)) is False
    assert time.perf_counter() - start < 20  # of which the machine's own business is most


def test_memory_and_results_are_limited():
    assert passes("def f(x):\n    held = []\n    while True: held.append(bytearray(10**7))") is False
    assert passes("def f(x): return 'x' * 10**7") is False
    enough = "assert f(1) == 'MemoryError'"
    assert passes("def f(x):\n    try: bytearray(2**29)\n    except MemoryError: return 'MemoryError'", enough)


def tried(deed: str) -> str:
    return f"def f(x):\n    try:\n        {deed}\n    except Exception as error:\n        return type(error).__name__"


@pytest.mark.parametrize(
    "deed, said",
    [
        ("return open(x).read()", "PermissionError"),
        ("import os; os.listdir('/')", "PermissionError"),
        ("open('/proc/self/environ').read()", "PermissionError"),
        ("open('/proc/1/mem').read()", "PermissionError"),
        ("import os; os.fork()", "PermissionError"),
        ("import subprocess; subprocess.run(['/bin/true'])", "PermissionError"),
        ("import os; os.execv('/bin/true', ['true'])", "PermissionError"),
        ("import os; os.kill(os.getppid(), 9)", "PermissionError"),
        ("import socket; socket.create_connection(('127.0.0.1', 22), 1)", "PermissionError"),
        ("import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)", "PermissionError"),
        ("import threading; threading.Thread(target=print).start()", "RuntimeError"),
        ("open('big', 'w').write('x' * 2**21)", "OSError"),
        ("import os; return [name for name in os.environ if 'TOKEN' in name or name in ('HOME', 'PATH', 'USER')]", []),
        ("open('own', 'w').write('1'); return open('own').read()", "1"),
        ("import numpy; return int(numpy.arange(4).sum())", 6),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_what_a_program_reaches(deed, said, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "x")
    (tmp_path / "secret").write_text("a secret")
    assert passes(tried(deed), f"assert f({str(tmp_path / 'secret')!r}) == {said!r}")


def test_nothing_of_a_program_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox.tempfile, "tempdir", str(tmp_path))
    assert passes("open('left', 'w').write('x')\ndef f(x): return 2 * x")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "test",
    [
        "",
        "def check(candidate):\n    assert undefined(candidate)",
        "assert f(lambda: 1)",
        "assert f(",
        "import nowhere",
    ],
    ids=["calls nothing", "name error", "argument that cannot cross", "syntax error", "import error"],
)
def test_a_broken_test_says_nothing_about_the_program(test):
    assert passes("def f(x): return 2 * x", test) is None


def test_a_sandbox_that_cannot_work_is_no_verdict(tmp_path, monkeypatch):
    (tmp_path / "sandbox.py").write_text("raise SystemError('no such thing')\n")
    monkeypatch.setattr(sandbox, "__file__", str(tmp_path / "sandbox.py"))
    sandbox._try_out.cache_clear()
    with pytest.raises(RuntimeError, match="does not work on this machine: SystemError: no such thing"):
        passes("def f(x): return 2 * x")


def test_an_endless_test_is_given_up(monkeypatch):
    monkeypatch.setattr(sandbox, "PATIENCE", 1)
    assert passes("def f(x): return 1", "f(1)\nwhile True: pass", limits=Limits(timeout=1)) is None


def test_what_a_machine_lacks_is_said_once(capsys):
    sandbox._warned.clear()
    sandbox._warn("the network\nmore")
    sandbox._warn("the network")
    assert capsys.readouterr().err.splitlines() == [
        "warning: sandbox: on this machine nothing keeps programs from the network",
        "warning: sandbox: on this machine nothing keeps programs from more",
    ]


OPEN = "return open(x).read()"
CALL = "import socket; socket.create_connection(('127.0.0.1', 22), 1)"


@pytest.mark.parametrize(
    "layer, missing, deed, said",
    [
        ("    if libc.unshare(", "filling the disk, a MiB a file", CALL, "PermissionError"),
        ("    if version < 1:", "reading and writing the files that you can read and write", CALL, "PermissionError"),
        ("    if machine not in DENIED:", "starting processes without end", OPEN, "PermissionError"),
        ("    if machine not in DENIED:", "starting processes without end", CALL, "PermissionError"),
    ],
    ids=["namespaces", "Landlock", "the filter, files", "the filter, network"],
)
def test_without_one_layer_the_others_hold(layer, missing, deed, said, tmp_path, monkeypatch, capsys):
    """A machine that lacks it is made by a line of the file that the judge runs."""
    source = open(sandbox.__file__).read()
    assert source.count(layer) == 1
    (tmp_path / "sandbox.py").write_text(source.replace(layer, layer.replace("if ", "if True or ")))
    (tmp_path / "secret").write_text("a secret")
    monkeypatch.setattr(sandbox, "__file__", str(tmp_path / "sandbox.py"))
    sandbox._warned.clear()
    assert passes(tried(deed), f"assert f({str(tmp_path / 'secret')!r}) == {said!r}")
    warned = capsys.readouterr().err
    if os.geteuid() == 0 or "processes" not in missing:  # a limit of processes binds everybody but root
        assert missing in warned and warned.count("\n") == 1
