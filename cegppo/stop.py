"""How a person asks a run to stop after the step under way."""

import signal
from typing import Any

from . import ranks


class StopSignal:
    """Inside, Ctrl-C (or SIGTERM) on any rank asks to stop; a second one interrupts at once."""

    def __init__(self) -> None:
        self.received = False
        self._before: dict[signal.Signals, Any] = {}

    def requested(self) -> bool:
        """Whether any rank received one. Every rank takes part."""
        return ranks.anywhere([self.received])[0]

    def _note(self, number: int, frame: Any) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = True

    def __enter__(self) -> "StopSignal":
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: Any) -> None:
        for s, handler in self._before.items():
            signal.signal(s, handler)
