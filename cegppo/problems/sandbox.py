"""Programs that a model wrote, run against their tests. Off unless CEGPPO_RUN_CODE=1.

Jobs flow in, True (passed), False (failed) or None (could not be found out) flow out, in order. A
job has two processes (sandboxed.py), one for the program and one for its test. Each is shut in by
bubblewrap: namespaces of its own (no network, no other processes), system folders and Python
read-only, a few MiB in memory as the only place to write to, no privileges; and by a filter of
system calls for what namespaces do not cover. Where bubblewrap is missing or does not work, no
program runs. docs/security.md has what this keeps out and what it does not.

Left out: tests that need more than values to cross, such as a list that is changed in place, and
programs that are fed standard input.
"""

import errno
import fcntl
import json
import os
import select
import shutil
import signal
import struct
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..config import Limits

FLAG = "CEGPPO_RUN_CODE"
PATIENCE = 30  # seconds beyond its time limit until a job that says nothing is given up
DISK = 16  # MiB of the file system in memory
INSIDE = Path(__file__).with_name("sandboxed.py")
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"}
# Per machine: its number for audits, and those of the system calls below.
DENIED = {
    "x86_64": (0xC000003E, (57, 58, 56, 435, 41, 53, 62, 200, 129, 297, 434, 424, 101, 310, 311, 272, 308, 165, 166,
                            155, 161, 321, 298, 323, 425, 426, 427, 248, 249, 250, 29, 30, 68, 64, 240, 319, 447)),
    "aarch64": (0xC00000B7, (220, 435, 198, 199, 129, 130, 138, 240, 434, 424, 117, 270, 271, 97, 268, 40, 39, 41, 51,
                             280, 241, 282, 425, 426, 427, 217, 218, 219, 194, 196, 186, 190, 180, 279, 447)),
}  # fmt: skip
# fork, vfork, clone, clone3: no process or thread is started; root is bound by no limit of them.
# socket, socketpair: some families have no namespace. kill, tkill, rt_sigqueueinfo,
# rt_tgsigqueueinfo, pidfd_open, pidfd_send_signal, ptrace, process_vm_readv and _writev. unshare,
# setns, mount, umount2, pivot_root, chroot. bpf, perf_event_open, userfaultfd, io_uring (three):
# much kernel for nothing. add_key, request_key, keyctl: keys have no namespace. shmget, shmat,
# msgget, semget, mq_open, memfd_create, memfd_secret: memory that no limit of a process counts.


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


def missing() -> str:
    """What a sandbox needs and this machine lacks, in words; "" when nothing is known to lack."""
    if sys.platform != "linux" or os.uname().machine not in DENIED:
        return "the sandbox for programs needs Linux on x86-64 or 64-bit ARM"
    if shutil.which("bwrap") is None:
        return "the sandbox for programs needs bubblewrap, which is not installed (apt-get install bubblewrap)"
    return ""


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
    if why := missing():
        raise RuntimeError(why)
    passed, complaint = _judged(Job("def f(x):\n    return x", "f", "assert f(1) == 1"), PATIENCE, memory_mb)
    if not passed:
        raise RuntimeError(f"the sandbox for programs does not work on this machine: {complaint or 'no reason said'}")


def _judged(job: Job, timeout: float, memory_mb: int) -> tuple[bool | None, str]:
    """(whether the program passes, the last line of what its test's process complained of)."""
    with ExitStack() as held:
        calls, replies = _pipe(held), _pipe(held)  # (read, write); the test calls, the program replies
        limits = [str(timeout), str(memory_mb), sysconfig.get_path("purelib")]
        program = _start(held, ["answer", *limits], [job.program, job.entry_point], (calls[0], replies[1]))
        test = _start(held, ["judge", *limits], [job.entry_point, job.test, job.context], (calls[1], replies[0]))
        for end in (*calls, *replies):  # else neither would see that the other is gone
            end.close()
        assert test.stdout
        if _heard(test.stdout, PATIENCE) != b"!":
            return None, _complaint(held, program, test)
        verdict = _heard(test.stdout, timeout)
        if not verdict:
            _kill(program)  # the test goes on without it, and says so
            verdict = _heard(test.stdout, PATIENCE)
        return {b"1": True, b"0": False}.get(verdict), _complaint(held, program, test)


def _pipe(held: ExitStack) -> tuple[Any, Any]:
    """The ends of a pipe, to be read and to be written. As files, which may be closed twice: a
    number may be another thread's by then."""
    read, write = os.pipe()
    return held.enter_context(open(read, "rb", buffering=0)), held.enter_context(open(write, "wb", buffering=0))


