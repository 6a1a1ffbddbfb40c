"""What a folder of somebody else's may call its runs, wherever that is read.

An experiment and an arm are the name of one folder each, a seed is a whole number: a pack's line or
a meta.json with anything else could name a folder outside its own.
"""

import re
from pathlib import Path, PurePosixPath
from typing import Any

from ..types import BadInput

_SEED = re.compile(r"seed(0|[1-9][0-9]{0,18})")


def is_plain(name: Any) -> bool:
    """Whether `name` is the name of one folder."""
    return isinstance(name, str) and name not in ("", ".", "..") and not {"/", "\0"} & set(name)


def seed_of(folder: str) -> int | None:
    """The seed of the run folder that is called `folder` (seed<k>); None for another folder."""
    found = _SEED.fullmatch(folder)
    return int(found[1]) if found else None


def run_name(arm: Any, seed: Any, where: str) -> str:
    """What a pack calls the run of `arm` and `seed`: arm/seed<k>. Raises BadInput, which begins
    with `where`."""
    if not is_plain(arm):
        raise BadInput(f"{where}: 'arm' is the name of one folder, not {arm!r:.80}")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed_of(f"seed{seed}") is None:
        raise BadInput(f"{where}: 'seed' is a whole number from 0 up, not {seed!r:.80}")
    return f"{arm}/seed{seed}"


def run_beside(folder: Path, named: str) -> Path:
    """The run that `named` (<…>/<sweep>/<arm>/seed<k>) means, under the root that `folder`'s own
    sweep lies in: it may have moved since. Raises BadInput."""
    parts = PurePosixPath(named).parts[-3:]
    if len(parts) < 3 or not all(map(is_plain, parts)) or seed_of(parts[-1]) is None:
        raise BadInput(f"{folder / 'meta.json'}: 'taken_from' is <sweep>/<arm>/seed<k>, not {named!r:.80}")
    return folder.parent.parent.parent / Path(*parts)


def is_linked(folder: Path) -> bool:
    """Whether run folder `folder`, or that of its arm, is a link: the run is somebody else's."""
    return folder.is_symlink() or folder.parent.is_symlink()
