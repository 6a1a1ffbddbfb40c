"""What a program may not do, and that a right one passes. Each of these is one program in the
sandbox."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import pytest

from cegppo.config import Limits
from cegppo.problems import programs, sandbox
from cegppo.types import BadInput

pytestmark = pytest.mark.skipif(bool(sandbox.missing()), reason=sandbox.missing() or "there")
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
        ("return open(x).read()", "FileNotFoundError"),
        ("import os; return sorted(set(os.listdir('/')) - SYSTEM)", []),
        ("open('/proc/self/environ').read()", "FileNotFoundError"),
        ("open('/proc/1/mem').read()", "FileNotFoundError"),
        ("import os; os.fork()", "PermissionError"),
        ("import subprocess; subprocess.run(['/bin/true'])", "PermissionError"),
        ("import os; os.execv('/bin/true', ['true'])", "FileNotFoundError"),
        ("import os; os.kill(os.getppid(), 9)", "PermissionError"),
        ("import socket; socket.create_connection(('127.0.0.1', 22), 1)", "PermissionError"),
        ("import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)", "PermissionError"),
        ("import socket; socket.socket(40, socket.SOCK_STREAM)", "PermissionError"),  # of virtual machines
        ("import threading; threading.Thread(target=print).start()", "RuntimeError"),
        ("open('big', 'w').write('x' * 2**21)", "OSError"),
        ("open('/outside', 'w')", "OSError"),
        ("open('/dev/outside', 'w')", "OSError"),
        ("import os; os.memfd_create('x')", "PermissionError"),
        ("import os; return [name for name in os.environ if 'TOKEN' in name or name in ('HOME', 'PATH', 'USER')]", []),
        ("open('own', 'w').write('1'); return open('own').read()", "1"),
        ("import numpy; return int(numpy.arange(4).sum())", 6),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_what_a_program_reaches(deed, said, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "x")
    (tmp_path / "secret").write_text("a secret")
    system = {"dev", "etc", "lib", "lib64", "usr", "w", "sandboxed.py", *Path(sys.base_prefix).parts[1:2],
              *Path(sysconfig.get_path("purelib")).parts[1:2]}  # fmt: skip
    program = f"SYSTEM = {system!r}\n{tried(deed)}"
    if said == "OSError":  # whichever of them
        program = program.replace("type(error).__name__", "'OSError' * isinstance(error, OSError)")
    assert passes(program, f"assert f({str(tmp_path / 'secret')!r}) == {said!r}")


@pytest.mark.parametrize(
    "deed",
    ["os.chmod(x, 0o777)", "os.utime(x, (1, 1))", "os.setxattr(x, 'user.a', b'1')", "open(x, 'a')", "os.truncate(x, 0)",
     "os.unlink(x)", "os.rename(x, x + '1')", "os.chown(x, 1, 1)", "os.symlink('/etc/passwd', x + '2')"],
)  # fmt: skip
def test_nothing_that_is_there_can_be_changed(deed):
    """Mode, times and attributes of what a program may read: the file of a module."""
    path = Path(json.__file__)
    before = (path.read_bytes(), path.stat().st_mode, path.stat().st_mtime_ns, os.listxattr(path))
    assert passes(
        tried(f"import os; {deed}").replace("type(error).__name__", "error.errno"),
        f"assert f({str(path)!r}) == {errno.EROFS}",
    )
    assert before == (path.read_bytes(), path.stat().st_mode, path.stat().st_mtime_ns, os.listxattr(path))


SYSTEM_CALL = """
import ctypes, platform
libc = ctypes.CDLL(None, use_errno=True)
def call(x86, arm, *arguments):
    number = x86 if platform.machine() == "x86_64" else arm
    return libc.syscall(number, *map(ctypes.c_long, arguments)), ctypes.get_errno()
