"""`run.py sweep`: a grid or a search, planned or run."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..record.files import read_lines
from . import description, estimate, grid, search

LEADERS = 6  # trials of a search that are compared at its end


def is_search(described: description.Description) -> bool:
    return "search" in described.tree or "space" in described.tree


def plan(path: str, overrides: list[str]) -> str:
    """What the sweep at `path` would run, a line each; nothing is written. Raises BadInput."""
    described = description.describe(path, overrides)
    if is_search(described):
        return "\n".join([search.plan(described), _search_time(described)])
    sweep = description.expand(described)
    states = [(run, run.finished()) for run in sweep.runs]
    lines = [f"{'finished' if done else 'to run':<9} {r.folder}  {r.plan()}" for r, done in states]
    todo = [(run.config, run.config.steps - run.last_metrics().get("step", 0)) for run, done in states if not done]
    sweeps = list(dict.fromkeys((sweep.name, *sweep.takes_from, sweep.runs[0].experiment.stem)))
    return "\n".join([*lines, estimate.text(todo, sweeps, sweep.workers)])


def _search_time(described: description.Description) -> str:
    """How long the trials that are left will take, if none is stopped early."""
    tree, seeds = described.tree, described.tree["seeds"]
    config = described.run("trial000", seeds[0], {}).config
    left = max(0, tree.get("trials", 20) - len(read_lines(Path(config.results, described.name, "trials.jsonl"))))
    return estimate.text([(config, config.steps)] * left * len(seeds), [described.name], tree.get("workers", 1))


def run(path: str, overrides: list[str], screen: Any, compare: Callable[[str, list[Path]], None]) -> int:
    """Run what is not finished; the exit code. `compare(name, folders)` is called at the end,
    unless it was interrupted: of a grid with all runs, of a search with those of its best trials,
    the best first. Raises BadInput."""
    described = description.describe(path, overrides)
    if is_search(described):
        found = search.Search(described)
        code, failed = _run(described.sweep(found.runs), found, screen)
        try:
            if code != 130 and (folders := found.leaders(LEADERS)):
                print(f"the {len({folder.parent for folder in folders})} best trials, chosen by what they are"
                      " compared in, so optimistic:")  # fmt: skip
                compare(described.name, folders)
        finally:
            _say_failed(failed)
            print(found.best())
            found.close()
        return code
    expanded = description.expand(described)
    work = grid.Grid(expanded)
    code, failed = _run(expanded, work, screen)
    try:
        if code != 130:
            compare(expanded.name, [run.folder for run in expanded.runs])
        else:
            done = sum(run.finished() for run in expanded.runs)
            print(f"stopped: {done} of {len(expanded.runs)} runs finished; the same command goes on")
    finally:
        _say_failed(failed)
        if work.already:
            print(work.already)
    return code


def _run(sweep: description.Sweep, work: Any, screen: Any) -> tuple[int, list[description.Run]]:
    with screen:
        return grid.run_all(sweep, work, screen.show)


def _say_failed(failed: list[description.Run]) -> None:
    for run in failed:
        where = run.folder / "output.txt"
        print(f"{run.arm} seed {run.seed} did not finish: {grid.error_of(run)} ({where})", file=sys.stderr)
