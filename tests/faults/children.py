"""The front door in a child that is a fork of this process, which has imported everything: a start
in milliseconds. And what is left in a folder, in a form in which two of them can be compared."""

import gzip
import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

ROOT = Path(__file__).resolve().parents[2]
CRASHED = 99  # exit code of a child that ended in a traceback


class Child:
    """`function` in a fork with a session of its own; its output goes to the file `output`."""

    def __init__(self, function: Callable[[], int], output: Path):
        self.output, self.code = output, None
        self.pid = os.fork()
        if not self.pid:
            code = CRASHED
            try:
                os.setsid()
                file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(file, 1), os.dup2(file, 2)
                sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
                code = function()
            except SystemExit as left:
                code = left.code if isinstance(left.code, int) else 1
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)

    def wait(self, seconds: float) -> int | None:
        """Its exit code; None when it still runs after `seconds`."""
        until = time.monotonic() + seconds
        while self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > until:
                return None
            else:
                time.sleep(0.002)
        return self.code

    def kill(self) -> None:
        """The whole session, at once."""
        if self.code is None:
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except ProcessLookupError:  # it has no session yet, and so nobody beside it
                os.kill(self.pid, signal.SIGKILL)
            self.wait(60)

    def said(self) -> str:
        return self.output.read_text(errors="replace")


def front(words: list[str]) -> Callable[[], int]:
    """`run.py WORDS` as a function."""

    def call() -> int:
        import run

        return run.main(words)

    return call


def python(*words: Any) -> Callable[[], int]:
    """A new interpreter in the child's place: its imports count too."""
    return lambda: os.execv(sys.executable, [sys.executable, *map(str, words)])


LATE = """
matplotlib.pyplot optuna torch run analysis.compare analysis.report cegppo.record.keep cegppo.screen
cegppo.sweep.command cegppo.train pyarrow.parquet
""".split()


def preload() -> None:
    """Import what a command imports late, so that children need not."""
    for name in LATE:
        importlib.import_module(name)
    sys.modules["torch"].set_num_threads(1)


def left(root: Path) -> dict[str, Any]:
    """What stands under `root`, file by file, without what tells when and where: equal for two
    folders in which the same was done."""
    made: dict[str, Any] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            made[name] = os.readlink(path)
        elif not path.is_file() or path.name in ("meta.json", "output.txt", "study.db", ".lock"):
            continue
        elif path.suffix == ".jsonl":
            made[name] = [_row(json.loads(line), root) for line in path.read_text().splitlines()]
        elif path.suffix == ".gz":
            made[name] = [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]
        elif path.suffix == ".parquet":
            # A pack's columns come in the order in which the runs ended.
            frame = pd.read_parquet(path)
            made[name] = frame[sorted(c for c in frame if not c.startswith("time/"))].to_json()
        elif path.suffix == ".json":
            made[name] = _row(json.loads(path.read_text()), root)
        elif path.suffix in (".yaml", ".html"):
            made[name] = path.read_text().replace(str(root), "ROOT").replace(root.name, "ROOT")  # a page's title
        else:
            made[name] = path.read_bytes()
    return made


def _row(row: dict[str, Any], root: Path) -> dict[str, Any]:
    gone = ("elapsed", "meta")  # seconds; and of a pack's line, who made it and when
    text = json.dumps({k: v for k, v in row.items() if not k.startswith("time/") and k not in gone})
    return json.loads(text.replace(str(root), "ROOT"))


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of files that are not alike."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
