"""A campaign of disks that fail: what a command writes is recorded call by call, and at each place
the disk fills up, fails, cuts a write short or is read-only from there on. What is said must be one
line; the same command, with a disk again, must leave what it leaves when nothing fails.

The calls are those of libc (shim.c, built with `cc`), so those of safetensors and Arrow count too.
"""

import ctypes
import errno
import os
import random
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from .children import Child, differences, left
from .kills import PATIENCE, SCENARIOS, fresh
from .table import Table

HERE = Path(__file__).resolve().parent
# What may befall which call: (name, errno or 0 for a short write, from there on for good).
FULL, FAILS, SHORT, READ_ONLY = (
    ("full", errno.ENOSPC, True),
    ("fails", errno.EIO, False),
    ("short write", 0, False),
    ("read-only", errno.EROFS, True),
)
FAULTS = {
    "write": (FULL, FAILS, SHORT),
    "open": (FULL, READ_ONLY),
    "mkdir": (FULL, READ_ONLY),
    "symlink": (FULL, READ_ONLY),
    "rename": (FAILS, READ_ONLY),
    "fsync": (FAILS,),
    "truncate": (FAILS,),
    "unlink": (FAILS,),
    "rmdir": (FAILS,),
}
COMMANDS = ("train", "train, critic and reference", "eval", "report", "keep", "compare")


def build(folder: Path) -> Path:
    """The shim as a shared library in `folder`."""
    made = folder / "shim.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-w", "-o", str(made), str(HERE / "shim.c"), "-ldl"], check=True)
    return made


def failing(function: Callable[[], int], folder: Path, log: Path, call: int, number: int, good: bool):
    """`function` while call number `call` (0: none) under `folder` fails; calls are written to
    `log`."""

    def run() -> int:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        ctypes.CDLL(None).faults_begin(str(folder).encode(), ctypes.c_long(call), number, int(good), handle)
        return function()

    return run


def places(log: Path) -> dict[tuple[str, str], list[int]]:
    """Of each place (operation, path with its numbers as #): the numbers of its calls."""
    made: dict[tuple[str, str], list[int]] = {}
    for number, line in enumerate(log.read_text().splitlines(), 1):
        operation, path = line.split("\t")
        made.setdefault((operation, re.sub(r"\d+", "#", path)), []).append(number)
    return made


class Campaign:
    def __init__(self, folder: Path, table: Table):
        self.folder, self.table = folder, table

    def start(self, name: str, root: Path, call: int = 0, number: int = 0, good: bool = False) -> Child:
        command = SCENARIOS[name].command(root)
        return Child(failing(command, root, self.folder / "log", call, number, good), self.folder / "output")

    def recorded(self, name: str) -> tuple[dict[tuple[str, str], list[int]], dict]:
        """The places at which the undisturbed command writes, and what it leaves."""
        root = fresh(self.folder, name, f"tried {name}")
        child = self.start(name, root)
        assert child.wait(PATIENCE) == 0, child.said()
        return places(self.folder / "log"), left(root)

    def trial(self, name: str, wanted: dict, call: int, fault: tuple[str, int, bool]) -> str:
        """What was wrong, or ""."""
        root = fresh(self.folder, name, f"tried {name}")
        child = self.start(name, root, call, *fault[1:])
        code, said = child.wait(PATIENCE), child.said()
        if code is None:
            child.kill()
            return "hangs"
        if code not in (0, 1, 2) or "Traceback" in said:
            return f"exit code {code}: {said[-400:]}"
        if code and sum(line.startswith("error: ") for line in said.splitlines()) != 1:
            return f"no line that says what failed: {said[-400:]}"
        child = self.start(name, root)
        if child.wait(PATIENCE) != 0:
            child.kill()
            return f"after {code} ({said[-200:]}) it does not go on: {child.said()[-300:]}"
        if unlike := differences(wanted, left(root)):
            return f"after {code} ({said[-200:]}) not alike: {', '.join(unlike[:5])}"
        return ""

    def run(self, seconds: float, only: list[str], seed: int, share: float = 1.0, faults: Sequence[str] = ()) -> None:
        """Every fault, or those named `faults`, at the first and at the last call of every place,
        in random order; `share` of them."""
        until = time.monotonic() + seconds
        for name in only or COMMANDS:
            found, wanted = self.recorded(name)
            print(f"{name}: {sum(map(len, found.values()))} calls at {len(found)} places", flush=True)
            trials = [
                (place, call, fault)
                for place, calls in found.items()
                for call in sorted({calls[0], calls[-1]})
                for fault in FAULTS[place[0]]
                if not faults or fault[0] in faults
            ]
            rng = random.Random(f"{seed} {name}")
            for place, call, fault in rng.sample(trials, max(1, round(share * len(trials)))):
                if time.monotonic() > until:
                    return
                wrong = self.trial(name, wanted, call, fault)
                at = f"{fault[0]}, {place[0]} {place[1]} (call {call}): " if wrong else ""
                self.table.add(f"{name}: {fault[0]}", 1, at + wrong)


def loaded() -> bool:
    """Whether this process was started with the shim before libc."""
    return hasattr(ctypes.CDLL(None), "faults_begin")
