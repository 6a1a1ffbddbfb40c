"""Seconds that a program costs in the sandbox: wall clock and processor time, one at a time.

    python benchmarks/sandbox.py [PROGRAMS]

A right program with one assertion; most of what it costs is to start Python. docs/security.md has
the numbers.
"""

import os
import resource
import sys
import time

from cegppo.config import Limits
from cegppo.problems import sandbox


def main(programs: int = 50) -> None:
    os.environ[sandbox.FLAG] = "1"
    limits = Limits(timeout=10, memory_mb=512, workers=1)
    jobs = [sandbox.Job(f"def f(x):\n    return x + {n}", "f", f"assert f(1) == {1 + n}") for n in range(programs + 1)]
    sandbox.run(jobs[:1], limits)
    spent = lambda: sum(resource.getrusage(who)[n] for who in (0, -1) for n in (0, 1))  # own and children's
    processor, start = spent(), time.perf_counter()
    assert all(sandbox.run(jobs[1:], limits))
    wall, processor = time.perf_counter() - start, spent() - processor
    print(f"{programs} programs: {wall / programs:.3f} s each, {processor / programs:.3f} s of processor time")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
