"""One look for every figure: a colour and a line style an algorithm, legible in print and in
grey."""

import re
import zlib
from pathlib import Path
from typing import Any

import matplotlib
from PIL import Image

from cegppo.record.files import subfolder, whole

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

# Colours from Okabe and Ito's palette for colour-blind readers where they last; the dashes tell the
# lines apart in grey. CE-GPPO is green with β2 = 1, darker the larger β1, and purple with β1 = 1,
# darker the larger β2; (1, 1) ends both rows.
LOOK = {
    "grpo": ("GRPO", "#D55E00", "-"),
    "clip_higher": ("clip-higher", "#0072B2", (0, (5, 2))),
    "cispo": ("CISPO", "#CC79A7", (0, (3, 1, 1, 1))),
    "gspo": ("GSPO", "#000000", (0, (8, 2, 1, 2))),
    "cegppo": ("CE-GPPO (0.5, 1)", "#009E73", (0, (1, 1))),
    "cegppo_0.75": ("CE-GPPO (0.75, 1)", "#00664B", (0, (3, 1.5))),
    "gppo": ("GPPO", "#08363B", (0, (4, 1, 1, 1, 1, 1))),
    "dapo": ("DAPO", "#56B4E9", (0, (7, 2, 1, 2))),
    "ppo": ("PPO", "#444444", (0, (2, 2))),
    "reinforce": ("REINFORCE", "#999999", "-"),
    "both": ("both sides clipped", "#D55E00", "-"),
    "clip_low_only": ("low side only", "#0072B2", (0, (5, 2))),
    "clip_high_only": ("high side only", "#009E73", (0, (1, 1))),
    "beta_0_0": ("β = (0, 0)", "#D55E00", "-"),  # GRPO's gradient
    "beta_0_1": ("β = (0, 1)", "#A9C934", "-"),
    "beta_0.25_1": ("β = (0.25, 1)", "#4DBE6E", (0, (6, 1, 1, 1))),
    "beta_0.5_1": ("β = (0.5, 1)", "#009E73", (0, (1, 1))),
    "beta_0.75_1": ("β = (0.75, 1)", "#00664B", (0, (3, 1.5))),
    "beta_1_1": ("β = (1, 1)", "#08363B", (0, (4, 1, 1, 1, 1, 1))),
    "beta_1_0.75": ("β = (1, 0.75)", "#7B3294", (0, (3, 1, 1, 1))),
    "beta_1_0.5": ("β = (1, 0.5)", "#B36BC9", (0, (10, 1.5, 2, 1.5))),
    "beta_1_0": ("β = (1, 0)", "#D9A9E3", (0, (2, 1))),
    "constant": ("low weight (1 − ε)·A", "#7B3294", (0, (3, 1, 1, 1))),
    "vanishing": ("low weight r²/(1 − ε)·A", "#009E73", "-"),
    "high": ("β = (0, 1)", "#A9C934", "-"),
    "low": ("β = (1, 0)", "#B36BC9", (0, (2, 1))),
    "alpha_0.001": ("GRPO, α = 0.001", "#E69F00", (0, (3, 1, 1, 1))),
    "alpha_0.003": ("GRPO, α = 0.003", "#8A5A00", (0, (7, 2, 1, 2))),
    "switch": ("(0, 1), then (0.5, 1)", "#0B3C5D", (0, (5, 1.5))),
}
# Of arms that LOOK does not know, one after the other: Okabe and Ito's colours again (without their
# yellow, too pale for a line). Seven colours and five dashes: a look comes again after 35 arms.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
DASHES = ("-", (0, (5, 2)), (0, (1, 1)), (0, (7, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1)))
LONGEST = 80  # characters of a label in a figure
# Token classes: blue for A > 0, rust and hatched for A < 0; dark for probable tokens, pale for
# improbable ones.
CLASSES = {
    "pa_hp": {"facecolor": "#0B4F8A", "hatch": ""},
    "pa_lp": {"facecolor": "#9CCBEE", "hatch": ""},
    "na_hp": {"facecolor": "#A8431B", "hatch": "////"},
    "na_lp": {"facecolor": "#F7C09A", "hatch": "////"},
}