"""


@pytest.mark.parametrize(
    "numbers", [(29, 194, 0, 2**29, 0o1600), (68, 186, 0, 0o1600), (64, 190, 0, 1, 0o1600), (250, 219, 0, 0),
                (248, 217, 0, 0), (425, 425, 1, 0), (272, 97, 0x10000000), (321, 280, 0, 0, 0)],
    ids=["shmget", "msgget", "semget", "keyctl", "add_key", "io_uring_setup", "unshare", "bpf"],
)  # fmt: skip
def test_what_no_namespace_covers_is_no_system_call(numbers):
    assert passes(f"{SYSTEM_CALL}def f(x): return call(*{numbers})", f"assert f(1) == (-1, {errno.EPERM})")


def test_memory_that_no_process_counts_is_bounded():
    """Segments, which were 1.6 GiB against a limit of 512 MiB, and the folder itself."""
    segments = f"{SYSTEM_CALL}def f(x): return [call(29, 194, 0, 2**28, 0o1600)[0] for _ in range(8)]"
    assert passes(segments, "assert f(1) == [-1] * 8")
    files = """
def f(x):
    written = 0
    try:
        for n in range(1000):
            with open(str(n), "wb") as file:
                written += file.write(bytes(2**20 - 1))
    except OSError:
        pass
    return written
"""
    assert passes(files, f"assert 0 < f(1) <= {sandbox.DISK * 2**20}")


def outside(process: subprocess.Popen) -> tuple:
    return (
        process.poll(),
        os.getpriority(os.PRIO_PROCESS, process.pid),
        resource.prlimit(process.pid, resource.RLIMIT_CPU),
    )


ATTACKS = """
import os, resource, signal
def f(pid):
    for deed in (
        lambda: os.kill(pid, 9), lambda: os.kill(-1, 9), lambda: call(234, 131, pid, pid, 9),
        lambda: call(129, 138, pid, 9, 0), lambda: call(200, 130, pid, 9), lambda: call(297, 240, pid, pid, 9, 0),
        lambda: call(424, 424, 0, 9, 0, 0), lambda: resource.prlimit(pid, resource.RLIMIT_CPU, (1, 1)),
        lambda: os.setpriority(os.PRIO_USER, 0, 19), lambda: os.setpriority(os.PRIO_PROCESS, pid, 19),
        lambda: os.setpriority(os.PRIO_USER, {uid}, 19), lambda: call(251, 30, 1, pid, 0x6000),
        lambda: os.sched_setaffinity(pid, [0]), lambda: call(310, 270, pid, 0, 0, 0, 0, 0),
    ):
        try:
            deed()
        except Exception:
            pass
    return pid
"""


def test_a_program_does_not_reach_another_process():
    with subprocess.Popen(["sleep", "60"]) as process:
        before = outside(process)
        assert passes(
            SYSTEM_CALL + ATTACKS.replace("{uid}", str(os.getuid())), f"assert f({process.pid}) == {process.pid}"
        )
        assert outside(process) == before and before[0] is None
        process.kill()


@pytest.mark.parametrize("error", ["StopIteration", "StopAsyncIteration", "GeneratorExit", "SystemExit"])
def test_an_exception_that_ends_an_iteration_is_no_success(error):
    test = "assert all(map(f, [1, 2]))\nassert [f(x) for x in ()] == []\nlist(map(f, [3]))"
    assert passes(f"def f(x): raise {error}", test) is False
    assert passes("def f(x): return True", test) is True


def test_a_program_cannot_write_the_verdict():
    """It has the ends of two pipes, neither of which is the verdict's."""
    program = """
import os
for fd in range(64):
    for word in (b"1", b"!1", b"ready\\n1"):
        try:
            os.write(fd, word)
        except OSError:
            pass
def f(x): return 0
"""
    assert passes(program) is False


def test_nothing_of_a_program_stays():
    here = set(os.listdir("."))
    leaves = "open('left', 'w').write('x')\ndef f(x): return 2 * x"
    assert passes(leaves) and set(os.listdir(".")) == here
    finds = "import os\ndef f(x): return os.listdir('.')"
    assert passes(finds, "assert f(1) == []")


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


