"""Programs that a model wrote, run against their tests. Off unless CEGPPO_RUN_CODE=1.

Jobs flow in, True (passed), False (failed) or None (could not be found out) flow out, in order. Two
processes a job: a *judge*, which has the tests, and a *candidate*, which has the program and
answers the judge's calls. Only plain data crosses between them, so that a program that ends itself,
patches comparisons or prints what it likes has failed, and cannot say that it passed.

Both are shut in by what the kernel gives to everybody: namespaces (no network, no other processes,
a small file system in memory), Landlock (no file is readable but Python's own), a filter of system
calls (no new process, no socket), resource limits. What a machine does not give is said on standard
error, once. docs/security.md has what this keeps out and what it does not.

Left out: tests that need more than values to cross, such as a list that is changed in place, and
programs that are fed standard input.
"""

import builtins
import ctypes
import errno
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a judge runs this file alone, without the package
    from ..config import Limits

FLAG = "CEGPPO_RUN_CODE"
PATIENCE = 30  # seconds beyond its time limit until a job that says nothing is given up
MESSAGE = 2**20  # bytes that one call's arguments or result may have
DISK = 16  # MiB of the file system in memory
OPEN_FILES = 64
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"}


@dataclass(frozen=True)
class Job:
    """A program and what is asked of it."""

    program: str
    entry_point: str  # the function that is called
    test: str  # Python: asserts that call it by name, or a function check(candidate)
    context: str = ""  # Python that the test may use: the beginning of the program that the problem gives


def allowed() -> bool:
    """Whether the person at this machine lets code run that did not come from them."""
    return os.environ.get(FLAG) == "1"


def run(jobs: Sequence[Job], limits: "Limits") -> list[bool | None]:
    """Whether each program passes its test, in order; equal jobs run once. None where the test
    itself is broken or calls nothing, or the machine failed.

    `limits.timeout` is seconds of wall clock a job, `limits.memory_mb` MiB of address space of each
    of its processes, `limits.workers` jobs at a time. Raises RuntimeError unless `allowed()`, and
    where not even a right program passes.
    """
    if not allowed():
        raise RuntimeError(f"programs of a model run with {FLAG}=1 only")
    distinct = list(dict.fromkeys(jobs))
    if distinct:
        _try_out(limits.memory_mb)
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    judged = lambda job: _judged(job, limits.timeout, limits.memory_mb)[0]
    with ThreadPoolExecutor(limits.workers or max(1, cores), thread_name_prefix="sandbox") as threads:
        passed = dict(zip(distinct, threads.map(judged, distinct)))
    return [passed[job] for job in jobs]


@cache
def _try_out(memory_mb: int) -> None:
    """One right program, once, so that a sandbox that cannot work is no verdict on anybody's."""
    passed, complaint = _judged(Job("def f(x):\n    return x", "f", "assert f(1) == 1"), PATIENCE, memory_mb)
    if not passed:
        raise RuntimeError(f"the sandbox for programs does not work on this machine: {complaint or 'no reason said'}")


