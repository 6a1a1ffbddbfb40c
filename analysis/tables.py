"""Tables as files: Markdown and LaTeX to read, CSV (one number a row, with its section) to
compute with."""

import math
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from cegppo.record.files import printable, subfolder, whole, write_whole

SPECIAL = str.maketrans(
    {
        **{mark: "\\" + mark for mark in "%&_#${}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "\n": " ",
        "−": "$-$",
        "β": r"$\beta$",
        "λ": r"$\lambda$",
        "ε": r"$\epsilon$",
        "π": r"$\pi$",
        "ρ": r"$\rho$",
        "Δ": r"$\Delta$",
        "→": r"$\to$",
        "×": r"$\times$",
        "·": r"$\cdot$",
        "≤": r"$\le$",
        "≥": r"$\ge$",
        "≈": r"$\approx$",
        "–": "--",
        "…": "...",
        "†": r"\dag{}",
        "±": r"$\pm$",
        "“": "``",
        "”": "''",
    }
)
RAISED = re.compile("[⁻⁺⁰¹²³⁴⁵⁶⁷⁸⁹]+")
LOWERED = re.compile("[₋₊₀₁₂₃₄₅₆₇₈₉]+")
# What Markdown would read as something else; `<` only where a tag could begin.
MARKS = re.compile(r"[\\|$`]|<(?=[A-Za-z/!])")


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
    folder = subfolder(results / "figures")
    write_whole(folder / f"{name}.md", "\n".join(_markdown(section) for section in sections))
    with whole(folder / f"{name}.csv") as unfinished:
        numbers.map(_cell).rename(columns=_cell).to_csv(
            unfinished, index=False, float_format="%.6g", lineterminator="\n"
        )
    if latex:
        write_whole(folder / f"{name}.tex", "\n".join(_latex(section) for section in sections))
    return folder / f"{name}.md"


def _plain(text: object) -> str:
    """A cell in one line, without control characters."""
    return printable(str(text), keep="")


def _cell(value: object) -> object:
    """A cell of a CSV file that a spreadsheet takes for a text, not for a formula."""
    if not isinstance(value, str):
        return value
    text = _plain(value)
    try:
        float(text)
    except ValueError:
        return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
    return text


def _lines(cells: pd.DataFrame) -> list[list[str]]:
    return [list(map(_plain, cells.columns)), *(list(map(_plain, row)) for row in cells.to_numpy())]


def _markdown(section: Section) -> str:
    head, *body = ("| " + " | ".join(_marked(cell) for cell in line) + " |" for line in _lines(section.cells))
    rule = "|" + "---|" * section.cells.shape[1]
    return "\n".join([f"## {_marked(section.title)}", "", head, rule, *body, "", _marked(section.caption), ""])


def _marked(text: str) -> str:
    """`text` as Markdown that shows it, on one line."""
    return MARKS.sub(r"\\\g<0>", _plain(" ".join(text.split())))


def tex(text: str) -> str:
    """`text` as LaTeX in ASCII, which every engine takes: a sign that LaTeX has is written by its
    name, a letter with an accent without it, and any other by its code."""
    text = text.translate(SPECIAL)
    text = RAISED.sub(lambda found: f"$^{{{_ascii(found[0])}}}$", text)
    text = LOWERED.sub(lambda found: f"$_{{{_ascii(found[0])}}}$", text)
    return "".join(c if c.isascii() else _ascii(c) or f"[U+{ord(c):04X}]" for c in text)


def _ascii(text: str) -> str:
    """The nearest ASCII of `text`; nothing where there is none."""
    return unicodedata.normalize("NFKD", text).replace("−", "-").encode("ascii", "ignore").decode()


def _latex(section: Section) -> str:
    head, *body = (" & ".join(map(tex, line)) + r" \\" for line in _lines(section.cells))
    caption = tex(_plain(f"{section.title}. {section.caption}"))
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
