"""A run that makes room for another: moved aside, never deleted."""

from pathlib import Path

from .files import as_page, lock, write_whole
from .keep import unpack
from .read import packed


def move_aside(folder: Path) -> Path | None:
    """Move what a run's folder holds to `aside-<name>-<n>` beside it; the new path, or None when it
    holds nothing. The record of a run in a pack is written out there first; the pack keeps its line
    until `keep` meets the new run, and a meta.json says that the folder speaks for itself again.
    Raises BadInput when a live process writes to the folder."""
    if not packed(folder) and not (folder.is_dir() and any(path.name != ".lock" for path in folder.iterdir())):
        return None
    held = lock(folder / ".lock", f"{folder}: another live process is writing to it")
    try:
        unpack(folder)
        taken = len(list(folder.parent.glob(f"aside-{folder.name}-*")))
        there = folder.with_name(f"aside-{folder.name}-{taken + 1}")
        folder.rename(there)
        if packed(folder):  # which it is for as long as no meta.json is there
            folder.mkdir()
            write_whole(folder / "meta.json", as_page({"status": "not begun"}))
    finally:
        held.close()
    return there
