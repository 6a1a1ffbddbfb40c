"""sweeps/claims.yaml held against the runs: held, not held or undecided, with mean, interval and
seeds. A table, no drawing."""

from pathlib import Path

import pandas as pd

from . import claims, load, tables


def draw(results: Path, file: Path = claims.FILE) -> None:
    """Write <results>/figures/claims.md and .csv, print the table. Raises Missing, after
    writing, when runs of a claim are missing."""
    stated, absent = claims.read(file), []
    rows = []
    for claim in stated:
        row = {
            "claim": claim.claim,
            "name": claim.name,
            "source": claim.source,
            "test": claims.describe(claim),
            "seen": claim.seen,
        }
        try:
            found = claims.decide(results, claim)
            rows.append(
                {
                    **row,
                    "verdict": found.verdict,
                    "mean": found.mean,
                    "low": found.low,
                    "high": found.high,
                    "seeds": found.n,
                }
            )
        except load.Unreadable:
            raise
        except load.Missing as error:
            absent.append(str(error))
            rows.append({**row, "verdict": "missing", "mean": None, "low": None, "high": None, "seeds": 0})
    made = pd.DataFrame(rows)
    shown = pd.DataFrame(
        {
            "claim": made["claim"] + made["seen"].map({True: " †", False: ""}),
            "verdict": made["verdict"],
            "mean [95 % interval]": [
                tables.interval(mean, low, high, form="{:.3g}" if claim.ratio else "{:+.3g}")
                for claim, mean, low, high in zip(stated, made["mean"], made["low"], made["high"])
            ],
            "seeds": made["seeds"],
            "test": made["test"],
            "source": made["source"],
        }
    )
    count = made["verdict"].value_counts()
    caption = (
        f"{len(made)} claims of arXiv 2509.20712 v5, stated in sweeps/claims.yaml before the runs: "
        + ", ".join(
            f"{count[verdict]} {verdict}"
            for verdict in ("held", "not held", "undecided", "missing")
            if verdict in count
        )
        + ". Testbed; one number a seed, mean and 95 % t interval over seeds; a verdict only when the whole interval"
        " lies on one side of the bound. Not corrected for the number of claims. † Earlier runs of the same"
        " comparison were known when the claim was written."
    )
    path = tables.save(results, "claims", [tables.Section("Claims", caption, shown)], made, latex=False)
    print(f"{shown.drop(columns='source').to_string(index=False)}\n\n{caption}\n\ntable: {path}")
    if absent:
        raise load.Missing("; ".join(dict.fromkeys(absent)))
