"""One self-contained HTML page about a run: what was asked, what happened, what moved the
entropy. No file beside it is needed."""

import base64
import html
import io
import os
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from . import ledger, load, style

PANELS = {  # title: {metric: label}
    "Entropy before the updates, nats": {"entropy/mean": "all tokens"},
    "Training accuracy and reward": {"accuracy/mean": "accuracy", "reward/mean": "reward"},
    "Tokens outside the clip, share": {"clip/low": "low side (A < 0)", "clip/high": "high side (A > 0)"},
    "Share of tokens by class": {f"tokens/{k}": v for k, v in ledger.CLASSES.items()},
    "Share of the gradient by class": {f"grad/share_{k}": v for k, v in ledger.CLASSES.items()},
    "First-order entropy change by class": {f"dentropy/predicted_{k}": v for k, v in ledger.CLASSES.items()},
    "Gradient norm": {"grad/norm": "before clipping"},
    "KL(old ‖ new) at the update": {"kl/old_k1": "k1", "kl/old_k3": "k3"},
    "Response length, tokens": {"length/mean": "mean"},
}
STYLE = """body{font:14px/1.5 system-ui,sans-serif;max-width:1060px;margin:2em auto;padding:0 1em;color:#222}
h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em}table{border-collapse:collapse;font-size:13px}
td,th{padding:.25em .7em;text-align:right;border-bottom:1px solid #ddd}td:first-child,th:first-child{text-align:left}
pre{background:#f6f6f6;padding:1em;overflow:auto;font-size:12px}img{max-width:100%}.facts{color:#555}
pre{white-space:pre-wrap;overflow-wrap:anywhere}.prompt{background:#fff;border-left:3px solid #bbb}
summary{cursor:pointer;margin:.6em 0}"""


def write(folder: Path) -> Path:
    """Write <folder>/report.html; its path. Raises Missing when the folder holds no run."""
    with load.undamaged(folder):
        config, meta = load.config(folder), load.meta(folder)
        if not config or not meta:
            raise load.Missing(f"{folder} holds no run (config.yaml and meta.json), and no pack has it")
        metrics = load.run(folder)
        if metrics.empty:
            raise load.Missing(f"{folder}: no step is recorded yet")
        page = _page(folder, config, meta, metrics)
    path = folder / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)  # a run in a pack may have no folder
    unfinished = folder / ".report.html.unfinished"
    unfinished.unlink(missing_ok=True)  # a link would be followed
    unfinished.write_text(page, encoding="utf-8")
    os.replace(unfinished, path)
    return path


def _page(folder: Path, config: str, meta: dict, metrics: pd.DataFrame) -> str:
    session = meta["sessions"][-1]
    facts = (
        f"{meta['status']}, {int(metrics['step'].max())} steps, {metrics['time/step'].sum():.0f} s;"
        f" {session['machine']}; commit"
        f" {session['commit'][:10]}{' with uncommitted changes' if session['diff'] else ''}; {session['start']}"
    )
    body = [
        (
            f"<h1>{html.escape(str(folder))}</h1><p"
            f" class=facts>{html.escape(facts)}</p><pre>{html.escape(session['command'])}</pre>"
        ),
        f"<h2>Training</h2><img alt='metrics over steps' src='{_curves(metrics)}'>",
        f"<h2>Benchmarks</h2>{_benchmarks(folder)}",
        f"<h2>What the model wrote</h2>{_seen(folder)}",
        f"<h2>What moved the entropy</h2>{_ledger(folder, metrics)}",
        f"<h2>Configuration</h2><pre>{html.escape(config)}</pre>",
    ]
    return (
        "<!doctype html><html lang=en><meta"
        f" charset=utf-8><title>{html.escape(folder.name)}</title><style>{STYLE}</style>{''.join(body)}"
    )


def _curves(metrics: pd.DataFrame) -> str:
    figure, axes = plt.subplots(3, 3, figsize=(11, 8), constrained_layout=True, sharex=True)
    for axis, (title, lines) in zip(axes.flat, PANELS.items()):
        for n, (key, label) in enumerate(lines.items()):
            if key in metrics:
                dashes = ["-", (0, (5, 2)), (0, (1, 1)), (0, (3, 1, 1, 1))][n]
                axis.plot(metrics["step"], metrics[key], label=label, linestyle=dashes, linewidth=1.1)
        axis.set_title(title, fontsize=9)
        if len(lines) > 1:
            axis.legend(fontsize=7)
    for axis in axes[-1]:
        axis.set_xlabel("step")
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=style.plt.rcParams["figure.dpi"])
    plt.close(figure)
    return "data:image/png;base64," + base64.b64encode(image.getvalue()).decode()


def _benchmarks(folder: Path) -> str:
    rows = load.tests(folder)
    if rows.empty:
        return "<p>No evaluation is recorded.</p>"
    rows["avg@k"] = [sum(c) / (len(c) * k) for c, k in zip(rows["correct"], rows["k"])]
    table = rows.pivot_table(index="benchmark", columns="step", values="avg@k", sort=False)
    table.loc["mean"] = table.mean()
    return (
        table.to_html(float_format="{:.3f}".format, border=0)
        + f"<p class=facts>avg@{load.samples(rows)} after so many steps</p>"
    )


def _seen(folder: Path) -> str:
    """The kept prompts with their completions, the last evaluation open, earlier ones folded. Every
    text is the model's or a data set's: escaped, never markup."""
    rows = load.seen(folder)
    if rows.empty:
        return "<p>No completions are kept of this run.</p>"
    made: list[str] = []
    for step in sorted(set(rows["step"]), reverse=True):
        parts = []
        for row in rows[rows["step"] == step].to_dict("records"):
            head = f"{row['id']}, answer {row['answer']}"
            parts.append(
                f"<p class=facts>{html.escape(head)}</p><pre class=prompt>{html.escape(str(row['prompt']))}</pre>"
            )
            for text, verdict, tokens in zip(row["completions"], row["verdicts"], row["tokens"]):
                mark = "✓" if verdict == "correct" else "✗"
                said = f"{mark} {verdict.replace('_', ' ')}, {tokens} tokens"
                parts.append(f"<pre><span class=facts>{html.escape(said)}</span>\n{html.escape(str(text))}</pre>")
        opened = " open" if not made else ""
        made.append(f"<details{opened}><summary>after step {step}</summary>{''.join(parts)}</details>")
    return "".join(made)


def _ledger(folder: Path, metrics: pd.DataFrame) -> str:
    if ledger.is_old(metrics):
        return f"<p>{ledger.OLD}.</p>"
    if ledger.entries(metrics).empty:
        return "<p>No ledger is recorded (diagnostics.every=0, or the run is shorter).</p>"
    beta1 = ledger.momentum(folder)
    note = "10⁻³ nats a step, over the run in nats; below: first order against measured, logit space against parameters"
    shown = [ledger.cells(ledger.table(metrics, beta1)), ledger.agreement_cells(ledger.agreements(metrics))]
    tables = f"<p class=facts>{note}</p>".join(frame.to_html(index=False, border=0) for frame in shown)
    return f"{tables}<p class=facts>{ledger.check_text(metrics, beta1)}<br>{ledger.facts(metrics)}</p>"
