"""What a command prints, made harmless where it is printed."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

from .types import printable


class Printable:
    """A text stream whose readers see no control character but line breaks and tabs, whatever is
    written to it. `raw` is the stream itself, for what draws on a terminal."""

    def __init__(self, raw: Any):
        self.raw = raw

    def write(self, text: str) -> int:
        self.raw.write(printable(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


def raw(stream: Any) -> Any:
    """The stream behind a `Printable`, or `stream`."""
    return stream.raw if isinstance(stream, Printable) else stream


@contextmanager
def harmless_output() -> Iterator[None]:
    """Standard output and standard error are `Printable` inside."""
    with redirect_stdout(Printable(raw(sys.stdout))), redirect_stderr(Printable(raw(sys.stderr))):
        yield
