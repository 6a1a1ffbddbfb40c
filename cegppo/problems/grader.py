"""Whether a LaTeX answer equals the reference: math-verify (0.9) in processes that may be killed.

(reference, answer) pairs flow in, True, False or None (the grader failed) flow out, in order. Sympy
can be sent on an endless or enormous computation by ten characters, so every answer has a
wall-clock limit, enforced by the kernel's timer, and a memory limit. Each worker is two processes:
a *nurse* that has sympy loaded and only passes lines on, and its *child*, which computes. A child
that dies costs its own answer; the next one is forked in milliseconds from the nurse, which knows
neither CUDA nor torch. When the process that asked dies, however it dies, the nurse reads the end
of its input and both are gone, at the latest after one time limit.

Left out: extracting an answer from prose (the final answer is what stands in \\boxed{…}), and
math-verify's own time limit, which works in a main thread only and which an `except` in sympy can
swallow.
"""

import json
import os
import select
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a worker runs this file alone, without the package
    from ..config import Limits

Pair = tuple[str, str]  # reference, answer


def grade(pairs: Sequence[Pair], limits: "Limits") -> list[bool | None]:
    """Whether each answer equals its reference, in order; None where that could not be found out.
    Equal pairs are graded once.

    Raises RuntimeError when a worker cannot start (math-verify is broken or missing): that is no
    statement about an answer.
    """
    distinct = list(dict.fromkeys(pairs))
    equal = dict(zip(distinct, _pool(*astuple(limits)).grade(distinct))) if distinct else {}
    return [equal[pair] for pair in pairs]


@cache
def _pool(timeout: float, memory_mb: int, workers: int) -> "Pool":
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return Pool(timeout, memory_mb, workers or max(1, cores))


class Pool:
    """Up to `workers` workers, each held by a thread that waits for it. A worker starts with the
    first answer its thread gets."""

    def __init__(self, timeout: float, memory_mb: int, workers: int):
        self.limits = (str(timeout), str(memory_mb))
        self.patience = 2 * timeout + 30  # seconds; a nurse asks twice at most, and forks in between
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="grader")
        self._own = threading.local()
        self.started: list[int] = []  # process ids of the nurses, replaced ones included

    def grade(self, pairs: Sequence[Pair]) -> list[bool | None]:
        return list(self._threads.map(self._ask, pairs))

    def _ask(self, pair: Pair) -> bool | None:
        line = json.dumps(pair).encode() + b"\n"
        for _ in range(2):
            nurse = getattr(self._own, "nurse", None) or self._start()
            assert nurse.stdin and nurse.stdout
            left = memoryview(line)
            try:
                while left:  # a signal may cut a write short, and half a line is waited for at both ends
                    left = left[nurse.stdin.write(left) :]
            except BrokenPipeError:  # killed since its last answer
                self._own.nurse = None
                continue
            heard = select.poll()
            heard.register(nurse.stdout, select.POLLIN)
            reply = nurse.stdout.read(1) if heard.poll(1000 * self.patience) else b""
            if not reply:  # killed over this one, or beyond every limit
                nurse.kill()
                self._own.nurse = None
            return {b"1": True, b"0": False}.get(reply)
        return None

    def _start(self) -> subprocess.Popen[bytes]:
        # A plain program: nothing of this process (CUDA, threads, locks) is inherited. -P keeps
        # this folder, with its `types.py`, off the path. A session of its own, so that Ctrl-C stops
        # the run after its step instead of the graders within it. A fixed hash seed, because
        # sympy's results may depend on the order of sets.
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        nurse = subprocess.Popen(
            [sys.executable, "-P", __file__, *self.limits], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
            env=environment, start_new_session=True,
        )  # fmt: skip
        assert nurse.stdout
        if nurse.stdout.read(1) != b"!":
            raise RuntimeError(f"a math-verify worker did not start (exit status {nurse.wait()}); its message is above")
        self.started.append(nurse.pid)
        self._own.nurse = nurse
        return nurse


# ---------------------------------------------------------------------- in a worker's processes

# Typical answers, parsed once in the nurse: the parser's tables are built on first use (0.2 s), and
# children inherit them.
WARM_UP = (
    "\\frac{14}{3}", "2\\sqrt{3}+1", "\\left(3,\\frac{\\pi}{2}\\right)", "[-2,7)\\cup\\{9\\}", "x^2-2x=y", "50\\%",
    "90^\\circ",
    "\\text{east}", "\\begin{pmatrix}1&-2\\\\0.5&x\\end{pmatrix}", "1,2", "x\\ge-1", "3+4i", "\\log_2{3}", "\\sin x",
    "\\$1{,}000", "-\\infty", "n!",
)  # fmt: skip


