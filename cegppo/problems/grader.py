"""Whether a LaTeX answer equals the reference: math-verify (0.9) in processes that may be killed.
Other libraries that judge a model's text (judges.py) run in the same way.

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

import base64
import os
import pickle
import re
import select
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # a worker runs this file alone, without the package
    from ..config import Limits

Pair = tuple[str, str]  # reference, answer
Kind = Literal["math", "task", "instructions"]
WHO = {"math": "math-verify", "task": "reasoning-gym", "instructions": "if-verifiable"}
TOGETHER: dict[Kind, int] = {"math": 1, "task": 64, "instructions": 8}  # requests of a line
VERDICTS = {b"1": True, b"0": False}


def grade(pairs: Sequence[Pair], limits: "Limits") -> list[bool | None]:
    """Whether each answer equals its reference, in order; None where that could not be found out.
    Equal pairs are graded once.

    Raises RuntimeError when a worker cannot start (math-verify is broken or missing): that is no
    statement about an answer.
    """
    return [VERDICTS.get(reply) for reply in ask("math", pairs, limits)]


def ask(kind: Kind, requests: Sequence[Any], limits: "Limits") -> list[bytes]:
    """What a worker of `kind` replies to each request, in order; b"?" where the limits ended it.
    Equal requests are asked once. Raises RuntimeError as `grade`."""
    lines = [_line(request) for request in requests]
    distinct = dict(zip(lines, requests))  # equal ones once
    if not distinct:
        return []
    pool, size = _pool(kind, *astuple(limits)), TOGETHER[kind]
    replies: dict[bytes, bytes] = {}
    if size > 1:  # a scorer takes microseconds, a line's way there and back a hundred times that
        parts = [list(distinct)[i : i + size] for i in range(0, len(distinct), size)]
        for part, reply in zip(parts, pool.ask([_line([distinct[line] for line in part]) for part in parts])):
            if reply != b"?":  # else one of them ended the worker: each is asked alone
                replies |= zip(part, reply.split(b","))
    left = [line for line in distinct if line not in replies]
    replies |= zip(left, pool.ask(left))
    return [replies[line] for line in lines]


def _line(request: Any) -> bytes:
    """A request as one line. A worker is this process's own, so that it may unpickle: entries of
    reasoning-gym hold tuples and objects, which JSON would lose."""
    return base64.b64encode(pickle.dumps(request)) + b"\n"


@cache
def _pool(kind: Kind, timeout: float, memory_mb: int, workers: int) -> "Pool":
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return Pool(timeout, memory_mb, workers or max(1, cores), kind)


class Pool:
    """Up to `workers` workers, each held by a thread that waits for it. A worker starts with the
    first answer its thread gets."""

    def __init__(self, timeout: float, memory_mb: int, workers: int, kind: Kind = "math"):
        self.kind, self.limits = kind, (str(timeout), str(memory_mb))
        self.patience = 2 * timeout + 30  # seconds; a nurse asks twice at most, and forks in between
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="grader")
        self._own = threading.local()
        self.started: list[int] = []  # process ids of the nurses, replaced ones included

    def grade(self, pairs: Sequence[Pair]) -> list[bool | None]:
        """Of pairs for math-verify."""
        return [VERDICTS.get(reply) for reply in self.ask([_line(pair) for pair in pairs])]

    def ask(self, lines: Sequence[bytes]) -> list[bytes]:
        return list(self._threads.map(self._ask, lines))

    def _ask(self, line: bytes) -> bytes:
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
            # It writes a reply at once, so that a part of one is never waited for.
            reply = nurse.stdout.readline() if heard.poll(1000 * self.patience) else b""
            if not reply:  # killed over this one, or beyond every limit
                nurse.kill()
                self._own.nurse = None
            return reply.strip() or b"?"
        return b"?"

    def _start(self) -> subprocess.Popen[bytes]:
        # A plain program: nothing of this process (CUDA, threads, locks) is inherited. -P keeps
        # this folder, with its `types.py`, off the path. A session of its own, so that Ctrl-C stops
        # the run after its step instead of the graders within it. A fixed hash seed, because
        # sympy's results may depend on the order of sets.
        environment = {**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        nurse = subprocess.Popen(
            [sys.executable, "-P", __file__, self.kind, *self.limits], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            bufsize=0, env=environment, start_new_session=True,
        )  # fmt: skip
        assert nurse.stdout
        if nurse.stdout.read(1) != b"!":
            status = f"exit status {nurse.wait()}"
            raise RuntimeError(f"a {WHO[self.kind]} worker did not start ({status}); its message is above")
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


def has_both_cases(text: str) -> bool:
    """Whether a letter of the formula stands in it small and large, as in GMm: then M is not m."""
    letters = set(re.findall(r"[A-Za-z]", re.sub(r"\\text\s*\{[^{}]*\}|\\[A-Za-z]+", " ", text)))
    return any(letter.upper() in letters for letter in letters if letter.islower())


def same_number(gold: Any, pred: Any, *_: int) -> bool:
    """math-verify's `sympy_numeric_eq`, by relative difference: exact numbers must agree to 12
    digits, and where one holds a decimal number, which may be rounded, to six."""
    from math_verify.grader import get_pct_val, safe_sympy_doit
    from sympy import Float, Integer, MatrixBase, N, Number

    shares = get_pct_val(gold), get_pct_val(pred)
    gold, pred = safe_sympy_doit(gold), safe_sympy_doit(pred)
    if isinstance(gold, MatrixBase) or isinstance(pred, MatrixBase):
        alike = isinstance(gold, MatrixBase) and isinstance(pred, MatrixBase) and gold.shape == pred.shape
        return alike and all(map(same_number, gold.flat(), pred.flat()))
    if (shares[0] is None) != (shares[1] is None):  # 50 % is 50, and 0.5
        if same_number(gold if shares[0] is None else shares[0], pred if shares[1] is None else shares[1]):
            return True
    try:
        if not (gold.is_number and pred.is_number):
            return (gold - pred).evalf(n=15, chop=True) == 0
        if isinstance(gold, Integer) and isinstance(pred, Integer) or not (gold.is_finite and pred.is_finite):
            return bool(gold == pred)
        size, apart = abs(N(gold, 30)), abs(N(gold - pred, 30))
        if gold.has(Float) or pred.has(Float):
            written_out = isinstance(gold, Number) and isinstance(pred, Number)
            return bool(apart * 10**6 <= (min(size, 1) if written_out else size))
        return bool(apart * 10**12 <= size)
    except Exception:  # sympy may raise anything; then it is for `simplify` to say
        return False


def clearly_apart(gold: Any, pred: Any) -> bool:
    """Whether two numbers differ by more than a millionth, so that no algebra can make them
    equal."""
    from sympy import N

    try:
        return bool(gold.is_number and pred.is_number and abs(N(gold - pred, 15)) * 10**6 > abs(N(gold, 15)))
    except Exception:  # sympy may raise anything
        return False


class Verifier:
    """math-verify, with what it swallows told apart. `ask(pair)` is b"1" (equal), b"0" (not
    equal) or b"?" (could not be found out)."""

    def __init__(self):
        import logging

        from latex2sympy2_extended.latex2sympy2 import ConversionConfig, NormalizationConfig, latex2sympy
        from math_verify import grader, parser

        logging.disable(logging.CRITICAL)  # it warns that its own time limit is off
        self._verify, self._last_equation = grader.verify, parser.get_last_eq
        self._complex = parser.should_treat_as_complex
        # Its own `units` would take a last letter for a unit.
        normal = NormalizationConfig(units=False, malformed_operators=True, nits=True, boxed="none")
        self._normalise = lambda text: parser.normalize_latex(text, normal)
        self._case = {same: ConversionConfig(lowercase_symbols=same) for same in (False, True)}
        self.faults: list[BaseException] = []
        # math-verify turns any exception into "not equal". Running out of memory or stack is no
        # such statement, nor is a parser that breaks; a plain `Exception` is its way to say that
        # the text is not LaTeX mathematics.
        self._sympy = self._watched(latex2sympy, lambda error: type(error) is not Exception)
        for name in ("simplify", "solve"):
            setattr(
                grader,
                name,
                self._watched(getattr(grader, name), lambda error: isinstance(error, (MemoryError, RecursionError))),
            )
        grader.sympy_numeric_eq = same_number
        by_algebra = grader.sympy_symbolic_eq  # takes a tenth of a second, also over two plain numbers
        grader.sympy_symbolic_eq = lambda gold, pred: not clearly_apart(gold, pred) and by_algebra(gold, pred)

    def _watched(self, function: Any, is_fault: Any) -> Any:
        def watched(*args: Any, **options: Any) -> Any:
            try:
                return function(*args, **options)
            except Exception as error:
                if is_fault(error):
                    self.faults.append(error)
                raise

        return watched

    def _read(self, text: str, lowercase: bool) -> Any:
        """What `text` means as a sympy expression; None when it is no LaTeX mathematics."""
        self.faults.clear()
        normal = self._normalise(text)
        for part in dict.fromkeys((normal, self._last_equation(normal))):
            options = dict(is_real=not self._complex(part), convert_degrees=False, normalization_config=None)
            try:
                return self._sympy(part, conversion_config=self._case[lowercase], **options)
            except Exception:  # whatever the parser raises; `faults` has what is no statement about the text
                continue
        return None

    def ask(self, pair: Pair) -> bytes:
        import sympy.core.random

        sympy.core.random.seed(0)  # its numerical tests draw random points
        reference, answer = pair
        try:
            lowercase = not any(map(has_both_cases, pair))
            gold = self._read(reference, lowercase)
            if gold is None:  # with an unreadable reference nothing can be said about any answer
                return b"?"
            found = self._read(answer, lowercase)
            if (
                found is None
            ):  # not mathematics, which cannot equal a reference that is; unless the parser broke over it
                return b"?" if self.faults else b"0"
            self.faults.clear()
            equal = self._verify(
                gold, found, timeout_seconds=None, raise_on_error=True
            )  # not symmetric: the reference comes first
            return b"1" if equal else b"?" if self.faults else b"0"
        except Exception:  # sympy may raise anything
            return b"?"

    def warm_up(self) -> None:
        for text in WARM_UP:
            self.ask((text, text))


def _judge(kind: str) -> Any:
    """What answers requests of `kind`: an `ask` and a `warm_up`."""
    if kind == "math":
        return Verifier()
    import importlib.util
    from pathlib import Path

    spec = importlib.util.spec_from_file_location("judges", Path(__file__).with_name("judges.py"))
    assert spec and spec.loader
    judges = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(judges)
    return judges.Scorer() if kind == "task" else judges.Instructions()


def _taken() -> int:
    """Bytes of address space of this process."""
    import resource

    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _child(pipe: Any, nurses_end: Any, judge: Any, timeout: float, memory: int) -> None:
    import resource
    import signal

    nurses_end.close()  # else this process would never see that the nurse is gone
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process whatever it is doing; no `except` can stop that
    allowed = resource.getrlimit(resource.RLIMIT_AS)[1]  # which only the superuser may raise
    asked = memory
    resource.setrlimit(resource.RLIMIT_AS, (asked if allowed == resource.RLIM_INFINITY else min(asked, allowed),) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while True:
        try:
            line = pipe.recv_bytes()
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_REAL, timeout)
        request = pickle.loads(base64.b64decode(line))
        reply = b",".join(map(judge.ask, request)) if isinstance(request, list) else judge.ask(request)
        signal.setitimer(signal.ITIMER_REAL, 0)
        pipe.send_bytes(reply)
        if b"?" in reply:  # who knows in what state the next answer would find it
            return


def nurse(kind: str, timeout: float, memory_mb: int) -> None:
    """Serve requests on standard input, a line each, with a line each on standard output, until the
    input ends."""
    import gc
    import multiprocessing
    import signal

    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a scheduler sends it to everybody; the run finishes its step first
    judge = _judge(kind)
    judge.warm_up()
    # Sympy's own needs are known and small; what other libraries take when they are loaded is not.
    memory = memory_mb * 2**20 + (0 if kind == "math" else _taken())
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
                child = fork.Process(target=_child, args=(its_end, pipe, judge, timeout, memory), daemon=True)
                child.start()
                its_end.close()
            try:
                pipe.send_bytes(line)
                reply = pipe.recv_bytes()
            except BrokenPipeError:  # killed since its last answer
                reply = b""
            except (EOFError, ConnectionError):  # killed over this one: most often by its timer
                reply = b"?"
            if reply and reply != b"?":
                return reply
            pipe.close()
            child.join()
            child = None
            if reply == b"?":
                break
        return b"?"

    os.write(replies, b"!")
    for line in iter(sys.stdin.buffer.readline, b""):
        os.write(replies, ask(line) + b"\n")
    # At once: the interpreter's own end would wait for the child, which waits for this process.
    if child is not None:
        child.kill()
    os._exit(0)


if __name__ == "__main__":
    nurse(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
