"""Tables as files: Markdown and LaTeX to read, CSV (one number a row, with its section) to
compute with."""

import math
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

SPECIAL = str.maketrans(
    {
        "%": r"\%",
        "&": r"\&",
        "_": r"\_",
        "#": r"\#",
        "−": "$-$",
        "β": r"$\beta$",
        "†": r"\dag{}",
        "±": r"$\pm$",
        "“": "``",
        "”": "''",
    }
)


@dataclass(frozen=True)
class Section:
    """A table of its own, with what must be known to read it; every cell is text."""

    title: str
    caption: str
    cells: pd.DataFrame


def number(value: float) -> str:
    """One decimal, as the paper prints; nothing when there is no value."""
    return "" if math.isnan(value) else f"{value:.1f}"


def interval(mean: float | None, low: float | None, high: float | None, *, form: str = "{:.1f}") -> str:
    """`mean [low, high]`; the mean alone when there is no interval, nothing when there is no
    mean."""
    if mean is None or math.isnan(mean):
        return ""
    known = low is not None and high is not None and not math.isnan(low)
    return form.format(mean) + (f" [{form.format(low)}, {form.format(high)}]" if known else "")


def save(results: Path, name: str, sections: list[Section], numbers: pd.DataFrame, latex: bool = True) -> Path:
    """Write <results>/figures/<name>.md, .csv (`numbers`) and, unless `latex` is off, .tex; the
    path of the Markdown."""
    folder = results / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text("\n".join(_markdown(section) for section in sections), encoding="utf-8")
    numbers.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g", lineterminator="\n")
    if latex:
        (folder / f"{name}.tex").write_text("\n".join(_latex(section) for section in sections), encoding="utf-8")
    return folder / f"{name}.md"


def _lines(cells: pd.DataFrame) -> list[list[str]]:
    return [list(map(str, cells.columns)), *([str(cell) for cell in row] for row in cells.to_numpy())]


def _markdown(section: Section) -> str:
    head, *body = (
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in _lines(section.cells)
    )
    rule = "|" + "---|" * section.cells.shape[1]
    return "\n".join([f"## {section.title}", "", head, rule, *body, "", section.caption, ""])


def _latex(section: Section) -> str:
    head, *body = (" & ".join(cell.translate(SPECIAL) for cell in line) + r" \\" for line in _lines(section.cells))
    caption = f"{section.title}. {section.caption}".translate(SPECIAL)
    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering\small",
            f"  \\caption{{{caption}}}",
            r"  \resizebox{\linewidth}{!}{% graphicx",
            f"  \\begin{{tabular}}{{l{'r' * (section.cells.shape[1] - 1)}}}",
            r"    \hline",
            f"    {head}",
            r"    \hline",
            *(f"    {line}" for line in body),
            r"    \hline",
            r"  \end{tabular}}",
            r"\end{table}",
            "",
        ]
    )
