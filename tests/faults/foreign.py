"""A campaign of folders that somebody sent: a run, or a pack, made hostile in one to three random
ways, and every command that reads one.

A trial passes when the command ends in time with an exit code that it has, says no control code,
and leaves everything outside the folder as it was.
"""

import contextlib
import io
import json
import os
import random
import resource
import shutil
import stat
import time
from collections.abc import Callable
from pathlib import Path

from . import inputs
from .table import Table

SLOW = 30.0  # seconds of processor time; compare draws a figure
MEMORY = 2**31  # bytes that a command may take beyond what is there
ESC = "\x1b]0;x\x07\x1b[31m\x1b[2J\u202e\r"
BOMB = "b0: &b0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"b{i}: &b{i} [{','.join([f'*b{i - 1}'] * 10)}]\n" for i in range(1, 9)
)
FILES = ("meta.json", "config.yaml", "metrics.jsonl", "eval.jsonl", ".lock", ".meta.json.unfinished", "report.html",
         ".report.html.unfinished", "completions/seen.jsonl", "tokens/step000001.parquet", "foreign.yaml")  # fmt: skip
VALUES = (
    ESC,
    "../../..",
    "/etc/passwd",
    None,
    [],
    {},
    True,
    -1,
    10**400,
    float("inf"),
    float("nan"),
    "x" * 10**6,
    10**15,
)
COMMANDS = {
    "list": ["list", "results"],
    "list a run": ["list", "{run}"],
    "compare": ["compare", "results/own"],
    "report": ["report", "{run}"],
    "report of a sweep": ["report", "results/own"],
    "advise": ["advise", "{run}"],
    "diff": ["diff", "{run}", "results/own/good/seed0"],
    "keep": ["keep", "results/own"],
    "eval": ["eval", "{run}"],
    "train --from": ["train", "--from", "{run}"],
}
Hostile = Callable[[Path, Path, random.Random], None]  # run folder, the user's own, chance


def _place(run: Path, chance: random.Random) -> Path:
    path = run / chance.choice(FILES)
    path.parent.mkdir(exist_ok=True)
    if path.exists() or path.is_symlink():
        path.unlink()
    return path


def link(run: Path, precious: Path, chance: random.Random) -> None:
    _place(run, chance).symlink_to(chance.choice([precious / "file", precious, Path("/dev/zero"), Path("nowhere")]))


def fifo(run: Path, precious: Path, chance: random.Random) -> None:
    os.mkfifo(_place(run, chance))


def linked_folder(run: Path, precious: Path, chance: random.Random) -> None:
    path = run / chance.choice(("checkpoints", "tokens", "completions", "wandb", "broken"))
    shutil.rmtree(path, ignore_errors=True)
    if not path.is_symlink():
        path.symlink_to(precious)


def value(run: Path, precious: Path, chance: random.Random) -> None:
    """A value or a key of a JSON file is another."""
    path = run / chance.choice(("meta.json", "metrics.jsonl", "eval.jsonl"))
    if not path.is_file() or path.is_symlink():
        return
    text = path.read_text(errors="replace")
    rows = [json.loads(text)] if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    row = chance.choice(rows)
    key = chance.choice([*row, ESC, "taken_from", "status"])
    row[key] = chance.choice(VALUES)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def setting(run: Path, precious: Path, chance: random.Random) -> None:
    """A line of config.yaml more, or before."""
    path = run / "config.yaml"
    if path.is_file() and not path.is_symlink():
        lines = [f"\n{json.dumps(ESC)}: {json.dumps(ESC)}\n", "\nx: !!python/object/apply:os.abort []\n",
                 "\nsteps: x\n", f"\nreward: {precious}/rule.py:f\n", "\nloss: 7\n",
                 "\nexperiment: ../..\n"]  # fmt: skip
        text = path.read_text()
        path.write_text(BOMB + text if chance.random() < 0.2 else text + chance.choice(lines))


def long_line(run: Path, precious: Path, chance: random.Random) -> None:
    path = run / chance.choice(("metrics.jsonl", "eval.jsonl"))
    if path.is_file() and not path.is_symlink():
        row = {"step": 3, **{f"k{i}": 1.0 for i in range(20_000)}} if chance.random() < 0.5 else {"x": "A" * 10**8}
        path.write_text(path.read_text() + json.dumps(row) + "\n")