def _start(held: ExitStack, words: list[str], given: Any, pipes: tuple[Any, Any]) -> subprocess.Popen[bytes]:
    """A process of sandboxed.py in a sandbox of its own, with `given` on its standard input; it is
    ended when `held` closes."""
    numbers = [end.fileno() for end in pipes]
    source = _memory(json.dumps(given).encode())
    rules = _memory(_filter(*DENIED[os.uname().machine]))
    try:
        process = subprocess.Popen(
            [*_sandbox(), "--seccomp", str(rules), "--", _python(), "-I", "-S", "/sandboxed.py", *words,
             *map(str, numbers)],
            stdin=source, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=(rules, *numbers), cwd="/", env={},
            start_new_session=True,
        )  # fmt: skip
    finally:
        os.close(source)
        os.close(rules)
    held.callback(_kill, process)
    return process


def _memory(data: bytes) -> int:
    """A file in memory that holds `data` and cannot be changed, to be read from its beginning."""
    fd = os.memfd_create("given", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]
    os.lseek(fd, 0, os.SEEK_SET)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    return fd


def _heard(pipe: Any, seconds: float) -> bytes:
    """The next byte of `pipe`; none when it ends or says nothing for so long."""
    waiting = select.poll()
    waiting.register(pipe, select.POLLIN)
    return os.read(pipe.fileno(), 1) if waiting.poll(1000 * seconds) else b""


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a sandbox, whose processes all end with its first."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _complaint(held: ExitStack, *processes: subprocess.Popen[bytes]) -> str:
    """The last line on the standard errors of `processes`, which are ended first."""
    held.close()
    lines: list[str] = []
    for process in processes:
        assert process.stdout and process.stderr
        with process.stdout, process.stderr:
            lines += process.stderr.read(10_000).decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


@cache
def _python() -> str:
    """The interpreter itself: a virtual environment's is a link to it."""
    return os.path.realpath(sys.executable)


@cache
def _sandbox() -> tuple[str, ...]:
    """bubblewrap and what a process in it has: Python, the system's libraries, nothing else."""
    folders = {"/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share/zoneinfo", "/etc/ld.so.cache"}
    folders |= {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    folders |= {_python(), str(Path(sys.base_prefix) / "lib")}
    words = [shutil.which("bwrap") or "bwrap", "--unshare-all", "--unshare-user", "--disable-userns",
             "--die-with-parent", "--new-session", "--uid", "65534", "--gid", "65534", "--cap-drop", "ALL",
             "--hostname", "sandbox", "--clearenv"]  # fmt: skip
    for path in sorted(folders):
        if os.path.islink(path) and os.path.dirname(path) == "/":  # /lib is usr/lib on most systems
            words += ["--symlink", os.readlink(path), path]
        elif os.path.exists(path):
            words += ["--ro-bind", path, path]
    for device in ("/dev/null", "/dev/urandom", "/dev/zero"):
        words += ["--dev-bind", device, device]
    words += ["--ro-bind", str(INSIDE), "/sandboxed.py", "--size", str(DISK * 2**20), "--tmpfs", "/w"]
    words += ["--remount-ro", "/", "--chdir", "/w"]
    for name, value in ENVIRONMENT.items():
        words += ["--setenv", name, value]
    return tuple(words)


@cache
def _filter(architecture: int, denied: tuple[int, ...]) -> bytes:
    """A filter of system calls for seccomp (classic BPF): those `denied` fail, and so do all of
    another architecture."""
    step = lambda code, yes, no, value: struct.pack("=HBBI", code, yes, no, value)
    load, equal, least, leave = 0x20, 0x15, 0x35, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, …|JGE|K, BPF_RET|K
    kill, fail, allow = 0x80000000, 0x00050000, 0x7FFF0000
    rules = [step(load, 0, 0, 4), step(equal, 1, 0, architecture), step(leave, 0, 0, kill), step(load, 0, 0, 0)]
    # The last rule but one lets through, and each match jumps over it and the rules between.
    rules.append(step(least, len(denied) + 1, 0, 0x40000000))  # the numbers of x32
    rules += [step(equal, len(denied) - place, 0, number) for place, number in enumerate(denied)]
    rules += [step(leave, 0, 0, allow), step(leave, 0, 0, fail | errno.EPERM)]
    return b"".join(rules)
