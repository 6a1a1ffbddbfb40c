"""`run.py sweep`: a grid or a search, planned or run."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import grid, search


def is_search(described: grid.Description) -> bool:
    return "search" in described.tree or "space" in described.tree


def plan(path: str, overrides: list[str]) -> str:
    """What the sweep at `path` would run, a line each; nothing is written. Raises BadInput."""
    described = grid.describe(path, overrides)
    if is_search(described):
        return search.plan(described)
    return "\n".join(
        f"{'finished' if run.finished() else 'to run':<9} {run.folder}  {' '.join(run.overrides)}"
        for run in grid.expand(described).runs
    )


def run(path: str, overrides: list[str], screen: Any, compare: Callable[[str, list[Path]], None]) -> int:
    """Run what is not finished; the exit code. `compare(name, folders)` is called at the end of a
    grid that was not interrupted. Raises BadInput."""
    described = grid.describe(path, overrides)
    if is_search(described):
        found = search.Search(described)
        code, failed = _run(described.sweep(found.runs), found, screen)
        _say_failed(failed)
        print(found.best())
        found.close()
        return code
    expanded = grid.expand(described)
    work = grid.Grid(expanded)
    code, failed = _run(expanded, work, screen)
    try:
        if code != 130:
            compare(expanded.name, [run.folder for run in expanded.runs])
    finally:
        _say_failed(failed)
        if work.already:
            print(work.already)
    return code


def _run(sweep: grid.Sweep, work: Any, screen: Any) -> tuple[int, list[grid.Run]]:
    with screen:
        return grid.run_all(sweep, work, screen.show)


def _say_failed(failed: list[grid.Run]) -> None:
    for run in failed:
        where = run.folder / "output.txt"
        print(f"{run.arm} seed {run.seed} did not finish: {grid.error_of(run)} ({where})", file=sys.stderr)
