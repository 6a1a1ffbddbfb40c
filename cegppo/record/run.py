"""A run's folder: what was asked (config.yaml), where and when it ran (meta.json), what happened
(metrics.jsonl, eval.jsonl).

Every line is written whole, a checkpoint appears only when it is complete, and one live process at
a time may write. wandb mirrors the record and never stops it.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from ..config import Config, as_yaml
from ..types import BadInput
from .files import (
    append_line,
    as_lines,
    as_page,
    flush,
    lock,
    point,
    put_folder,
    read_lines,
    remove_unfinished,
    remove_unused,
    write_parquet,
    write_whole,
)
from .keep import unpack
from .mirror import start_mirror
from .provenance import changed, now, session
from .read import packed, read_config, read_meta, read_metrics
from .seen import log_seen, rewind_seen

TOKEN_ORDER = ["update", "prompt_id", "rollout", "position"]  # rows of a token record


def refuse_other_run(folder: Path, config: Config) -> None:
    """Raises BadInput when `folder` holds records of a run of another configuration, or records
    that nothing can continue.

    A folder in which nothing was recorded yet may be taken over.
    """
    steps = [row["step"] for row in read_metrics(folder)]
    continues = (folder / "checkpoints" / "latest" / "state.json").is_file()
    if not steps and not continues:
        return
    before, now = read_config(folder).identity(), config.identity()
    changed = [k for k in sorted(before.keys() | now.keys()) if before.get(k) != now.get(k)]
    if changed:
        was = f"{changed[0]} was {before.get(changed[0])!r}, is now {now.get(changed[0])!r}"
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise BadInput(f"{folder}: holds another run: {was}{more}; choose another run_dir or arm")
    if not continues and read_meta(folder).get("status") in ("finished", "stopped"):
        raise BadInput(
            f"{folder}: holds a record of {max(steps)} steps but no checkpoint to continue from; choose another run_dir"
            " or arm"
        )


def checkpoint(folder: Path, which: str = "latest") -> Path:
    """The checkpoint `which` ("latest" or "best") of run folder `folder`. Raises BadInput when
    there is none."""
    path = folder / "checkpoints" / which
    if not (path / "state.json").is_file():
        why = "; its record is kept in a pack, and checkpoints are not" if packed(folder) else ""
        raise BadInput(f"{folder}: no checkpoint '{which}' there{why}")
    return path


def fingerprint(model: str | Path) -> list[Any]:
    """What tells a model from another of the same place: the name, size and time of its weight
    files; the id of one of a hub."""
    files = sorted(Path(model).glob("*.safetensors")) + sorted(Path(model).glob("*.bin"))
    return [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files] or [str(model)]


class Record:
    """An open run folder, locked for this process until `close`.

    Raises BadInput when another live process writes to it, or when it holds a run of another
    configuration.
    """

    def __init__(self, config: Config):
        self.config, self.folder = config, config.folder
        self._lock = lock(self.folder / ".lock", f"{self.folder}: another live process is writing to it")
        refuse_other_run(self.folder, config)
        unpack(self.folder)  # a run that was kept in a pack goes on in its folder
        write_whole(self.folder / "config.yaml", as_yaml(config))
        self._meta = read_meta(self.folder) | {"status": "running"}
        self._meta.setdefault("start", now())
        sessions = [*self._meta.get("sessions", []), session()]
        self._meta["sessions"] = sessions
        if len(sessions) > 1 and (what := changed(*sessions[-2:])):
            print(f"{self.folder}: the code changed since this run was last started: {what}", file=sys.stderr)
        self._write_meta()
        self._wandb = start_mirror(config, self.folder)

    def _write_meta(self) -> None:
        write_whole(self.folder / "meta.json", as_page(self._meta))

    def note(self, **facts: Any) -> None:
        """Facts for meta.json."""
        self._meta |= facts
        self._write_meta()

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        """One line of metrics.jsonl."""
        append_line(self.folder / "metrics.jsonl", {"step": step, **metrics})
        if self._wandb is not None:
            self._wandb.log({"step": step, **metrics})

    def log_eval(self, step: int, rows: list[dict[str, Any]], mean: float) -> None:
        """One line of eval.jsonl a benchmark; `mean` is their mean accuracy."""
        for row in rows:
            append_line(self.folder / "eval.jsonl", {"step": step, **row})
            if self._wandb is not None:
                shares = {f"verdict/{v}": n / (row["n"] * row["k"]) for v, n in row["verdicts"].items()}
                numbers = {k: v for k, v in (row | shares).items() if isinstance(v, float)}
                self._wandb.log({"step": step, **{f"eval/{row['benchmark']}/{k}": v for k, v in numbers.items()}})
        if self._wandb is not None and rows:  # one number for a wandb sweep to look at
            self._wandb.log({"step": step, "eval/mean": mean})

    def log_tokens(self, step: int, parts: list[dict[str, Any]]) -> None:
        """tokens/step<n>.parquet, from columns in parts."""
        if parts:
            columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            write_parquet(self.folder / "tokens" / f"step{step:06d}.parquet", columns, TOKEN_ORDER)

    def log_seen(self, rows: list[dict[str, Any]]) -> None:
        """A few completions of an evaluation."""
        log_seen(self.folder, rows)

    def rewind(self, step: int) -> None:
        """Forget what was logged after `step`: a resumed run writes those lines again."""
        rewind_seen(self.folder, step)
        for name in ("metrics.jsonl", "eval.jsonl"):
            path = self.folder / name
            if path.is_file():
                kept = [row for row in read_lines(path) if row["step"] <= step]
                write_whole(path, as_lines(kept))

    def save_checkpoint(self, step: int, write: Any, best: bool) -> None:
        """`write(folder)` fills a new checkpoint; only when it is complete does `latest` (and
        `best`) point to it."""
        root = self.folder / "checkpoints"
        root.mkdir(exist_ok=True)
        remove_unfinished(root)
        made = root / f"step{step:06d}"
        put_folder(made, write)
        # `best` first: a run killed in between continues from the older `latest` and saves this one
        # again.
        for name in [*(["best"] if best else []), "latest"]:
            point(root / name, made.name)
        flush(root)
        remove_unused(root, "step*", ("latest", "best"))

    def close(self, status: str) -> None:
        """`finished`, `stopped` (resumable) or `failed`."""
        self._meta |= {"status": status, "end": now()}
        self._meta["sessions"][-1]["end"] = now()
        self._write_meta()
        if self._wandb is not None:
            self._wandb.finish(1 if status == "failed" else 0)
        self._lock.close()
