"""Rollouts laid out as one batch, beside a numpy copy of as many numbers.

    python benchmarks/collate.py

On one core, without a policy's passes. The last line is the ratio of laying out to the copy.
"""

import resource
import time
from collections.abc import Callable
from typing import Any

import common  # noqa: F401 (one thread)
import numpy as np
import torch

from cegppo.model.collate import laid_out
from cegppo.types import Prompt, Rollout

ROWS, TOKENS, PROMPT = 2048, 16384, 256
DISTINCT = 64  # rows of numbers of their own; the others are rows like them, so that memory holds the answers


def rollouts() -> list[Rollout]:
    rng = np.random.default_rng(0)
    prompt = Prompt("b/0", "b", "", tuple(rng.integers(0, 150_000, PROMPT).tolist()), "")
    rows = [
        (tuple(rng.integers(0, 150_000, TOKENS).tolist()), tuple((-rng.random(TOKENS, np.float32)).tolist()))
        for _ in range(min(ROWS, DISTINCT))
    ]
    return [Rollout(prompt, b, *rows[b % len(rows)], "length", "") for b in range(ROWS)]


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds of processor time, what it returns)."""
    start = time.process_time()
    made = function()
    return time.process_time() - start, made


def main() -> None:
    torch.set_num_threads(1)
    made, zeros = rollouts(), np.zeros(ROWS)
    plain = np.zeros((ROWS, TOKENS), np.int32), np.zeros((ROWS, TOKENS), np.float32)
    copied = timed(lambda: [values.copy() for values in plain])[0]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, x = timed(lambda: laid_out(made, zeros, zeros, zeros, None, torch.device("cpu")))
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    assert x.sequence_BS.shape == (ROWS, PROMPT + TOKENS)
    print(f"{ROWS} × {TOKENS} tokens laid out: {seconds:.2f} s of processor time, {peak:.2f} GiB more at the peak")
    print(f"laid out / numpy copy of as many numbers ({copied:.2f} s): {seconds / copied:.1f}")


if __name__ == "__main__":
    main()