class Verifier:
    """math-verify, with what it swallows told apart. `ask(pair)` is b"1" (equal), b"0" (not
    equal) or b"?" (could not be found out)."""

    def __init__(self):
        import logging

        from math_verify import grader, parser

        logging.disable(logging.CRITICAL)  # it warns that its own time limit is off
        self._parse, self._verify = parser.parse, grader.verify
        # Only the box: the library's other patterns would fish a number out of "\\boxed{15 or maybe
        # 42}" when the whole is unreadable.
        self._boxed = [parser.LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=False)]
        self.faults: list[BaseException] = []
        # math-verify turns any exception into "not equal". Running out of memory or stack is no
        # such statement, nor is a parser that breaks; a plain `Exception` is its way to say that
        # the text is not LaTeX mathematics.
        parser.latex2sympy = self._watched(parser.latex2sympy, lambda error: type(error) is not Exception)
        for name in ("simplify", "solve"):
            setattr(
                grader,
                name,
                self._watched(getattr(grader, name), lambda error: isinstance(error, (MemoryError, RecursionError))),
            )

    def _watched(self, function: Any, is_fault: Any) -> Any:
        def watched(*args: Any, **options: Any) -> Any:
            try:
                return function(*args, **options)
            except Exception as error:
                if is_fault(error):
                    self.faults.append(error)
                raise

        return watched

    def _read(self, text: str) -> list:
        """What `text` means: one sympy expression, or nothing."""
        self.faults.clear()
        return self._parse(f"\\boxed{{{text}}}", self._boxed, "no_fallback", parsing_timeout=None, raise_on_error=True)

    def ask(self, pair: Pair) -> bytes:
        import sympy.core.random

        sympy.core.random.seed(0)  # its numerical tests draw random points
        reference, answer = pair
        try:
            gold = self._read(reference)
            if not gold:  # with an unreadable reference nothing can be said about any answer
                return b"?"
            found = self._read(answer)
            if not found:  # not mathematics, which cannot equal a reference that is; unless the parser broke over it
                return b"?" if self.faults else b"0"
            self.faults.clear()
            equal = self._verify(
                gold, found, timeout_seconds=None, raise_on_error=True
            )  # not symmetric: the reference comes first
            return b"1" if equal else b"?" if self.faults else b"0"
        except Exception:  # sympy may raise anything
            return b"?"


def _child(pipe: Any, nurses_end: Any, verifier: Verifier, timeout: float, memory_mb: int) -> None:
    import resource
    import signal

    nurses_end.close()  # else this process would never see that the nurse is gone
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process whatever it is doing; no `except` can stop that
    allowed = resource.getrlimit(resource.RLIMIT_AS)[1]  # which only the superuser may raise
    asked = memory_mb * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (asked if allowed == resource.RLIM_INFINITY else min(asked, allowed),) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while True:
        try:
            line = pipe.recv_bytes()
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_REAL, timeout)
        reply = verifier.ask(tuple(json.loads(line)))
        signal.setitimer(signal.ITIMER_REAL, 0)
        pipe.send_bytes(reply)
        if reply == b"?":  # who knows in what state the next answer would find it
            return


def nurse(timeout: float, memory_mb: int) -> None:
    """Serve lines of JSON [reference, answer] on standard input with one byte each on standard
    output, until the input ends."""
    import gc
    import multiprocessing
    import signal

    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a scheduler sends it to everybody; the run finishes its step first
    verifier = Verifier()
    for text in WARM_UP:
        verifier.ask((text, text))
    gc.freeze()  # so that a child's garbage collector leaves the shared pages alone
    replies = os.dup(1)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)  # antlr prints
    os.dup2(silence, 2)
    fork = multiprocessing.get_context("fork")
    child: multiprocessing.process.BaseProcess | None = None
    pipe: multiprocessing.connection.Connection | None = None

    def ask(line: bytes) -> bytes:
        nonlocal child, pipe
        for _ in range(2):
            if child is None or pipe is None:
                pipe, its_end = fork.Pipe()
                child = fork.Process(target=_child, args=(its_end, pipe, verifier, timeout, memory_mb), daemon=True)
                child.start()
                its_end.close()
            try:
                pipe.send_bytes(line)
                reply = pipe.recv_bytes()
            except BrokenPipeError:  # killed since its last answer
                reply = b""
            except (EOFError, ConnectionError):  # killed over this one: most often by its timer
                reply = b"?"
            if reply in (b"0", b"1"):
                return reply
            pipe.close()
            child.join()
            child = None
            if reply == b"?":
                break
        return b"?"

    os.write(replies, b"!")
    for line in iter(sys.stdin.buffer.readline, b""):
        os.write(replies, ask(line))


if __name__ == "__main__":
    nurse(float(sys.argv[1]), int(sys.argv[2]))
