"""`run.py report`: one self-contained HTML page about a run or a sweep. No file beside it and no
network is needed.

run_page.py and sweep_page.py gather what is shown, curves.py and microscope.py pack what is long,
embed.py makes the file, page/ is what a browser runs. docs/page.md says what a reader sees.
"""

from pathlib import Path
from typing import Any

from cegppo.record.files import whole

from . import compare, curves, embed, evolution, load, microscope, run_page, sweep_page
from .run_page import Shown

LARGEST = 10_000_000  # bytes of a page
TOKENS = 150_000  # of all runs of a page
TEXTS = 2_000_000  # characters of completions that evaluations kept
NAME = "report.html"


def write(path: Path, results: Path = Path("results"), largest: int = LARGEST) -> Path:
    """Write the page of a run's folder, or of a sweep's (or an arm's) folder, name or YAML, into
    its folder; the page's path. Raises Missing when there is no run, or nothing is recorded."""
    found, order = compare.find(str(path), results)
    with load.undamaged(path):
        if [folder.resolve() for folder in found] == [path.resolve()]:
            return _save(path, run_page.shown(path), largest)
        arm = found[0].parent
        home = arm if arm in (path, results / path) else arm.parent
        return _save(home, sweep_page.shown(found, results, order), largest)


def _save(folder: Path, shown: Shown, largest: int) -> Path:
    """<folder>/report.html, whole, with as many tokens and completions as `largest` bytes take."""
    share = 1.0
    while len(page := embed.page(shown[0], data(shown, share)).encode()) > largest:
        if TOKENS * share < 1:
            raise load.Missing(f"{folder}: the page has {len(page):,} bytes without tokens, more than {largest:,}")
        share /= 2
    path = folder / NAME
    path.parent.mkdir(parents=True, exist_ok=True)  # a run in a pack may have no folder
    with whole(path) as unfinished:
        unfinished.write_bytes(page)
    return path


def data(shown: Shown, share: float) -> dict[str, Any]:
    """Everything for the page, with `share` of the tokens and completions that one may have; what
    was left out is said in `thinned`."""
    title, fixed, folders, lines = shown
    thinned: list[str] = []
    seen = []
    for name, folder in folders.items():
        rows, left = run_page.completions(folder, int(TEXTS * share / len(folders)))
        seen += [row | {"run": name} for row in rows]
        thinned += [f"{name}: the completions of {left} evaluations are left out."] if left else []
    scope = microscope.gather(folders, int(TOKENS * share))
    if scope.get("shown", 0) < scope.get("recorded", 0):
        said = f"{scope['shown']:,} of {scope['recorded']:,} recorded tokens are in this page: whole responses, "
        thinned.append(said + "steps evenly over the run, first prompts that several steps have, then at random.")
    single = fixed["kind"] == "run"
    drawn, note = curves.columns(lines, None if single else [curves.MEAN, *curves.OF_A_SWEEP])
    thinned += [note] if note else []
    return fixed | {
        "title": title,
        "curves": drawn,
        "panels": curves.of_run(drawn) if single else curves.of_sweep(drawn),
        "window": evolution.WINDOW,
        "tokens": scope,
        "seen": seen,
        "thinned": thinned + scope.get("unread", []),
    }