plt.rcParams.update(
    {
        "figure.dpi": 150,
        "savefig.bbox": "tight",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "legend.frameon": False,
        "lines.linewidth": 1.6,
        "hatch.linewidth": 0.4,
        "axes.labelpad": 6,
        "text.parse_math": False,  # names may hold any $
        "svg.hashsalt": "cegppo",  # the same file from the same data
    }
)


def look(arm: str) -> tuple[str, dict]:
    """(label, line style) of an arm; an arm is named after its method."""
    return looks({arm: LOOK[arm][0] if arm in LOOK else arm})[arm]


def looks(labels: dict[str, str]) -> dict[str, tuple[str, dict]]:
    """(label, line style) of each arm of `labels` {arm: label}, no two alike. A label that LOOK has
    keeps its look, so that an algorithm is the same colour everywhere; the others are cycled."""
    known = {label: (colour, dashes) for label, colour, dashes in reversed(LOOK.values())}
    made: dict[str, Any] = {}
    for arm, label in labels.items():
        if label in known and known[label] not in made.values():  # two names of the same gradient look alike in LOOK
            made[arm] = known[label]
    size = len(COLOURS) * len(DASHES)
    cycle = [(COLOURS[n % len(COLOURS)], DASHES[n % len(DASHES)]) for n in range(size)]
    colours = {colour for colour, _ in made.values()}
    free = sorted((way for way in cycle if way not in made.values()), key=lambda way: way[0] in colours)
    rest = [arm for arm in labels if arm not in made]
    made |= {arm: free[n % len(free)] for n, arm in enumerate(rest)}
    return {arm: (label, dict(zip(("color", "linestyle"), made[arm]))) for arm, label in labels.items()}


def shown(label: str) -> str:
    """`label` as a figure can show it: on one line, not too long, and not hidden by matplotlib,
    which leaves what begins with _ out of a legend."""
    text = re.sub(r"[\s\x00-\x1f\x7f]+", " ", label)
    if len(text) > LONGEST:  # two that begin alike stay two
        text = f"{text[: LONGEST - 10]}… [{zlib.crc32(label.encode()):08x}]"
    return f"\N{ZERO WIDTH SPACE}{text}" if text.startswith("_") else text


def area(key: str) -> dict:
    """Fill of a token class."""
    return {**CLASSES[key], "edgecolor": "white", "linewidth": 0}


def caption(figure: plt.Figure, text: str) -> None:
    """What the figure shows, under it: runs, seeds, intervals, smoothing."""
    figure.supxlabel(text, fontsize=7, color="#555555")


def legend(figure: plt.Figure, columns: int, *axes: plt.Axes, title: str = "") -> None:
    """One legend above the whole figure, off the data: what the axes draw, each label once, row
    after row."""
    entries = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels())}
    labels = [
        label for i in range(columns) for label in list(entries)[i::columns]
    ]  # matplotlib fills column after column
    handles = [entries[label] for label in labels]
    place: dict[str, Any] = dict(loc="outside upper center", ncol=columns, fontsize=8, handlelength=3.2)
    figure.legend(handles, labels, title=title or None, title_fontsize=10, **place)


def save(figure: plt.Figure, results: Path, name: str) -> Path:
    """Write <results>/figures/<name>.svg and .png; the path of the PNG."""
    folder = subfolder(results / "figures")
    with whole(folder / f"{name}.svg") as unfinished:
        figure.savefig(unfinished, format="svg", metadata={"Date": None})
    path = folder / f"{name}.png"
    with whole(path) as unfinished:
        figure.savefig(unfinished, format="png")
        with Image.open(unfinished) as drawn:  # 256 colours are plenty for lines and bands, and a third of the bytes
            made = drawn.convert("RGB").quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        made.save(unfinished, format="png", optimize=True)
    plt.close(figure)
    return path
