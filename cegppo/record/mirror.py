"""What repeats a run's record elsewhere while it is written (wandb, TensorBoard), and neither stops
the run nor makes it wait.

A mirror works in a thread of its own, from a queue. What its target cannot take in time it misses,
and whatever goes wrong in it is said once and then ignored: the record on disk is complete without
it.
"""

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from queue import Full, Queue
from threading import Thread
from typing import Any, Protocol

from ..types import said
from .histograms import Histogram

WAITING = 512  # entries that may wait for a target: minutes of a run on the testbed, hours of a large one
PATIENCE = 30  # seconds that a target may take to start, and half of what it may take to finish


@dataclass(frozen=True)
class Shown:
    """What there is to show of a step; a target takes what it can."""

    numbers: dict[str, Any] = field(default_factory=dict)
    histograms: dict[str, Histogram] = field(default_factory=dict)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # rows of the same keys, at least one
    files: tuple[Path, ...] = ()  # that are whole, and never changed


class Target(Protocol):
    """Where a mirror shows things. Called from one thread, which is not the run's."""

    name: str
    later: str  # how to get there what is left when the run ends

    def open(self) -> bool:
        """Called when there is something to show; False when it cannot start, and has said why."""

    def show(self, step: int, shown: Shown) -> None: ...

    def close(self, failed: bool) -> None:
        """The run ended."""


class Mirror:
    """A target behind its queue. Nothing starts before there is something to show."""

    def __init__(self, target: Target):
        self._target = target
        self._queue: Queue[tuple[int, Shown] | bool] = Queue(WAITING)  # a bool: the run ended, and whether it failed
        self._thread: Thread | None = None
        self._missed = False

    def show(self, step: int, shown: Shown) -> None:
        """Returns at once."""
        if self._thread is None:
            self._thread = Thread(target=self._work, name=self._target.name, daemon=True)
            self._thread.start()
        if not self._thread.is_alive():  # it could not start, or failed
            return
        try:
            self._queue.put_nowait((step, shown))
        except Full:
            if not self._missed:
                print(f"{self._target.name} is slower than the run and misses entries from step {step} on;"
                      " the record on disk is complete", file=sys.stderr)  # fmt: skip
            self._missed = True

    def finish(self, failed: bool) -> None:
        """Close the target, waiting a minute at most: without a network an upload would never
        end."""
        if self._thread is None:
            return
        end = time.monotonic() + 2 * PATIENCE
        try:
            self._queue.put(failed, timeout=2 * PATIENCE if self._thread.is_alive() else 0.01)
        except Full:
            pass
        self._thread.join(timeout=max(0.0, end - time.monotonic()))
        if self._thread.is_alive():
            print(f"{self._target.name} is not done yet; {self._target.later}", file=sys.stderr)

    def _work(self) -> None:
        try:
            if not self._target.open():
                return
            while not isinstance(item := self._queue.get(), bool):
                self._target.show(*item)
            self._target.close(item)
        except Exception as error:  # a mirror may fail in any way
            print(f"{self._target.name} stopped mirroring: {said(error)}", file=sys.stderr)