@pytest.fixture
def anew():
    """What was found out about this machine is forgotten, before and afterwards."""
    for remembered in (sandbox._try_out, sandbox._sandbox):
        remembered.cache_clear()
    yield
    for remembered in (sandbox._try_out, sandbox._sandbox):
        remembered.cache_clear()


def test_a_sandbox_that_cannot_work_is_no_verdict(tmp_path, monkeypatch, anew):
    (tmp_path / "inside.py").write_text("raise SystemError('no such thing')\n")
    monkeypatch.setattr(sandbox, "INSIDE", tmp_path / "inside.py")
    with pytest.raises(RuntimeError, match="does not work on this machine: SystemError: no such thing"):
        passes("def f(x): return 2 * x")


def test_an_endless_test_is_given_up(monkeypatch):
    monkeypatch.setattr(sandbox, "PATIENCE", 5)
    assert passes("def f(x): return 1", "f(1)\nwhile True: pass", limits=Limits(timeout=1)) is None


def test_without_bubblewrap_no_program_runs(tmp_path, monkeypatch, anew):
    """Neither where it is missing, nor where it cannot make a sandbox."""
    monkeypatch.setenv("PATH", str(tmp_path))
    why = r"needs bubblewrap, which is not installed \(apt-get install bubblewrap\)"
    with pytest.raises(RuntimeError, match=why):
        passes("def f(x): return 2 * x")
    with pytest.raises(BadInput, match=f"d.jsonl: verifier=code: .*{why}"):
        programs.check([], "d.jsonl")
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    with pytest.raises(RuntimeError, match="does not work on this machine: bwrap: No permissions to create"):
        passes("def f(x): return 2 * x")


AS_ANOTHER = """
import os, subprocess, sys
from types import SimpleNamespace
sys.path.insert(0, {root!r})
from cegppo.problems import sandbox
assert os.getuid() == 65534
process = subprocess.Popen(["sleep", "60"])
priority = os.getpriority(os.PRIO_PROCESS, process.pid)
job = lambda program, test: sandbox.Job(program, "f", test)
found = sandbox.run([
    job("def f(x): return 2 * x", "assert f(2) == 4"), job("def f(x): return x", "assert f(2) == 4"),
    job({attacks!r}, f"assert f({{process.pid}}) == {{process.pid}}"),
    job("def f(x):\\n    try: open(x).read()\\n    except Exception as e: return type(e).__name__",
        "assert f('/etc/passwd') == 'FileNotFoundError'"),
], SimpleNamespace(timeout=5.0, memory_mb=512, workers=1))
alive = process.poll() is None and os.getpriority(os.PRIO_PROCESS, process.pid) == priority
process.kill()
print(found, alive)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="changes to another user, which root may")
def test_another_user_is_as_well_protected(tmp_path):
    """Its own other processes have its user id, so that no permission stands before them."""
    python = next(
        (p for p in ("/usr/bin/python3.11", "/usr/bin/python3", "/usr/local/bin/python3") if os.path.exists(p)), None
    )
    if python is None or not shutil.which("setpriv"):
        pytest.skip("no Python that another user may start, or no setpriv")
    for name in ("__init__.py", "problems/__init__.py", "problems/sandbox.py", "problems/sandboxed.py"):
        (tmp_path / "cegppo" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cegppo" / name).write_text((Path(sandbox.__file__).parents[1] / name).read_text())
    shared = Path(tempfile.mkdtemp(prefix="sandbox-"))
    try:
        shutil.copytree(tmp_path / "cegppo", shared / "cegppo")
        for path in (shared, *shared.rglob("*")):
            path.chmod(0o755)
        code = AS_ANOTHER.format(root=str(shared), attacks=SYSTEM_CALL + ATTACKS.replace("{uid}", "65534"))
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", python, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, cwd="/", env={**os.environ, sandbox.FLAG: "1"})
    finally:
        shutil.rmtree(shared)
    assert done.stdout.strip() == "[True, False, True, True] True", done.stderr
