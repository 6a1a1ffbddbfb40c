"""Judgements of answers that nobody here wrote: (reference, answer, equal) from the regression
tests of math-verify 0.9.0.

They stand in the `tests/` folder of the package's source archive (Apache License 2.0, Copyright
2024 the HuggingFace Team) and are read from it, not copied: `pip download` fetches the archive.
What applies here are pairs of two texts with a verdict, where the reference and the answer are a
formula as a whole or stand in a box.
"""

import ast
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cegppo.problems.reward import final_answer

PACKAGE = "math-verify==0.9.0"
_FORMULA = re.compile(r"(?s)\s*(?:\$\$(?P<a>[^$]+)\$\$|\$(?P<b>[^$]+)\$|\\\((?P<c>.+?)\\\)|\\\[(?P<d>.+?)\\\])[.\s]*")


class Judgement(NamedTuple):
    reference: str
    answer: str
    equal: bool
    boxes: int  # in the text that the answer comes from


def fetch(folder: Path) -> Path:
    """The archive of math-verify's sources in `folder`, downloaded if it is not there. Raises
    OSError offline."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation", "--no-binary=:all:"]
    if not (there := sorted(folder.glob("math_verify-*.tar.gz"))):
        done = subprocess.run([*pip, "--dest", str(folder), PACKAGE], capture_output=True, text=True)
        there = sorted(folder.glob("math_verify-*.tar.gz"))
        if not there:
            raise OSError(f"pip download {PACKAGE}: {done.stderr.strip().splitlines()[-1:]}")
    return there[0]


def written(archive: Path) -> Iterator[tuple[str, str, bool]]:
    """(reference, prediction, equal) of every parametrised test in the archive."""
    with tarfile.open(archive) as sources:
        for member in sorted(sources.getnames()):
            if not re.search(r"/tests/test_\w+\.py$", member):
                continue
            file = sources.extractfile(member)
            assert file is not None
            for node in ast.walk(ast.parse(file.read())):
                row = [e.value if isinstance(e, ast.Constant) else None for e in getattr(node, "elts", ())]
                if len(row) > 3 and isinstance(row[2], bool):
                    row = [*row[:2], row[3]] if row[2] else []  # (strict, equal): strict is the default, and ours
                match row:
                    case [str(gold), str(prediction), int(equal), *more] if more in ([], [6], [False]):
                        yield gold, prediction, bool(equal)


def _content(text: str) -> str | None:
    """What the text says as a whole: its box, its only formula, or itself if it is one word or
    number."""
    if "\\boxed" in text:
        return final_answer(text)
    if formula := _FORMULA.fullmatch(text):
        return next(part for part in formula.groups() if part is not None).strip()
    return text.strip() if re.fullmatch(r"\S+", text) and "$" not in text else None


def judgements(archive: Path) -> list[Judgement]:
    """Those that apply here, each once."""
    found = {}
    for gold, prediction, equal in written(archive):
        reference, answer = _content(gold), _content(prediction)
        if reference and answer:
            boxes = max(gold.count("\\boxed"), prediction.count("\\boxed"))
            found[reference, answer] = Judgement(reference, answer, equal, boxes)
    return list(found.values())
