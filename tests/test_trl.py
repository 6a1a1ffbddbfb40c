"""cegppo/plugins/trl.py inside the installed TRL; skipped where there is none (`make test-trl`)."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

pytest.importorskip("trl", reason="needs the extra `trl`: make test-trl")

from trl import GRPOConfig, GRPOTrainer

from analysis import load, report
from cegppo import losses
from cegppo.model.head import Scaling
from cegppo.plugins import trl as plugin
from cegppo.plugins import trl_record
from cegppo.plugins.trl import AGGREGATES, CEGPPOConfig, CEGPPOTrainer
from cegppo.plugins.trl_record import RunFolder
from cegppo.types import BadInput

from .trl_batch import ROWS, Seen, inputs, loss_and_gradient, our_updates, ours, rows, trainer
from .trl_processes import measured

ROOT = Path(__file__).resolve().parent.parent
WHOLE = {"loss_type": "bnpo"}  # a mean over the update's own tokens, as ours
PLAIN = dict(output_dir="x", use_cpu=True, bf16=False)


@pytest.fixture(scope="module")
def batch(tiny_model, tmp_path_factory):
    return inputs(trainer(tiny_model, tmp_path_factory.mktemp("trl")).model)


def close(a, b, tolerance):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


NOT_HERE = ("DRAWS", "PROXY")  # what a loss asks of the loop that TRL has not
USABLE = [name for name in losses.names() if not any(getattr(losses.load(name), asked, False) for asked in NOT_HERE)]


@pytest.mark.parametrize("name", USABLE)
def test_loss_gradient_and_metrics_are_ours(tiny_model, tmp_path, batch, name):
    """On one batch, to 1e-5, for every loss that TRL has the fields for; every token metric too."""
    t = trainer(tiny_model, tmp_path, loss=name, **WHOLE)
    loss, gradient = loss_and_gradient(t, [batch])
    expected, expected_gradient, expected_metrics = ours(tiny_model, batch, t.objective)
    close(loss, expected, 1e-5)
    close(gradient, expected_gradient, 1e-5)
    assert max(float(g.abs().max()) for g in gradient) > 1e-3
    metrics = t._token_metrics()
    mean = lambda value_BT: float((value_BT * batch["completion_mask"]).sum() / batch["completion_mask"].sum())
    assert metrics.pop("entropy/mean") == pytest.approx(mean(batch["old_entropies"]))
    assert metrics.pop("loss/policy") == pytest.approx(loss)
    lever = {f"lever/{side}": 4 * expected_metrics[f"lever/{side}"] for side in ("low", "high")}  # updates a rollout
    assert {k: v for k, v in metrics.items() if not k.startswith("fact/")} == pytest.approx(
        expected_metrics | lever, rel=1e-4, abs=1e-6
    )
    assert name != "cegppo" or metrics["clip/low"] > 0 < metrics["clip/high"]


OPTIONS = [
    {},
    {"delta": 1.5},
    {"beta": 0.1},
    {"beta": 0.1, "use_bias_correction_kl": False},
    {"entropy_coef": 0.05},
    {"use_adaptive_entropy": True, "entropy_coef": 0.02, "entropy_target": 9.0},
    {"top_entropy_quantile": 0.4},
    {"off_policy_mask_threshold": 0.01},
    {"epsilon": 0.1},
    {"epsilon_high": 0.28},
    {"importance_sampling_level": "sequence", "epsilon": 0.05},
    {"importance_sampling_level": "sequence", "beta": 0.1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("loss_type", AGGREGATES)
def test_ppo_clip_is_trls_own_loss(tiny_model, tmp_path, batch, loss_type, options):
    """Value and gradient to 1e-6, in two micro-batches, with every option that is served; TRL's own
    metrics have TRL's values."""
    parts = [rows(batch, 0, 3), rows(batch, 3, ROWS)]
    theirs = trainer(tiny_model, tmp_path, GRPOTrainer, loss_type=loss_type, **options)
    mine = trainer(tiny_model, tmp_path, loss="ppo_clip", loss_type=loss_type, **options)
    expected, expected_gradient = loss_and_gradient(theirs, parts)
    loss, gradient = loss_and_gradient(mine, parts)
    close(loss, expected, 1e-6)
    close(gradient, expected_gradient, 1e-6)
    assert mine._metrics["train"].keys() == theirs._metrics["train"].keys()
    for key, values in theirs._metrics["train"].items():
        # TRL takes a ratio above delta for delta before it looks where the ratio is.
        assert mine._metrics["train"][key] == pytest.approx(values, abs=1e-6), key


