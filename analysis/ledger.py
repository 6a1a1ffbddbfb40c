"""The entropy ledger over a run: what each class of tokens did to the entropy, at once, through
momentum, and how well first order foretold what was measured.

A row of the record is a looked-at step, all of its updates together (docs/metrics.md). The unit of
every interval is a seed: a run becomes one number, the mean over its looked-at steps, first. What a
gradient will have done is estimated as 1/(1 − β₁) of what it did at once, β₁ AdamW's; `check` says
how far that is from what was measured.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from . import load, stats, tables
from .stats import Triple

CLASSES = {"pa_hp": "PA&HP", "pa_lp": "PA&LP", "na_hp": "NA&HP", "na_lp": "NA&LP"}
REST = {"momentum": "momentum from before", "decay": "weight decay", "other": "other terms"}
COLUMNS = ("at once", "carried", "eventual")
MILLI = 1e3  # nats to 10⁻³ nats
FEW = 5  # looked-at steps of one run, below which nothing is said of a difference
OLD = "a ledger of the old kind, of each step's last update alone (no `ledger/updates` in its lines): not shown"


def show(triple: Triple, form: str, factor: float = 1.0) -> str:
    """`mean [low, high]` of a triple times `factor`."""
    mean, low, high = triple
    return tables.interval(mean * factor, low * factor, high * factor, form=form)


def entries(metrics: pd.DataFrame) -> pd.DataFrame:
    """The rows of looked-at steps; none when diagnostics were off, or the record is of the old
    kind."""
    return metrics[metrics["ledger/updates"].notna()] if "ledger/updates" in metrics else metrics.iloc[:0]


def is_old(metrics: pd.DataFrame) -> bool:
    """Whether the only ledgers there are looked at the last update of a step alone."""
    return entries(metrics).empty and "ledger/predicted" in metrics and bool(metrics["ledger/predicted"].notna().any())


def momentum(folder: Path) -> float:
    """AdamW's β₁ of the run in `folder`."""
    return float(load.setting(folder, "update.beta1"))


def agreement(predicted: np.ndarray | pd.Series, measured: np.ndarray | pd.Series) -> dict[str, float]:
    """Correlation, least-squares slope of measured on predicted, and R² of measured = predicted
    (1 − SS(m − p) / SS(m − mean))."""
    predicted, measured = np.asarray(predicted, float), np.asarray(measured, float)
    if len(predicted) < 3 or predicted.std() == 0 or measured.std() == 0:
        return {"correlation": np.nan, "slope": np.nan, "R2": np.nan}  # too little to say
    slope = np.cov(predicted, measured)[0, 1] / predicted.var(ddof=1)
    r2 = 1 - ((measured - predicted) ** 2).sum() / ((measured - measured.mean()) ** 2).sum()
    return {"correlation": float(np.corrcoef(predicted, measured)[0, 1]), "slope": float(slope), "R2": float(r2)}


def by_seed(rows: pd.DataFrame, values: pd.Series) -> pd.Series:
    """Mean of `values` over the rows of each seed, indexed by seed; one run without a `seed`
    column is one number."""
    return values.groupby(rows["seed"]).mean() if "seed" in rows else pd.Series([values.mean()])


def steps_of(metrics: pd.DataFrame) -> float:
    """Steps of a run, mean over seeds."""
    return float(metrics.groupby("seed")["step"].max().mean() if "seed" in metrics else metrics["step"].max())


def table(metrics: pd.DataFrame, beta1: float) -> pd.DataFrame:
    """A row a part and column: part, column, mean, low, high; nats a step.

    There is no column of the whole run: 1/(1 − β₁) × steps of what was done at once contradicts
    what the run then did (`check`). What momentum carried from before is the work of earlier
    gradients and has no eventual effect of its own.
    """
    rows = entries(metrics)
    made: list[dict] = []

    def put(part: str, column: str, values: pd.Series, factor: float = 1.0) -> None:
        mean, low, high = stats.mean_over_seeds(by_seed(rows, values) * factor)
        made.append({"part": part, "column": column, "mean": mean, "low": low, "high": high})

    for key, part in {**CLASSES, "other": REST["other"]}.items():
        at_once = rows[f"ledger/predicted_{key}"]
        if key == "other" and not at_once.any():
            continue
        put(part, "at once", at_once)
        put(part, "carried", rows[f"ledger/carried_{key}"])
        put(part, "eventual", at_once, 1 / (1 - beta1))
    put(REST["momentum"], "at once", rows["ledger/predicted_momentum"])
    if rows["ledger/predicted_decay"].any():
        put(REST["decay"], "at once", rows["ledger/predicted_decay"])
    put("whole step, first order", "at once", rows["ledger/predicted"])
    put("whole step, measured", "at once", rows["dentropy/measured"])
    return pd.DataFrame(made)


def cells(made: pd.DataFrame) -> pd.DataFrame:
    """`table` as text, a row a part: 10⁻³ nats a step."""
    rows: dict[str, dict[str, str]] = {}
    for row in made.to_dict("records"):
        triple = (row["mean"], row["low"], row["high"])
        rows.setdefault(row["part"], {"part": row["part"]})[row["column"]] = show(triple, "{:+.2f}", MILLI)
    return pd.DataFrame(rows.values(), columns=["part", *COLUMNS]).fillna("")


