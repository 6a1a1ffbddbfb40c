"""Follow a run or a sweep for hours: does it keep growing, does it slow down?

    python run.py train experiments/testbed.yaml steps=100000 run_dir=/tmp/soak/run &
    python benchmarks/soak.py --pid $! --folder /tmp/soak/run --out results/soak/run.csv

Every `--every` seconds one row about the process and all that it started, until it ends; Linux's
/proc and the run's metrics.jsonl are read, nothing is installed and nothing is asked of the run.
`python run.py figures --only soak` draws results/soak/*.csv.
"""

import argparse
import csv
import json
import os
import time
from pathlib import Path

COLUMNS = ("seconds", "processes", "rss_mib", "handles", "threads", "cpu_seconds", "steps", "tokens", "step_seconds")
TICKS, PAGE = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")


def status(pid: int) -> list[str] | None:
    """The fields of /proc/<pid>/stat after the command's name; None when it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else fields


def family(pid: int) -> dict[int, list[str]]:
    """Process `pid` and everything that it started, with their status; empty when it has ended."""
    everyone = {int(p.name): made for p in Path("/proc").glob("[0-9]*") if (made := status(int(p.name)))}
    if pid not in everyone:
        return {}
    found, size = {pid}, 0
    while len(found) > size:
        size = len(found)
        found |= {child for child, fields in everyone.items() if int(fields[1]) in found}
    return {member: everyone[member] for member in sorted(found)}


def handles(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except (FileNotFoundError, ProcessLookupError):
        return 0


class Steps:
    """The steps of every run under a folder, each line read once."""

    def __init__(self, folder: Path):
        self.folder, self.read = folder, dict[Path, int]()
        self.steps, self.tokens = 0, 0.0

    def news(self) -> list[float]:
        """Seconds of each step that was recorded since the last call."""
        made = []
        for path in sorted(self.folder.rglob("metrics.jsonl")):
            with open(path, "rb") as file:
                file.seek(self.read.get(path, 0))
                lines = file.read()
            whole = lines[: lines.rfind(b"\n") + 1]
            self.read[path] = self.read.get(path, 0) + len(whole)
            rows = [json.loads(line) for line in whole.splitlines()]
            self.steps, self.tokens = self.steps + len(rows), self.tokens + sum(row["tokens/total"] for row in rows)
            made += [row["time/step"] for row in rows]
        return made


def row(members: dict[int, list[str]], elapsed: float, steps: Steps) -> dict[str, object]:
    new = steps.news()
    cpu = sum(sum(map(int, f[11:15])) for f in members.values()) / TICKS
    rss = sum(int(f[21]) for f in members.values()) * PAGE / 2**20
    threads, opened = sum(int(f[17]) for f in members.values()), sum(map(handles, members))
    mean = f"{sum(new) / len(new):.4f}" if new else ""
    numbers = {"seconds": f"{elapsed:.0f}", "processes": len(members), "rss_mib": f"{rss:.1f}", "handles": opened}
    numbers |= {"threads": threads, "cpu_seconds": f"{cpu:.1f}", "steps": steps.steps, "tokens": f"{steps.tokens:.0f}"}
    return numbers | {"step_seconds": mean}


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--pid", type=int, required=True)
    asked.add_argument("--folder", type=Path, required=True, help="of the run, or of the sweep's runs")
    asked.add_argument("--out", type=Path, required=True)
    asked.add_argument("--every", type=float, default=20.0, metavar="SECONDS")
    options = asked.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    start, steps = time.monotonic(), Steps(options.folder)
    with open(options.out, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        while members := family(options.pid):
            writer.writerow(row(members, time.monotonic() - start, steps))
            file.flush()
            time.sleep(options.every)


if __name__ == "__main__":
    main()