@pytest.mark.parametrize("target", [0.1, 9.0])
def test_an_adaptive_entropy_bonus_is_trls(tiny_model, tmp_path, batch, target):
    """Its coefficient moves after an update, and acts from the next one on."""
    parts = [rows(batch, 0, 3), rows(batch, 3, ROWS)]
    adaptive = dict(use_adaptive_entropy=True, entropy_coef=0.05, entropy_coef_delta=0.03, entropy_target=target)
    pair = [(GRPOTrainer, {}), (CEGPPOTrainer, {"loss": "ppo_clip"})]
    theirs, mine = (trainer(tiny_model, tmp_path, kind, **adaptive, **more) for kind, more in pair)
    for _ in range(3):
        (expected, expected_gradient), (loss, gradient) = (loss_and_gradient(t, parts) for t in (theirs, mine))
        close(loss, expected, 1e-6)
        close(gradient, expected_gradient, 1e-6)
    coefficients = mine._metrics["train"]["entropy_coef"]
    assert coefficients == theirs._metrics["train"]["entropy_coef"]
    assert coefficients == pytest.approx([0.08, 0.11, 0.14] if target == 9.0 else [0.02, 0.0, 0.0])


def test_without_beta_the_gradient_is_trls(tiny_model, tmp_path, batch):
    _, expected = loss_and_gradient(trainer(tiny_model, tmp_path, GRPOTrainer), [batch])
    _, gradient = loss_and_gradient(trainer(tiny_model, tmp_path, beta1=0.0, beta2=0.0), [batch])
    close(gradient, expected, 1e-6)
    _, other = loss_and_gradient(trainer(tiny_model, tmp_path, beta1=0.5, beta2=1.0), [batch])
    assert max(float((a - b).abs().max()) for a, b in zip(other, expected)) > 1e-3


@pytest.mark.parametrize("loss_type", ["bnpo", "dapo"])
def test_metrics_do_not_depend_on_micro_batches(tiny_model, tmp_path, batch, loss_type):
    """bnpo itself does, in TRL as well: there the counts alone are the same."""
    found = []
    for cuts in ([0, 8], [0, 3, 8]):
        parts = len(cuts) - 1
        t = trainer(
            tiny_model, tmp_path, loss_type=loss_type, steps_per_generation=4 * parts, gradient_accumulation_steps=parts
        )
        loss_and_gradient(t, [rows(batch, *edges) for edges in zip(cuts, cuts[1:])])
        found.append(t._token_metrics())
    counts = [k for k in found[0] if k.split("/")[0] in ("clip", "tokens", "entropy", "kl", "ratio")]
    same = list(found[0]) if loss_type == "dapo" else counts
    assert len(counts) > 20 and found[0].keys() == found[1].keys()
    assert {k: found[1][k] for k in same} == pytest.approx({k: found[0][k] for k in same}, rel=1e-4, abs=1e-6)


def test_a_training_with_ppo_clip_is_trls_training(tiny_model, tmp_path):
    """Same rewards, same weights: nothing but the loss is another."""
    runs = []
    for kind, more in ((GRPOTrainer, {}), (CEGPPOTrainer, {"loss": "ppo_clip"})):
        t = trainer(tiny_model, tmp_path, kind, **more)
        t.train()
        runs.append((t, [row["reward"] for row in t.state.log_history if "reward" in row]))
    (theirs, expected), (mine, rewards) = runs
    assert rewards == expected and len(rewards) == 2
    close(list(mine.model.parameters()), list(theirs.model.parameters()), 1e-6)
    line = mine.state.log_history[-2]
    assert line["loss/policy"] == pytest.approx(line["loss"], abs=1e-6)
    assert theirs.state.log_history[-2].keys() <= line.keys() and line["clip/low"] + line["clip/high"] > 0


