"""What belongs to the package and is no part of it: analysis/, experiments/, sweeps/ and run.py.

In a checkout they stand beside the package; a wheel has copies of them in cegppo/beside/
(setup.py).
"""

from pathlib import Path

HERE = Path(__file__).resolve().parent
INSTALLED = (HERE / "beside").is_dir()  # from a wheel
ROOT = HERE / "beside" if INSTALLED else HERE.parent
EXPERIMENTS = ROOT / "experiments"


def find(path: str | Path) -> Path:
    """The file or folder `path`; where there is none, the one that is shipped under that name
    (`experiments/testbed.yaml` from any folder)."""
    shipped = ROOT / path
    return shipped if not Path(path).exists() and shipped.exists() else Path(path)