def _judged(job: Job, timeout: float, memory_mb: int) -> tuple[bool | None, str]:
    """(whether the program passes, the last line of what the judge complained of)."""
    given = _framed([job.program, job.entry_point]) + _framed([job.entry_point, job.test, job.context])
    with tempfile.TemporaryDirectory(prefix="cegppo-", ignore_cleanup_errors=True) as folder:
        # -I: no variables, no user's packages, not this folder; -S: nothing that packages start.
        command = [sys.executable, "-I", "-S", __file__, str(timeout), str(memory_mb)]
        judge = subprocess.Popen(
            [*command, sysconfig.get_path("purelib")], cwd=folder, env=ENVIRONMENT, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        try:
            reply, complaint = judge.communicate(given, timeout=timeout + PATIENCE)
        except subprocess.TimeoutExpired:
            reply, complaint = b"", b""
        finally:
            try:
                os.killpg(judge.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            judge.wait()
            for pipe in (judge.stdin, judge.stdout, judge.stderr):
                if pipe:
                    pipe.close()
    _warn(reply[1:].decode())
    lines = complaint.decode(errors="replace").strip().splitlines()
    return {b"1": True, b"0": False}.get(reply[:1]), lines[-1] if lines else ""


def _framed(value: Any) -> bytes:
    data = json.dumps(value).encode()
    return struct.pack("<Q", len(data)) + data


_warned: set[str] = set()
_warning = threading.Lock()


def _warn(missing: str) -> None:
    """Say what this machine does not keep programs from, once."""
    with _warning:
        fresh = [what for what in missing.split("\n") if what and what not in _warned]
        _warned.update(fresh)
    for what in fresh:
        print(f"warning: sandbox: on this machine nothing keeps programs from {what}", file=sys.stderr, flush=True)


# ------------------------------------------------------------- what crosses from one to the other


def packed(value: Any) -> Any:
    """`value` of Python's plain types, what derives from them taken for them, as JSON that
    `unpacked` reads. Raises TypeError for anything else."""
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    for tag, some in (("list", list), ("tuple", tuple), ("set", set), ("frozenset", frozenset)):
        if isinstance(value, some):
            return {tag: [packed(part) for part in value]}
    if isinstance(value, dict):
        return {"dict": [[packed(key), packed(part)] for key, part in value.items()]}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": value.hex()}
    raise TypeError(f"{type(value).__name__} is no plain data")


def unpacked(value: Any) -> Any:
    """The value that `packed` wrote."""
    if not isinstance(value, dict):
        return value
    ((tag, parts),) = value.items()
    if tag == "dict":
        return {unpacked(key): unpacked(part) for key, part in parts}
    if tag == "complex":
        return complex(*parts)
    if tag == "bytes":
        return bytes.fromhex(parts)
    return {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}[tag](map(unpacked, parts))


# ------------------------------------------------------------------------------- in the processes

CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = (
    0x00020000, 0x08000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446  # on every architecture
LANDLOCK_FILE_RIGHTS = (13, 13, 14, 15, 15, 16)  # rights that versions 1, 2 … of it know: the first so many bits
READ_FILE, READ_DIR = 1 << 2, 1 << 3
PR_SET_SECCOMP, SECCOMP_KILL, SECCOMP_ERRNO, SECCOMP_ALLOW = 22, 0x80000000, 0x00050000, 0x7FFF0000
# Per machine: its number for audits, and those of system calls that no program needs: fork, vfork,
# clone, clone3, execve, execveat, socket, socketpair, kill, tkill, pidfd_open, ptrace,
# process_vm_readv and _writev, unshare, setns, mount, umount2, pivot_root, chroot, bpf,
# perf_event_open, userfaultfd, io_uring_setup, add_key, request_key, keyctl.
DENIED = {
    "x86_64": (0xC000003E, (57, 58, 56, 435, 59, 322, 41, 53, 62, 200, 434, 101, 310, 311, 272, 308, 165, 166, 155, 161,
                            321, 298, 323, 425, 248, 249, 250)),
    "aarch64": (0xC00000B7, (220, 435, 221, 281, 198, 199, 129, 130, 434, 117, 270, 271, 97, 268, 40, 39, 41, 51,
                             280, 241, 282, 425, 217, 218, 219)),
}  # fmt: skip
NOT_IN_A_FOLDER = 1 << 0 | 1 << 6 | 1 << 9 | 1 << 11  # execute; make devices and sockets


def judge(timeout: float, memory_mb: int, packages: str) -> None:
    """Judge the one job on standard input; write `1`, `0` or `?` on standard output, and a line for
    everything this machine does not prevent."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    sys.path.append(packages)
    sys.set_int_max_str_digits(0)
    program, function = _frame()  # and not yet the test, which the candidate's memory must not hold
    apart, in_memory = _shut_in(libc)
    asked, answers = os.pipe(), os.pipe()
    init = os.fork()
    if init == 0:
        _init(libc, lambda: _candidate(program, function, asked[0], answers[1]), (asked[0], answers[1]), timeout,
              lambda: _confined(libc, timeout, memory_mb, packages))  # fmt: skip
    os.close(asked[0])
    os.close(answers[1])
    entry_point, test, context = _frame()
    reply = os.dup(1)
    _silent()
    files, calls = _confined(libc, timeout, memory_mb, packages)
    missing = [
        what
        for held, what in (
            (apart or calls, "the network (UDP; TCP too before Linux 6.7)"),
            (calls or os.geteuid(), "starting processes without end"),
            (files, "reading and writing the files that you can read and write"),
            (in_memory, "filling the disk, a MiB a file"),
        )
        if not held
    ]
    call = Call(os.fdopen(asked[1], "wb"), os.fdopen(answers[0], "rb"))
    found = _tested(call, entry_point, test, context)
    os.write(reply, found + "\n".join(missing).encode())
    os._exit(0)


def _frame() -> Any:
    """What one `_framed` wrote to standard input, and no byte more is read."""
    (left,) = struct.unpack("<Q", os.read(0, 8))
    parts = []
    while left:
        parts.append(os.read(0, min(left, 2**20)))
        if not parts[-1]:
            os._exit(1)
        left -= len(parts[-1])
    return json.loads(b"".join(parts))


def _shut_in(libc: Any) -> tuple[bool, bool]:
    """(whether this process is in namespaces of its own, whether its folder is in memory)."""
    user, group = os.geteuid(), os.getegid()  # which have no number inside before the maps are written
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC):
        return False, False
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        try:
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
        except OSError:  # some systems give a namespace and no rights in it; then the mount fails too, and is said
            pass
    here, size = os.getcwd().encode(), f"size={DISK}m,nr_inodes=1024".encode()
    mounted = libc.mount(b"none", here, b"tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, size) == 0
    os.chdir(here)
    return True, mounted


def _init(libc: Any, work: Callable, pipes: tuple[int, int], timeout: float, confine: Callable) -> None:
    """The first process of the candidate's namespace, with which all in it end; it runs nothing of
    the candidate's, so that its timer cannot be stopped."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    for fd in set(map(int, os.listdir("/proc/self/fd"))) - {0, 1, 2, *pipes}:
        try:
            os.close(fd)
        except OSError:  # that of the list itself
            pass
    _silent()
    candidate = os.fork()
    if candidate == 0:
        confine()
        work()
        os._exit(0)
    for fd in pipes:
        os.close(fd)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(candidate, signal.SIGKILL))
    signal.setitimer(signal.ITIMER_REAL, timeout)
    os.waitpid(candidate, 0)
    os._exit(0)


def _silent() -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nothing, fd)


def _confined(libc: Any, timeout: float, memory_mb: int, packages: str) -> tuple[bool, bool]:
    """Give up every right, and more than one's share: (whether files are closed, whether system
    calls are)."""
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.capset(struct.pack("=Ii", 0x20080522, 0), bytes(24))
    processor = int(timeout) + 2
    for limit, most in (
        (resource.RLIMIT_CPU, processor), (resource.RLIMIT_AS, memory_mb * 2**20), (resource.RLIMIT_FSIZE, 2**20),
        (resource.RLIMIT_NOFILE, OPEN_FILES), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NPROC, 0),
    ):  # fmt: skip
        hard = resource.getrlimit(limit)[1]
        resource.setrlimit(limit, (most if hard == resource.RLIM_INFINITY else min(most, hard),) * 2)
    return _landlocked(libc, packages), _filtered(libc)