def test_the_updates_of_a_rollout_end_where_ours_do(tiny_model, tmp_path):
    """Old log-probabilities, loss, gradient clipping, AdamW and metrics of a whole rollout, from
    the same responses dealt to the updates in the same order: what is left to differ is what is
    sampled and how it is dealt."""
    seen = Seen()
    t = trainer(tiny_model, tmp_path, callbacks=[seen], max_steps=4, learning_rate=3e-3, **WHOLE)
    start = [p.detach().clone() for p in t.model.parameters()]
    t.train()
    assert len(seen.dealt) == 4 and sorted(torch.cat(seen.dealt).tolist()) == list(range(16))
    weights, metrics = our_updates(tiny_model, seen, t.objective, 3e-3)
    flat = lambda tensors: torch.cat([v.detach().flatten() for v in tensors])
    moved = (flat(weights) - flat(start)).norm()
    assert (flat(weights) - flat(t.model.parameters())).norm() < 1e-3 * moved and moved > 0.1
    line = next(row for row in t.state.log_history if "clip/low" in row)
    assert {k: line[k] for k in metrics} == pytest.approx(metrics, rel=1e-3, abs=1e-5)
    assert metrics["clip/low"] > 0 < metrics["clip/high"]


@pytest.mark.parametrize("loss_type", AGGREGATES)
def test_masked_completions_leave_what_trl_logs(tiny_model, tmp_path, loss_type):
    """Every completion is cut at two tokens and masked: no token trains, and no line fails."""
    masked = dict(mask_truncated_completions=True, max_completion_length=2, loss_type=loss_type, logging_steps=1)
    masked |= dict(generation_kwargs={"min_new_tokens": 2})
    logs = {}
    for kind, more in ((GRPOTrainer, {}), (CEGPPOTrainer, {"loss": "ppo_clip"}), (CEGPPOTrainer, {"loss": "gspo"})):
        t = trainer(tiny_model, tmp_path, kind, max_steps=2, **masked, **more)
        before = [p.detach().clone() for p in t.model.parameters()]
        t.train()
        close(list(t.model.parameters()), before, 0)
        logs[more.get("loss")] = t.state.log_history[:-1]
    timed = ("step_time",)
    plain = [[{k: v for k, v in row.items() if k not in timed} for row in rows] for rows in logs.values()]
    assert len(plain[0]) == 2 and plain[0] == plain[1] == plain[2]
    assert plain[0][0]["completions/clipped_ratio"] == 1 and plain[0][0]["loss"] == 0


@pytest.mark.parametrize("loss_type", AGGREGATES)
def test_tokens_of_tools_count_for_nothing(tiny_model, tmp_path, batch, loss_type):
    """TRL's `tool_mask` is 0 where a tool answered: the loss and its gradient are TRL's own, and no
    metric counts those tokens, whatever stands there."""
    tool_mask = torch.ones_like(batch["completion_mask"])
    tool_mask[:, 2:4] = 0
    called = batch | {"tool_mask": tool_mask, "num_items_in_batch": (batch["completion_mask"] * tool_mask).sum()}
    expected = loss_and_gradient(trainer(tiny_model, tmp_path, GRPOTrainer, loss_type=loss_type), [called])
    t = trainer(tiny_model, tmp_path, loss="ppo_clip", loss_type=loss_type)
    found = loss_and_gradient(t, [called])
    close(found[0], expected[0], 1e-6)
    close(found[1], expected[1], 1e-6)
    metrics, other = t._token_metrics(), called["old_per_token_logps"].clone()
    other[:, 2:4] = -50.0
    loss_and_gradient(t, [called | {"old_per_token_logps": other}])
    assert t._token_metrics() == pytest.approx(metrics) and metrics["clip/low"] > 0


def test_evaluation_and_one_update_a_rollout(tiny_model, tmp_path):
    with pytest.warns(UserWarning, match="one update a rollout: the ratio is 1"):
        t = trainer(tiny_model, tmp_path, steps_per_generation=1, max_steps=2, logging_steps=1)
    t.train()
    lines = [row for row in t.state.log_history if "clip/low" in row]
    assert [row["clip/low"] for row in lines] == [0, 0] and lines[0]["ratio/max"] == 1
    assert lines[0]["entropy/mean"] == pytest.approx(lines[0]["entropy"])
    t.train_dataset, t.eval_dataset = None, t.train_dataset.select(range(4))
    found = t.evaluate()
    assert "eval_clip_ratio/low_mean" in found and "eval_clip/low" not in found


def test_a_line_whose_completions_are_all_cut_and_masked(tiny_model, tmp_path):
    """There is no token to measure, and the training goes on as TRL's own does."""
    t = trainer(
        tiny_model, tmp_path, max_completion_length=1, mask_truncated_completions=True, max_steps=4, logging_steps=1
    )
    t.train()
    lines = [row for row in t.state.log_history if "loss" in row]
    assert len(lines) == 4 and any("clip/low" not in row for row in lines)


