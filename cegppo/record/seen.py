"""What the model wrote at a run's evaluations: a few prompts with completions and verdicts, in a
small file that stays small."""

from pathlib import Path
from typing import Any

from .files import append_line, as_lines, read_lines, subfolder, write_whole

NAME = "completions/seen.jsonl"
COMPLETIONS, CHARACTERS = 4, 2000  # of each prompt, and of each text; a longer one loses its middle
LISTS = ("verdicts", "finish", "tokens", "ended_by")  # of a line, one value a completion
LARGEST = 4_000_000  # bytes; beyond, every second evaluation goes, the first and the last ones stay


def log_seen(folder: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line a prompt; the lines, shortened as they were written."""
    path, written = folder / NAME, []
    subfolder(path.parent)
    for row in rows:
        texts = {"prompt": _short(row["prompt"]), "completions": [_short(t) for t in row["completions"][:COMPLETIONS]]}
        written.append(row | texts | {k: row[k][:COMPLETIONS] for k in LISTS if k in row})
        append_line(path, written[-1])
    if path.is_file() and path.stat().st_size > LARGEST:
        kept = read_lines(path)
        steps = list(dict.fromkeys(row["step"] for row in kept))
        stay = {*steps[::2], *steps[-2:]}
        write_whole(path, as_lines([row for row in kept if row["step"] in stay]))
    return written


def rewind_seen(folder: Path, step: int) -> None:
    """Forget what was written after `step`: a resumed run writes it again."""
    if (folder / NAME).is_file():
        write_whole(folder / NAME, as_lines([row for row in read_lines(folder / NAME) if row["step"] <= step]))


def _short(text: str) -> str:
    text = text.encode(errors="replace").decode()  # half a surrogate pair is no UTF-8
    if len(text) <= CHARACTERS:
        return text
    half = CHARACTERS // 2
    return f"{text[:half]} […{len(text) - 2 * half} characters left out…] {text[-half:]}"
