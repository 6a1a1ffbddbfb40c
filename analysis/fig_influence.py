"""Three responses as text, each token coloured by what it did to the policy's entropy in the step
that learnt from it: one that is right, one that is wrong, one with a token outside the clip.

Reads the token record of results/ledger_20/cegppo/seed0, step 30. Of that record the three
responses alone are kept in the repository; the choice below finds the same ones in both.
"""

from pathlib import Path

import matplotlib.colors
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from . import load, style

RUN, STEP = "ledger_20/cegppo/seed0", 30
RESPONSE = ["prompt_id", "rollout"]
LENGTH = (12, 30)  # tokens of a response that can be shown whole
WIDTH = 92  # characters of a line
TITLES = {"right": "right", "wrong": "wrong", "clipped": "with tokens outside the clip"}


def draw(results: Path) -> None:
    record = load.tokens(results / RUN, STEP)
    if "dentropy_exact" not in record:
        raise load.Missing(f"no 'dentropy_exact' in the token record of step {STEP} in {results / RUN / 'tokens'}")
    shown = chosen(record)
    largest = max(abs(response["effect"]).max() for response in shown.values())
    # Effects span decades: linear below a hundredth of the largest, logarithmic above.
    norm = matplotlib.colors.SymLogNorm(largest / 100, vmin=-largest, vmax=largest, base=10)
    figure, axis = plt.subplots(figsize=(11.4, 4.9), constrained_layout=True)
    axis.set(xlim=(0, WIDTH), xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    axis.grid(False)
    bottom = 0.0
    for name, response in shown.items():
        bottom = write(axis, response, TITLES[name], bottom, norm) - 1.0
    axis.set_ylim(bottom + 0.8, 0.7)
    image = plt.cm.ScalarMappable(norm, plt.get_cmap("PuOr"))
    ticks = [
        sign * largest * share for sign, share in ((-1, 1), (-1, 0.1), (-1, 0.01), (1, 0), (1, 0.01), (1, 0.1), (1, 1))
    ]
    bar = figure.colorbar(image, ax=axis, location="bottom", shrink=0.6, aspect=45, pad=0.02)
    bar.set_ticks(ticks, labels=[f"{t:+.0e}".replace("e-0", "e−") if t else "0" for t in ticks])
    bar.minorticks_off()
    bar.set_label("what the token did to the probe's entropy, at once, nats (orange lowers, purple raises)")
    style.caption(
        figure,
        f"testbed, {RUN.replace('/', ', ')}, step {STEP}: λ J of every token, exact to first order (docs/entropy.md);"
        " framed: outside the clip",
    )
    for name, response in shown.items():
        print(
            f"{name}: {response['prompt_id'].iloc[0]}, Σ = {response['effect'].sum():+.2e} nats, {len(response)} tokens"
        )
    print(f"figure: {style.save(figure, results, 'influence')}")


def chosen(record: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """A response of each kind, a row a token with `effect`: of those with a fitting length and
    tokens that teach something the one whose tokens did most. No prompt twice; clipped first, then
    right and wrong among responses without a clipped token."""
    keys = [*RESPONSE, "position"]
    tokens = record.drop_duplicates(keys).set_index(keys).sort_index()
    tokens["effect"] = record.groupby(keys)["dentropy_exact"].sum()  # a token may be in several updates
    tokens["clipped"] = (record["side"] != "inside").groupby([record[k] for k in keys]).any()
    tokens = tokens.reset_index()
    responses = tokens.groupby(RESPONSE).agg(
        length=("position", "size"),
        clipped=("clipped", "any"),
        verdict=("verdict", "first"),
        most=("effect", lambda e: e.abs().sum()),
    )
    fits = responses[responses["length"].between(*LENGTH) & (responses["most"] > 0)]
    kinds = {
        "clipped": fits["clipped"],
        "right": ~fits["clipped"] & (fits["verdict"] == "correct"),
        "wrong": ~fits["clipped"] & (fits["verdict"] == "wrong"),
    }
    made: dict[str, pd.DataFrame] = {}
    used: set[str] = set()
    for kind, which in kinds.items():
        left = fits[which & ~fits.index.get_level_values("prompt_id").isin(used)]
        if left.empty:
            raise load.Missing(f"no response that is {TITLES[kind]} in the token record")
        prompt, rollout = left.index[int(left["most"].argmax())]
        used.add(prompt)
        made[kind] = tokens.loc[(tokens["prompt_id"] == prompt) & (tokens["rollout"] == rollout)]
    return {kind: made[kind] for kind in TITLES}


def write(axis: plt.Axes, response: pd.DataFrame, title: str, top: float, norm: matplotlib.colors.Normalize) -> float:
    """The response under its prompt, from `top` downwards; where it ends. A character is 1 wide, a
    line 1 high."""
    first = response.iloc[0]
    prompt = " ".join(str(first["prompt"]).split())
    verdict = f" ({first['verdict']})" if first["verdict"] != {"right": "correct"}.get(title, title) else ""
    head = f"{title}{verdict}, A = {first['advantage']:+.2f}, Σ = {response['effect'].sum():+.1e} nats"
    axis.text(0, top, head, fontsize=9, weight="bold", va="center")
    axis.text(0, top - 0.95, f"{prompt}  (answer: {first['answer']})", fontsize=7.5, color="#555555", va="center")
    column, line = 0.0, top - 2.1
    for token in response.sort_values("position").to_dict("records"):
        text = str(token["text"]).replace("\n", "⏎")
        if column + len(text) > WIDTH:
            column, line = 0.0, line - 1.25
        colour = plt.get_cmap("PuOr")(norm(token["effect"]))
        edge = {"edgecolor": "black", "linewidth": 1.6, "zorder": 3} if token["clipped"] else {"edgecolor": "white"}
        axis.add_patch(plt.Rectangle((column, line - 0.52), len(text), 1.04, facecolor=colour, **edge))
        dark = np.dot(colour[:3], (0.299, 0.587, 0.114)) < 0.5
        axis.text(
            column + len(text) / 2, line, text, family="monospace", fontsize=9.5, ha="center", va="center",
            color="white" if dark else "black", zorder=4,
        )  # fmt: skip
        column += len(text)
    return line - 0.9