@pytest.mark.parametrize("known", [True, False])
def test_a_head_that_does_more_than_a_product_is_measured_where_it_is_known(
    tiny_model, tmp_path, batch, monkeypatch, known
):
    """Granite's division of the logits, which TRL's head knows of and we find by trying; and as if
    we did not know of it."""
    if not known:
        monkeypatch.setattr(plugin, "candidates", lambda config: iter([Scaling()]))
    scaled = tmp_path / "scaled"
    shutil.copytree(tiny_model, scaled)
    config = json.loads((scaled / "config.json").read_text())
    (scaled / "config.json").write_text(json.dumps(config | {"logits_scaling": 2.0}))
    t = trainer(scaled, tmp_path)
    with nullcontext() if known else pytest.warns(UserWarning, match="lever/.*left out"):
        loss_and_gradient(t, [batch])
    metrics = t._token_metrics()
    assert {"clip/low", "tokens/pa_lp", "entropy/mean"} <= metrics.keys()
    # Of a class without tokens it is known: nothing.
    more = [k for k, v in metrics.items() if k.startswith(("lever/", "dentropy/predicted", "grad/share")) and v]
    assert bool(more) == known


@pytest.mark.parametrize(
    "given, says",
    [
        ({"beta3": 1.0}, "CEGPPOConfig has no 'beta3'; did you mean 'beta"),
        ({"learning_rat": 1.0}, "CEGPPOConfig has no 'learning_rat'; did you mean 'learning_rate'?"),
        ({"loss": "cegpo"}, "CEGPPOConfig: unknown loss 'cegpo'; did you mean 'cegppo'?"),
        ({"loss": "sapo", "beta1": 0.5}, "CEGPPOConfig: loss 'sapo' has no knob 'beta1'"),
        ({"beta1": -1.0}, "CEGPPOConfig: beta1 must be at least 0, not -1.0"),
        ({"loss": "sapo", "epsilon": 0.1}, "CEGPPOConfig: loss 'sapo' has no knob 'eps_low'"),
        ({"epsilon": 0.1, "eps_low": 0.3}, "CEGPPOConfig: epsilon=0.1 and eps_low=0.3 are the same knob"),
        ({"loss": "bapo", "gradient_accumulation_steps": 2}, "TRL: loss 'bapo' is a rule over the whole mini-batch"),
        ({"loss": "boundary_rescue"}, "TRL: loss 'boundary_rescue' needs uniform, which TRL does not give it"),
        ({"loss_type": "sapo"}, "CEGPPOConfig: loss_type says here how token losses are aggregated"),
        ({"importance_sampling_level": "sequence"}, "CEGPPOConfig: importance_sampling_level is 'token' here"),
        (
            {"importance_sampling_level": "sequence", "loss": "ppo_clip", "delta": 2.0},
            "CEGPPOConfig: delta is not here with importance_sampling_level='sequence'",
        ),
        ({"delta": 1.1}, "CEGPPOConfig: delta must be above the clip's upper bound, 1.2, not 1.1"),
    ],
)
def test_what_cannot_be_is_one_clear_line(given, says):
    with pytest.raises(BadInput, match=re.escape(says)) as error:
        CEGPPOConfig(**PLAIN | given)
    assert "\n" not in str(error.value)


def test_trls_configuration_is_refused(tiny_model):
    with pytest.raises(BadInput, match="args must be a CEGPPOConfig, not a GRPOConfig"):
        CEGPPOTrainer(str(tiny_model), None, GRPOConfig(**PLAIN))


def test_knobs_reach_the_loss():
    config = CEGPPOConfig(**PLAIN, beta1=0.25, epsilon=0.1, eps_high=0.3, delta=4.0)
    objective = config.objective()
    assert vars(objective.params) == {"beta1": 0.25, "beta2": 1.0, "eps_low": 0.1, "eps_high": 0.3}
    assert objective.terms.dual_clip == 4.0
    assert CEGPPOConfig(**PLAIN, loss="gspo").objective().params.eps_low == 3e-4


# ------------------------------------------------------------------------------- a run's folder


