"""Numbers in prose, written by the program: what stands between `<!-- numbers: NAME -->` and
`<!-- end -->` in a Markdown file is replaced by what a figure's `blocks(results)` calls NAME."""

import re
from pathlib import Path
from types import ModuleType

import pandas as pd

from . import load

BLOCK = re.compile(r"(<!-- numbers: (?P<name>[^>]+?) -->\n).*?(<!-- end -->)", re.DOTALL)
NOTHING = "*No runs recorded yet.*"


def texts(root: Path) -> list[Path]:
    """The files that may quote numbers."""
    listed = [root / "README.md", root / "results" / "README.md", *sorted((root / "docs").glob("*.md"))]
    return [path for path in listed if path.is_file()]


def names(text: str) -> list[str]:
    """The blocks that a text asks for."""
    return [match["name"] for match in BLOCK.finditer(text)]


def filled(text: str, blocks: dict[str, str]) -> str:
    """The text with the blocks that are known; others stay as they are."""
    put = lambda m: f"{m[1]}{blocks[m['name']]}\n{m[3]}" if m["name"] in blocks else m[0]
    return BLOCK.sub(put, text)


def write(root: Path, blocks: dict[str, str]) -> list[Path]:
    """Fill the texts under `root`; those that changed."""
    changed = []
    for path in texts(root):
        old = path.read_text(encoding="utf-8")
        new = filled(old, blocks)
        if new != old:
            path.write_text(new, encoding="utf-8")
            changed.append(path)
    return changed


def of(figure: ModuleType, results: Path) -> dict[str, str]:
    """The blocks of a figure's module, or that there are none yet; {} for one that writes none.

    Which names a module writes it says in `BLOCKS`, so that they are known without runs.
    """
    wanted = getattr(figure, "BLOCKS", ())
    if not wanted:
        return {}
    try:
        return figure.blocks(results)
    except load.Missing:
        return dict.fromkeys(wanted, NOTHING)


def markdown(cells: pd.DataFrame) -> str:
    """A table of text cells."""
    line = lambda values: "| " + " | ".join(str(value).replace("|", "\\|") for value in values) + " |"
    return "\n".join([line(cells.columns), "|---" * cells.shape[1] + "|", *map(line, cells.to_numpy())])
