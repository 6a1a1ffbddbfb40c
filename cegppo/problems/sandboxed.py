"""What runs inside a sandbox of sandbox.py, as a program of its own, without the package.

Two of them belong to one job, each in a sandbox of its own. One has the program and answers calls
(`answer`); the other has the test and calls (`judge`). Only plain data crosses between them, so
that a program that ends itself, patches comparisons or prints what it likes has failed. The verdict
goes out through a pipe that the program's process does not have.
"""

import builtins
import json
import os
import resource
import sys
from typing import Any

MESSAGE = 2**20  # bytes that one call's arguments or result may have
OPEN_FILES = 64
READY = b"ready\n"
# They end an iteration instead of failing a test: `all(map(f, …))` would be true.
SILENT_ENDS = (StopIteration, StopAsyncIteration)


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


class Call:
    """The program's function, as the test calls it: arguments go over as plain data, a result or
    the name of an exception comes back."""

    def __init__(self, calls: Any, replies: Any):
        self.calls, self.replies = calls, replies
        self.count = 0
        self.dead = False  # the program is gone, or answered nonsense; whatever the test makes of that
        self.raised: BaseException | None = None  # the last exception that the program is to blame for

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
        self.raised = RuntimeError("in the program")
        if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, SILENT_ENDS):
            try:
                self.raised = kind("in the program")
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


def judge(calls: int, replies: int) -> None:
    """Run the test of standard input's (entry point, test, context) against the program at the
    other ends of `calls` and `replies`. Standard output gets `!` once the program may begin, then
    `1`, `0` or `?`."""
    entry_point, test, context = json.loads(_input())
    call = Call(os.fdopen(calls, "wb"), os.fdopen(replies, "rb"))
    verdict = _silent()
    if call.replies.readline(len(READY)) != READY:  # it did not start
        os.write(verdict, b"??")
        os._exit(0)
    os.write(verdict, b"!")
    os.write(verdict, _tested(call, entry_point, test, context))
    os._exit(0)


def answer(calls: int, replies: int) -> None:
    """Run the program of standard input's (program, entry point), then answer calls of its function
    until there are no more."""
    program, entry_point = json.loads(_input())
    _silent()
    os.write(replies, READY)
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
        data = memoryview(json.dumps(reply).encode() + b"\n")
        while data:
            data = data[os.write(replies, data) :]
    os._exit(0)


def _input() -> bytes:
    with os.fdopen(os.dup(0), "rb") as file:
        return file.read()


def _silent() -> int:
    """Standard input, output and error become nothing; another number for what was the output."""
    output, nothing = os.dup(1), os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nothing, fd)
    return output


def _limited(timeout: float, memory_mb: int) -> None:
    for limit, most in (
        (resource.RLIMIT_CPU, int(timeout) + 2), (resource.RLIMIT_AS, memory_mb * 2**20), (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_FSIZE, 2**20), (resource.RLIMIT_NOFILE, OPEN_FILES), (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MSGQUEUE, 0), (resource.RLIMIT_MEMLOCK, 0),
    ):  # fmt: skip
        hard = resource.getrlimit(limit)[1]
        resource.setrlimit(limit, (most if hard == resource.RLIM_INFINITY else min(most, hard),) * 2)


if __name__ == "__main__":
    part, limit_s, limit_mb, packages, calls_fd, replies_fd = sys.argv[1:]
    sys.path.append(packages)
    sys.set_int_max_str_digits(0)
    _limited(float(limit_s), int(limit_mb))
    {"judge": judge, "answer": answer}[part](int(calls_fd), int(replies_fd))