def test_a_training_is_a_run_that_reports_and_figures_read(tiny_model, tmp_path):
    folder = tmp_path / "mine" / "cegppo" / "seed0"
    t = trainer(tiny_model, tmp_path / "out", callbacks=[RunFolder(folder, every=2)])
    t.train()
    metrics, record = load.run(folder), load.tokens(folder)
    assert list(metrics["step"]) == [1, 2] and load.meta(folder)["status"] == "finished"
    logged = [row for row in t.state.log_history if "reward" in row]
    assert list(metrics["reward/mean"]) == [row["reward"] for row in logged]
    assert list(metrics["clip/low"]) == [row["clip/low"] for row in logged]
    columns = {
        "step", "update", "prompt_id", "rollout", "position", "token_id", "token", "text", "prob", "old_prob",
        "entropy", "advantage", "ratio", "weight", "scale", "gradient", "dentropy", "class", "side", "reward", "origin",
        "prompt", "answer",
    }  # fmt: skip
    assert set(record) == columns and set(record["step"]) == {2} and set(record["update"]) == {0, 1, 2, 3}
    last = metrics.iloc[-1]
    assert (record["side"] == "low").mean() == pytest.approx(last["clip/low"])
    assert (record["class"] == "na_lp").mean() == pytest.approx(last["tokens/na_lp"])
    assert record["dentropy"].mul(record["scale"]).sum() / 4 == pytest.approx(last["dentropy/predicted"], abs=1e-6)
    groups = record.drop_duplicates(["prompt_id", "rollout"]).groupby("prompt_id")
    assert len(groups) == 4 and (groups["rollout"].nunique() == 4).all()
    assert (groups["prompt"].nunique() == 1).all() and (groups["answer"].nunique() == 1).all()
    assert record["reward"].isin([0, 1]).all()
    assert "cegppo" in report.write(folder).read_text()
    with pytest.raises(BadInput, match="holds another run; choose another folder"):
        trainer(tiny_model, tmp_path / "out", callbacks=[RunFolder(folder)]).train()


def test_a_training_that_goes_on_goes_on_in_its_folder(tiny_model, tmp_path):
    folder, saves = tmp_path / "run", dict(save_strategy="steps", save_steps=4)
    trainer(tiny_model, tmp_path / "out", callbacks=[RunFolder(folder, every=0)], max_steps=4, **saves).train()
    first = load.run(folder)
    t = trainer(tiny_model, tmp_path / "out", callbacks=[RunFolder(folder, every=0)], **saves)
    t.train(resume_from_checkpoint=True)
    assert list(load.run(folder)["step"]) == [1, 2] and load.run(folder).iloc[0]["clip/low"] == first["clip/low"][0]
    assert not (folder / "tokens").exists()


def test_a_line_of_the_log_is_whole_rollouts(tiny_model, tmp_path):
    t = trainer(tiny_model, tmp_path, callbacks=[RunFolder(tmp_path / "run")], logging_steps=3)
    with pytest.raises(BadInput, match="logging_steps must be a multiple of 4, the updates of a rollout, not 3"):
        t.train()
    assert not (tmp_path / "run").exists()


def test_names_of_trl_are_names_of_the_glossary():
    glossary = (ROOT / "docs" / "metrics.md").read_text()
    assert all(f"`{name}`" in glossary for name in trl_record.NAMES)


# -------------------------------------------------------------------------------- several processes


@pytest.mark.slow
def test_two_processes_are_one(tiny_model, tmp_path):
    """Gradient and metrics of two processes with half of the rows each, in micro-batches of unlike
    sizes, are those of one."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        place = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    command = [sys.executable, "-m", "tests.trl_processes", str(tiny_model)]
    started = [
        subprocess.Popen(
            command, cwd=ROOT, text=True, stdout=subprocess.PIPE,
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in (0, 1)
    ]  # fmt: skip
    first, _ = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    with pytest.warns(UserWarning, match="one update a rollout"):
        one = measured(tiny_model, tmp_path, 1)
    two = json.loads(first.splitlines()[-1])
    assert two.keys() == one.keys() and len(one) > 80
    assert two == pytest.approx(one, rel=1e-4, abs=1e-6)


def test_the_example_of_the_text_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "trl.md").read_text(), re.DOTALL)
    assert code.count("\n") < 20
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        exec(compile(code, "docs/trl.md", "exec"), {"__name__": "__main__"})
    (folder,) = (path.parent for path in tmp_path.rglob("metrics.jsonl"))
    assert len(load.run(folder)) and load.run(folder)["clip/low"].notna().all() and not load.tokens(folder).empty
