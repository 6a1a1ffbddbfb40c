"""All campaigns within a bound of time: `make test-faults`.

python -m tests.faults --seconds 900 --seed 1 --out results/faults/campaigns.csv
python -m tests.faults --only inputs --checks answers --seconds 120
python -m tests.faults --coverage answers --seconds 120          # needs atheris
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from . import disk, foreign, inputs, kills, rivals
from .children import preload
from .table import Table

SHARES = {"kills": 0.45, "disk": 0.2, "rivals": 0.1, "inputs": 0.15, "foreign": 0.1}  # of the time


def main() -> int:
    asked = argparse.ArgumentParser(description="Campaigns of faults.")
    asked.add_argument("--seconds", type=float, default=900)
    asked.add_argument("--seed", type=int, default=1)
    asked.add_argument("--share", type=float, default=1.0, help="of the places and faults of a disk, at random")
    asked.add_argument("--faults", nargs="*", default=[], help="of a disk, e.g. full (default: all)")
    asked.add_argument("--examples", type=int, default=20000, help="inputs, times the share that a check has")
    asked.add_argument("--only", choices=SHARES, help="one campaign, which then has all of the time")
    asked.add_argument("--checks", nargs="*", default=[], help="commands or checks of it (default: all)")
    asked.add_argument("--coverage", choices=inputs.CHECKS, help="one check of inputs, led by coverage")
    asked.add_argument("--out", type=Path, help="a csv to which the counts are added")
    options = asked.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if options.coverage:
            if importlib.util.find_spec("atheris") is None:
                sys.exit("atheris is not installed; without it hypothesis makes the inputs (--only inputs)")
            inputs.led_by_coverage(options.coverage, int(options.seconds))
        alone = options.only in ("inputs", "foreign")
        if not alone and not disk.loaded():  # again, with the shim before libc
            environment = {**os.environ, "LD_PRELOAD": str(disk.build(folder)), "OMP_NUM_THREADS": "1"}
            return subprocess.call([sys.executable, "-m", "tests.faults", *sys.argv[1:]], env=environment)
        failures = 0
        if not alone:
            preload()
            kills.prepared(folder)
        for name in [options.only] if options.only else SHARES:
            seconds = options.seconds * (1 if options.only else SHARES[name])
            table = Table(name, options.seed, options.out)
            if name == "kills":
                kills.Campaign(folder, options.seed, table).run(seconds, options.checks)
            elif name == "disk":
                campaign = disk.Campaign(folder, table)
                campaign.run(seconds, options.checks, options.seed, options.share, options.faults)
            elif name == "rivals":
                rivals.Campaign(folder, table).run(seconds, options.checks, options.seed)
            elif name == "foreign":
                foreign.Campaign(folder, table).run(seconds, options.checks, options.seed)
            else:
                inputs.Campaign(table).run(seconds, options.checks, options.seed, options.examples)
            table.close()
            failures += len(table.failures)
        return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