def agreements(metrics: pd.DataFrame) -> pd.DataFrame:
    """A row a part: how first order agrees with the measured change, and the logit-space form with
    the parameter-space one.

    Of a class (`diagnostics.parts`) over the one update a step that was taken apart, where it holds
    tokens of the class; of the whole step over looked-at steps.
    """
    rows = entries(metrics)
    made = []
    for key, part in {**CLASSES, **REST, "": "whole step"}.items():
        first, then = ("ledger/predicted", "dentropy/measured")
        if key:
            first, then = f"ledger/first_order_{key}", f"ledger/measured_{key}"
        row: dict[str, str | float] = {"part": "momentum, all carried over" if key == "momentum" else part}
        if first in rows and then in rows:
            looked = rows[(rows[first] != 0) | (rows[then] != 0)].dropna(subset=[first, then])
            row |= {"n": len(looked), **agreement(looked[first], looked[then])}
        if key in CLASSES or not key:
            ours = rows[[f"ledger/predicted_{c}" for c in ([key] if key else CLASSES)]].sum(axis=1)
            free = agreement(rows[f"ledger/logit_{key}" if key else "ledger/logit"], ours)
            row |= {"logit r": free["correlation"], "logit slope": free["slope"]}
        if any(isinstance(v, float) and not np.isnan(v) for v in row.values()):
            made.append(row)
    return pd.DataFrame(made, columns=["part", "n", "correlation", "slope", "R2", "logit r", "logit slope"])


def agreement_cells(made: pd.DataFrame) -> pd.DataFrame:
    """`agreements` as text."""
    forms = {"part": "{}", "n": "{:.0f}", "logit slope": "{:.4f}"}
    shown = {c: [forms.get(str(c), "{:.2f}").format(v) if pd.notna(v) else "" for v in made[c]] for c in made}
    return pd.DataFrame(shown).rename(columns={"correlation": "r", "R2": "R²"})


def check(metrics: pd.DataFrame, beta1: float) -> dict[str, Triple]:
    """Whether 1/(1 − AdamW's β₁) of what all tokens did at once is what a step does: `eventual`,
    `measured`, and `difference` (nats a step). Intervals over seeds, of one run over its looked-at
    steps."""
    rows = entries(metrics)
    eventual = sum(rows[f"ledger/predicted_{key}"] for key in (*CLASSES, "other")) / (1 - beta1)
    measured = rows["dentropy/measured"]
    of = lambda values: stats.mean_over_seeds(by_seed(rows, values) if seeds(rows) > 1 else values)
    return {"eventual": of(eventual), "measured": of(measured), "difference": of(eventual - measured)}


def seeds(rows: pd.DataFrame) -> int:
    return rows["seed"].nunique() if "seed" in rows else 1


def over(rows: pd.DataFrame) -> str:
    """What an interval that always exists is taken over."""
    return f"{seeds(rows)} seeds" if seeds(rows) > 1 else f"{len(rows)} looked-at steps of one run"


def check_text(metrics: pd.DataFrame, beta1: float) -> str:
    """The eventual effect against the measured one; of a single run with few looked-at steps, that
    they are too few to say."""
    rows = entries(metrics)
    if over(rows).endswith("steps") and len(rows) < FEW:
        what = "1/(1 − AdamW's β₁) of what all tokens did at once against measured"
        return f"{what}: not shown, {len(rows)} looked-at steps"
    found = {name: show(triple, "{:+.2f}", MILLI) for name, triple in check(metrics, beta1).items()}
    return (
        f"1/(1 − AdamW's β₁) of what all tokens did at once: {found['eventual']}; measured: {found['measured']};"
        f" difference: {found['difference']} (10⁻³ nats a step, 95 % t interval over {over(rows)})"
    )


def facts(metrics: pd.DataFrame) -> str:
    """Empty updates, residuals and cost in one line."""
    rows = entries(metrics)
    empty = rows["ledger/empty_updates"].sum() / rows["ledger/updates"].sum()
    names = [f"ledger/{name}_residual" for name in ("influence", "step", "gradient")]
    worst = ", ".join(f"{n.split('/')[1].removesuffix('_residual')} {rows[n].median():.1g}" for n in names if n in rows)
    carried = "exact" if rows["ledger/carried_exact"].all() else "by recursion"
    return (
        f"updates without a class token: {empty:.0%}; tokens looked at: {rows['ledger/looked'].mean():.0%}; carried:"
        f" {carried}; residuals (median): {worst}; {rows['time/ledger'].mean():.2f} s a looked-at step"
    )


def text(metrics: pd.DataFrame, title: str, beta1: float) -> str:
    """The tables as lines for a terminal; "" without a ledger."""
    rows = entries(metrics)
    if rows.empty:
        return f"{title}: {OLD}" if is_old(metrics) else ""
    interval = " [95 % t interval]" if seeds(rows) > 1 else ""
    head = (
        f"{title}: what moved the entropy, 10⁻³ nats a step; mean of {len(rows)} looked-at steps"
        f" of {seeds(rows)} run{'s' if seeds(rows) > 1 else ''}{interval}"
    )
    agree = agreement_cells(agreements(metrics))
    return "\n".join(
        [
            head,
            cells(table(metrics, beta1)).to_string(index=False),
            *(
                [
                    "first order against measured, and the logit-space form against the parameter-space one:",
                    agree.to_string(index=False),
                ]
                if len(agree)
                else []
            ),
            check_text(metrics, beta1),
            facts(metrics),
        ]
    )


def of_run(folder: Path, title: str) -> str:
    """`text` of one run folder; empty when it holds no ledger."""
    return text(load.run(folder), title, momentum(folder))
