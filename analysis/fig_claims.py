"""sweeps/claims.yaml held against the runs: held, not held or undecided, with mean, interval and
seeds, and what is left of the verdicts when each family is corrected for its size. Tables, no
drawing."""

from pathlib import Path

import pandas as pd

from . import claims, load, numbers, tables
from .claims import Claim, Record, Verdict

BLOCKS = ("claims", "claims count")
FAMILIES = {
    "paper": "What the paper claims, on the testbed with a mini-batch of one group",
    "map": "Where β matters: the regimes",
    "sides": "Either side alone, and clip-higher, in the regimes of the map",
    "again": "The coins again, on ten other seeds",
    "stories_again": "The happy word again, on five other seeds",
    "stories": "A pretrained model, TinyStories-15M: with a coin, and rewarded for a happy word",
    "cliff": "Why the low side collapses",
    "family": "The family of methods, in two regimes",
    "phase": "A true reward and longer steps, 60 steps",
    "length": "A true reward over 300 steps",
}
VERDICTS = ("held", "not held", "undecided", "missing")


def draw(results: Path, file: Path = claims.FILE) -> None:
    """Write <results>/figures/claims.md and .csv, print the tables. Raises Missing, after
    writing, when runs of a claim are missing."""
    stated = claims.read(file)
    found, absent = _decide(results, stated)
    made = _numbers(stated, found)
    sections = [
        tables.Section(
            FAMILIES.get(family, family), _caption(made[made["family"] == family]), _cells(stated, found, made.loc[of])
        )
        for family in dict.fromkeys(made["family"])
        if (of := list(made.index[made["family"] == family]))
    ]
    path = tables.save(results, "claims", sections, made, latex=False)
    for section in sections:
        print(f"{section.title}\n{section.cells.drop(columns=['source', 'name']).to_string(index=False)}\n")
        print(f"{section.caption}\n")
    print(f"table: {path}")
    if absent:
        raise load.Missing("; ".join(dict.fromkeys(absent)))


def blocks(results: Path) -> dict[str, str]:
    """The tables of all families, and how many claims came out which way."""
    stated = claims.read()
    found, absent = _decide(results, stated)
    if not any(found):
        raise load.Missing("; ".join(dict.fromkeys(absent)))
    made = _numbers(stated, found)
    parts, counts = [], []
    for family in dict.fromkeys(made["family"]):
        of = list(made.index[made["family"] == family])
        cells = _cells(stated, found, made.loc[of]).drop(columns=["test", "source"])
        cells["name"] = [f"`{name}`" for name in cells["name"]]
        parts.append(f"**{FAMILIES.get(family, family)}.** {_caption(made.loc[of])}\n\n{numbers.markdown(cells)}")
        counts.append(f"* {FAMILIES.get(family, family)}: o{_count(made.loc[of])[1:]}.")
    return {"claims": "\n\n".join(parts), "claims count": "\n".join(counts)}


def _decide(results: Path, stated: list[Claim]) -> tuple[list[Record | None], list[str]]:
    """What came of each claim, None where runs are missing, and which those are."""
    found: list[Record | None] = []
    absent = []
    for claim in stated:
        try:
            found.append(claims.decide_on_record(results, claim))
        except load.Unreadable:
            raise
        except load.Missing as error:
            absent.append(str(error))
            found.append(None)
    return found, absent


def _numbers(stated: list[Claim], found: list[Record | None]) -> pd.DataFrame:
    """A row a claim."""
    alone: list[Verdict | None] = [None if record is None else record.all for record in found]
    rows = []
    for claim, record, corrected in zip(stated, found, claims.corrected(stated, alone)):
        row = {
            "claim": claim.claim, "name": claim.name, "family": claim.family, "source": claim.source,
            "test": claims.describe(claim), "seen": claim.seen, "stated": f"{claim.stated:%Y-%m-%d %H:%M}",
        }  # fmt: skip
        if record is None:
            rows.append(row | {"verdict": "missing", "corrected": "missing", "seeds": 0})
            continue
        v, fresh = record.all, record.fresh
        row |= {"verdict": v.verdict, "corrected": corrected, "mean": v.mean, "low": v.low, "high": v.high, "p": v.p}
        row |= {"seeds": v.n, "runs": record.runs, "ended_before": record.before}
        if fresh is not None:
            row |= {f"fresh_{key}": getattr(fresh, key) for key in ("verdict", "mean", "low", "high", "n")}
        rows.append(row)
    return pd.DataFrame(rows)


def _cells(stated: list[Claim], found: list[Record | None], made: pd.DataFrame) -> pd.DataFrame:
    """What is shown of the claims whose numbers are `made`, indexed by their place in `stated`."""
    rows = []
    for i in made.index:
        claim, record, row = stated[i], found[i], made.loc[i]
        form = "{:.3g}" if claim.ratio else "{:+.3g}"
        show = lambda v, form=form: tables.interval(v.mean, v.low, v.high, form=form)
        fresh = record.fresh if record is not None else None
        rows.append(
            {
                "claim": claim.claim + " †" * claim.seen,
                "name": claim.name,
                "verdict": row["verdict"],
                "Holm": row["corrected"],
                "mean [95 % interval]": "" if record is None else show(record.all),
                "seeds": row["seeds"],
                "ended before": "" if record is None else f"{record.before} of {record.runs}",
                "the later seeds alone": "" if fresh is None else f"{fresh.verdict}, {show(fresh)} ({fresh.n})",
                "test": row["test"],
                "source": row["source"],
            }
        )
    cells = pd.DataFrame(rows)
    later = "the later seeds alone"
    return cells.drop(columns=later) if (cells[later] == "").all() else cells


def _count(made: pd.DataFrame) -> str:
    tally = lambda column: ", ".join(f"{n} {v}" for v in VERDICTS if (n := int((made[column] == v).sum())))
    return f"Of {len(made)} claims {tally('verdict')}; with Holm's correction {tally('corrected')}"


def _caption(made: pd.DataFrame) -> str:
    return (
        f"{_count(made)}. One number a seed, mean and 95 % t interval over seeds; a verdict only when the"
        " whole interval lies on one side of the bound. Ended before: runs that had ended when the claim was committed."
        " † Earlier runs of the same comparison were known to who wrote it."
    )
