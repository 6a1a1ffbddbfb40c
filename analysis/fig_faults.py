"""How many faults the campaigns tried, and how many came out wrong: a table. Reads
results/faults/campaigns.csv, which `make test-faults` writes."""

from pathlib import Path

import pandas as pd

from . import load, numbers

FILE = Path("faults") / "campaigns.csv"
BLOCKS = ("faults",)
# What a fault of a campaign is.
FAULTS = {
    "kills": "kills at random moments",
    "disk": "calls that failed, one or all from there on",
    "rivals": "the same command twice at once",
    "inputs": "strange inputs",
    "foreign": "folders that somebody sent, made hostile",
}


def counted(results: Path) -> pd.DataFrame:
    """Trials, faults and failures of every campaign and thing, over its seeds. Raises Missing."""
    if not (results / FILE).is_file():
        raise load.Missing(f"{results / FILE}: no campaign is recorded there (make test-faults)")
    found = pd.read_csv(results / FILE)
    counts = found.groupby(["campaign", "what"], sort=True)[["trials", "faults", "failures"]].sum()
    return counts.reset_index()


def draw(results: Path) -> None:
    print(blocks(results)["faults"])


def blocks(results: Path) -> dict[str, str]:
    found = counted(results)
    rows = []
    for campaign, words in FAULTS.items():
        mine = found[found["campaign"] == campaign]
        total = mine[["trials", "faults", "failures"]].sum()
        if not mine.empty:
            rows.append([f"**{words}**", *(f"**{total[key]:,}**" for key in ("trials", "faults", "failures"))])
            rows += [[row["what"], f"{row['trials']:,}", f"{row['faults']:,}", f"{row['failures']:,}"]
                     for _, row in mine.iterrows()]  # fmt: skip
    return {"faults": numbers.markdown(pd.DataFrame(rows, columns=["what", "trials", "faults", "failures"]))}
