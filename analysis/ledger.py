"""The entropy ledger over a run: how much each class of tokens moved the entropy, and how well
first order foretold it."""

from pathlib import Path

import numpy as np
import pandas as pd

from . import load

CLASSES = {"pa_hp": "PA&HP", "pa_lp": "PA&LP", "na_hp": "NA&HP", "na_lp": "NA&LP"}
REST = {"momentum": "momentum", "decay": "weight decay", "other": "other terms"}


def entries(metrics: pd.DataFrame) -> pd.DataFrame:
    """The rows that hold a ledger; none when diagnostics were off."""
    return metrics[metrics["ledger/predicted"].notna()] if "ledger/predicted" in metrics else metrics.iloc[:0]


def agreement(predicted: np.ndarray | pd.Series, measured: np.ndarray | pd.Series) -> dict[str, float]:
    """Correlation, least-squares slope of measured on predicted, and R² of measured = predicted
    (1 − SS(m − p) / SS(m − mean))."""
    predicted, measured = np.asarray(predicted, float), np.asarray(measured, float)
    if len(predicted) < 3 or predicted.std() == 0 or measured.std() == 0:
        return {"correlation": np.nan, "slope": np.nan, "R2": np.nan}  # too little to say
    slope = np.cov(predicted, measured)[0, 1] / predicted.var(ddof=1)
    r2 = 1 - ((measured - predicted) ** 2).sum() / ((measured - measured.mean()) ** 2).sum()
    return {"correlation": float(np.corrcoef(predicted, measured)[0, 1]), "slope": float(slope), "R2": float(r2)}


def table(metrics: pd.DataFrame) -> pd.DataFrame:
    """A row a part of the step, and the whole: ΔH of an update (nats), predicted and measured, and
    how well they agree.

    `over run` is the measured mean times the run's updates: an estimate, since a ledger looks at
    few of them. The logit-space form has no scale of its own, so its slope converts units and its
    R² is that of the fitted line.
    """
    rows = entries(metrics)
    runs = metrics.groupby("seed")["updates"].sum().mean() if "seed" in metrics else metrics["updates"].sum()
    made = []
    for key, name in {**CLASSES, **REST, "": "whole step"}.items():
        predicted = rows[f"ledger/predicted_{key}" if key else "ledger/predicted"]
        measured = rows[f"ledger/measured_{key}" if key else "dentropy/measured"]
        if key in REST and not predicted.any():
            continue
        fit = agreement(predicted, measured)
        row = {
            "part": name,
            "predicted": predicted.mean(),
            "measured": measured.mean(),
            "over run": measured.mean() * runs,
            **fit,
        }
        logit = f"ledger/logit_{key}" if key else "ledger/logit"
        if logit in rows:
            free = agreement(rows[logit], measured)
            row |= {"logit r": free["correlation"], "logit slope": free["slope"], "logit R2": free["correlation"] ** 2}
        made.append(row)
    return pd.DataFrame(made)


def text(metrics: pd.DataFrame, title: str) -> str:
    """The table as lines for a terminal; predicted and measured in 10⁻⁶ nats an update, `over
    run` in nats."""
    rows = entries(metrics)
    if rows.empty:
        return ""
    made = table(metrics)
    formats = {"predicted": "{:+.1f}", "measured": "{:+.1f}", "over run": "{:+.3f}", "logit slope": "{:.4f}"}
    made[["predicted", "measured"]] *= 1e6
    for column in made.columns.drop("part"):
        made[column] = [("" if np.isnan(v) else formats.get(column, "{:.2f}").format(v)) for v in made[column]]
    cost = rows["time/ledger"].mean()
    head = (
        f"{title}: entropy moved by one update, 1e-6 nats, and over the run, nats; mean of {len(rows)} ledgers"
        f" ({cost:.2f} s each)"
    )
    return f"{head}\n{made.to_string(index=False)}"


def of_run(folder: Path, title: str) -> str:
    """`text` of one run folder; empty when it holds no ledger."""
    return text(load.run(folder), title)
