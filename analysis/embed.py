"""Numbers and texts into one HTML file: columns as base64, data as JSON that no text can break out
of, a policy that runs no script but the page's own.

The page is `page/page.html`, its style and scripts lie beside it. `column` on this side is read by
`column` in page/values.js.
"""

import base64
import hashlib
import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

PAGE = Path(__file__).resolve().parent / "page"
STYLES = ("uplot.min.css", "page.css")
SCRIPTS = ("uplot.min.js", "values.js", "curves.js", "microscope.js", "page.js")
HALF = 2.0**15  # the largest number of a scaled half column; its smallest with three digits is 6e-5


def column(values: np.ndarray, kind: str) -> dict[str, Any]:
    """A column for the page. kind: `single` (float32), `half` (float16 times a scale: three digits
    over nine decades), or `index` (the smallest of uint8, uint16, uint32)."""
    if kind == "index":
        most = int(values.max(initial=0))
        kind = "u1" if most < 2**8 else "u2" if most < 2**16 else "u4"
        return {"kind": kind, "data": _text(values, f"<{kind}")}
    if kind == "single":
        return {"kind": kind, "data": _text(values, "<f4")}
    finite = np.where(np.isfinite(values), values, np.nan).astype(float)
    largest = np.nanmax(np.abs(finite), initial=0.0)
    scale = float(largest / HALF) if largest > 0 else 1.0
    return {"kind": "half", "scale": scale, "data": _text(finite / scale, "<f2")}


def _text(values: np.ndarray, form: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype=form).tobytes()).decode()


def table(title: str, caption: str, cells: pd.DataFrame) -> dict[str, Any]:
    """A table for the page, every cell as text."""
    rows = [[str(cell) for cell in row] for row in cells.to_numpy()]
    return {"title": title, "caption": caption, "head": list(map(str, cells.columns)), "rows": rows}


def page(title: str, data: dict[str, Any]) -> str:
    """The whole HTML file. Every text in `data` may be anybody's: it is JSON in which no `<` is
    left, and the page writes it as text."""
    style = "\n".join(_read(name) for name in STYLES)
    script = "\n".join(_read(name) for name in SCRIPTS)
    policy = f"default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; style-src {_hash(style)};"
    parts = {
        "title": html.escape(title),
        "policy": f"{policy} script-src {_hash(script)}",
        "style": style,
        "script": script,
        "data": json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _read("page.html"))


def _read(name: str) -> str:
    return (PAGE / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