def token_bomb(run: Path, precious: Path, chance: random.Random) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (run / "tokens").mkdir(exist_ok=True)
    if not (run / "tokens").is_symlink():
        rows = pa.table({"step": pa.repeat(pa.scalar(1), 10**7), "text": pa.repeat(pa.scalar("x"), 10**7)})
        pq.write_table(rows, run / "tokens" / "step000001.parquet", compression="zstd")


def hostile_pack(run: Path, precious: Path, chance: random.Random) -> None:
    """The run is a line of a pack, whose names lead elsewhere."""
    line = {"arm": run.parent.name, "seed": 0, "config": {}, "meta": {"status": "finished", "steps": 4}}
    line |= {chance.choice(("arm", "seed", "config", "meta", "like")): chance.choice([*VALUES, str(precious / "own")])}
    (run.parents[1] / "runs.jsonl").write_text(json.dumps(line) + "\n")
    if chance.random() < 0.5:
        shutil.rmtree(run)


def hostile_name(run: Path, precious: Path, chance: random.Random) -> None:
    run.parent.rename(run.parent.with_name(ESC.replace("/", "_")))


WAYS: tuple[Hostile, ...] = (link, fifo, linked_folder, value, setting, long_line, token_bomb, hostile_pack)


def state(folder: Path) -> dict[str, tuple]:
    """Every name below `folder` with mode, time and content."""
    made = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        regular = stat.S_ISREG(status.st_mode)
        changed = status.st_mtime_ns if regular else 0
        made[str(path.relative_to(folder))] = (status.st_mode, changed, path.read_bytes() if regular else b"")
    return made


def trial(root: Path, command: str, seed: str) -> str:
    """What is wrong with `command` over a folder that `seed` makes hostile; "" for nothing."""
    from cegppo.cli import main

    chance = random.Random(seed)
    shutil.rmtree(root, ignore_errors=True)
    precious = root / "precious"
    for there in (root / "results" / "own" / "bad" / "seed0", root / "results" / "own" / "good" / "seed0",
                  precious / "own" / "seed0"):  # fmt: skip
        shutil.copytree(inputs.folder(), there, symlinks=True)
    (precious / "file").write_text("precious\n")
    (precious / "rule.py").write_text(f"open({str(precious / 'ran')!r}, 'w')\ndef f(prompt, text): return 1.0\n")
    (precious / "step000001").mkdir()
    run = root / "results" / "own" / "bad" / "seed0"
    for way in chance.sample(WAYS, chance.randint(1, 3)):
        with contextlib.suppress(OSError, ValueError):  # one that another made impossible
            way(run, precious, chance)
    if chance.random() < 0.3:
        hostile_name(run, precious, chance)
        run = root / "results" / "own" / ESC / "seed0"
    before, here = state(precious), os.getcwd()
    said, begun = io.StringIO(), time.process_time()
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, limits[1]))
    os.chdir(root)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = main([word.format(run=run.relative_to(root)) for word in COMMANDS[command]])
    except Exception as error:  # a traceback, whatever it is
        return f"{seed}: {type(error).__name__}: {str(error)[:200]}"
    finally:
        os.chdir(here)
        resource.setrlimit(resource.RLIMIT_AS, limits)
    if code not in (0, 1, 2):
        return f"{seed}: exit code {code}"
    if strange := [c for c in said.getvalue() if not c.isprintable() and c not in "\n\t"]:
        return f"{seed}: says {strange[0]!r}"
    if state(precious) != before:
        return f"{seed}: something outside the folder has changed"
    spent = time.process_time() - begun
    return f"{seed}: takes {spent:.0f} s" if spent > SLOW else ""


class Campaign:
    def __init__(self, folder: Path, table: Table):
        self.root, self.table = folder / "foreign", table

    def run(self, seconds: float, only: list[str], seed: int, most: int = 10**9) -> None:
        """Trials of every command in turn, until the time is over."""
        end = time.perf_counter() + seconds
        number = 0
        while time.perf_counter() < end and number < most:
            for command in only or COMMANDS:
                self.table.add(command, 1, trial(self.root, command, f"{seed}.{number}"))
            number += 1
