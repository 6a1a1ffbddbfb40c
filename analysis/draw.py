"""Draw figures by name: each is a script fig_<name>.py of this folder with a function
`draw(results)`."""

import difflib
import importlib
import sys
from pathlib import Path

from . import numbers
from .load import Missing


def names() -> list[str]:
    """Every figure there is: the files of this folder."""
    return sorted(path.stem.removeprefix("fig_") for path in Path(__file__).resolve().parent.glob("fig_*.py"))


def figures(results: Path, only: list[str] | None) -> int:
    """Draw `only`, or all but the demo's, whose runs are each user's own. The exit code."""
    wanted = only or [name for name in names() if name != "demo"]
    for name in wanted:
        if name not in names():
            close = difflib.get_close_matches(name, names(), n=1, cutoff=0.5)
            hint = f"did you mean '{close[0]}'?" if close else f"there are: {', '.join(names())}"
            print(f"error: no figure '{name}'; {hint}", file=sys.stderr)
            return 2
    code, here = 0, Path(__file__).resolve().parents[1]
    for name in wanted:
        figure = importlib.import_module(f".fig_{name}", __package__)
        try:
            figure.draw(results)
        except Missing as error:
            print(f"error: figure '{name}': {error}", file=sys.stderr)
            code = 2
        if results.resolve() == here / "results":  # what the texts quote is of the runs beside them
            for path in numbers.write(here, numbers.of(figure, results)):
                print(f"numbers: {path}")
    return code