def _filtered(libc: Any) -> bool:
    """Close the system calls that `DENIED` has: no process or thread is started, no socket opened,
    no other process reached."""
    machine = os.uname().machine
    if machine not in DENIED:
        return False
    architecture, denied = DENIED[machine]
    step = lambda code, yes, no, value: struct.pack("=HBBI", code, yes, no, value)
    load, equal, least, leave = 0x20, 0x15, 0x35, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, …|JGE|K, BPF_RET|K
    rules = [step(load, 0, 0, 4), step(equal, 1, 0, architecture), step(leave, 0, 0, SECCOMP_KILL), step(load, 0, 0, 0)]
    # The last rule but one lets through, and each match jumps over it and the rules between.
    rules.append(step(least, len(denied) + 1, 0, 0x40000000))  # the numbers of x32
    rules += [step(equal, len(denied) - place, 0, number) for place, number in enumerate(denied)]
    rules += [step(leave, 0, 0, SECCOMP_ALLOW), step(leave, 0, 0, SECCOMP_ERRNO | errno.EPERM)]
    program = ctypes.create_string_buffer(b"".join(rules))
    return libc.prctl(PR_SET_SECCOMP, 2, struct.pack("HP", len(rules), ctypes.addressof(program))) == 0


def _landlocked(libc: Any, packages: str) -> bool:
    """Files: Python's own may be read, the working folder used, nothing executed. TCP and signals
    to others are closed too where the kernel's Landlock knows them."""
    version = libc.syscall(ctypes.c_long(LANDLOCK_CREATE_RULESET), None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    if version < 1:
        return False
    every = (1 << LANDLOCK_FILE_RIGHTS[min(version, len(LANDLOCK_FILE_RIGHTS)) - 1]) - 1
    rules = struct.pack("=QQQ", every, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = libc.syscall(ctypes.c_long(LANDLOCK_CREATE_RULESET), rules, ctypes.c_size_t(size), ctypes.c_uint32(0))
    if ruleset < 0:
        return False
    stdlib = (*(sysconfig.get_path(name) for name in ("stdlib", "platstdlib")), packages)
    readable = (*stdlib, "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share/zoneinfo")
    granted = [(path, READ_FILE | READ_DIR) for path in readable]
    granted += [("/etc/ld.so.cache", READ_FILE), ("/dev/null", READ_FILE), ("/dev/urandom", READ_FILE)]
    for path, rights in [*granted, (".", every & ~NOT_IN_A_FOLDER)]:
        try:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        rule = struct.pack("=Qi", rights, place)
        libc.syscall(ctypes.c_long(LANDLOCK_ADD_RULE), ruleset, 1, rule, ctypes.c_uint32(0))
        os.close(place)
    return libc.syscall(ctypes.c_long(LANDLOCK_RESTRICT_SELF), ruleset, ctypes.c_uint32(0)) == 0


class Call:
    """The candidate's function, as the test calls it: arguments go over as plain data, a result or
    the name of an exception comes back."""

    def __init__(self, calls: Any, replies: Any):
        self.calls, self.replies = calls, replies
        self.count = 0
        self.dead = False  # the candidate is gone, or answered nonsense; whatever the test makes of that
        self.raised: BaseException | None = None  # the last exception that the candidate is to blame for

    def __call__(self, *args: Any, **named: Any) -> Any:
        line = json.dumps([packed(args), packed(named)]).encode() + b"\n"
        self.count += 1
        try:
            self.calls.write(line)
            self.calls.flush()
            answer = json.loads(self.replies.readline(MESSAGE))
            if "value" in answer:
                return unpacked(answer["value"])
            kind = getattr(builtins, answer["raised"], None)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            self.dead = True
            kind = None
        self.raised = RuntimeError("in the candidate")
        if isinstance(kind, type) and issubclass(kind, Exception):
            try:
                self.raised = kind("in the candidate")
            except TypeError:  # one that wants to be told more
                pass
        raise self.raised


def _tested(call: Call, entry_point: str, test: str, context: str) -> bytes:
    names: dict[str, Any] = {"__name__": "test"}
    try:
        exec(compile(context, "context", "exec"), names)
    except Exception:  # the problem in words, or a beginning that needs its continuation
        pass
    names[entry_point] = call
    try:
        exec(compile(test, "test", "exec"), names)
        if callable(names.get("check")):
            names["check"](call)
    except (NameError, SyntaxError, ImportError, MemoryError) as error:
        return b"0" if error is call.raised else b"?"
    except TypeError as error:  # most often a result of the wrong kind; or an argument that cannot cross
        return b"?" if "is no plain data" in str(error) else b"0"
    except BaseException:  # the test may raise anything
        return b"0"
    return b"?" if not call.count else b"0" if call.dead else b"1"


def _candidate(program: str, entry_point: str, calls: int, replies: int) -> None:
    """Run `program`, then answer calls of its function until there are no more."""
    names: dict[str, Any] = {"__name__": "solution"}
    broken = "NameError"  # what every call raises when there is no such function
    try:
        exec(compile(program, "solution", "exec"), names)
    except BaseException as error:  # the program may raise anything, SystemExit too
        broken = type(error).__name__
    function = names.get(entry_point)
    for line in os.fdopen(calls, "rb"):
        reply: dict[str, Any] = {"raised": broken}
        if callable(function):
            try:
                args, named = map(unpacked, json.loads(line))
                reply = {"value": packed(function(*args, **named))}
            except BaseException as error:
                reply = {"raised": type(error).__name__}
        os.write(replies, json.dumps(reply).encode() + b"\n")


if __name__ == "__main__":
    judge(float(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
