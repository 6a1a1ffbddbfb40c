"""`run.py fork`: a run from a checkpoint of another with other settings; what it has of its
parent, what it refuses, and how forks are compared."""

import json
import shutil

import pandas as pd
import pytest

import run as front_door
from analysis import compare, evolution, load
from cegppo import config, measure
from cegppo.record import fork
from cegppo.record.files import read_lines
from cegppo.record.keep import keep
from cegppo.record.read import read_config, read_meta, read_metrics
from cegppo.train import run_training
from cegppo.types import BadInput

from .test_parallel import ROOT, assert_same_run, torchrun
from .test_train import Silent, without_times
from .test_train import load as loaded

LR = "update.lr=5e-3"


@pytest.fixture(scope="module")
def parent(tiny_text, tmp_path_factory):
    """A run of 4 steps that kept every checkpoint."""
    root = tmp_path_factory.mktemp("forks")
    (root / "tiny.yaml").write_text(tiny_text)
    keys = [f"results={root / 'results'}", "steps=4", "checkpoint_keep=0", "eval_every=0", LR]
    made = config.load(root / "tiny.yaml", [*keys, "diagnostics.every=0"])[0]
    run_training(made, Silent())
    return made.folder


@pytest.fixture
def own(parent, tmp_path):
    """The parent in a place of its own."""
    there = tmp_path / "results" / parent.parent.parent.name / parent.parent.name / parent.name
    shutil.copytree(parent, there, symlinks=True)
    return there


def forked(folder, *words):
    assert front_door.main(["fork", str(folder), *words]) == 0
    return fork.config_of(folder, words)[0].folder


def test_a_fork_that_changes_nothing_is_its_parent(own, capsys):
    """Bit for bit, from a checkpoint in the middle and from the start."""
    for step in (2, 0):
        there = forked(own, f"step={step}")
        assert without_times(there / "metrics.jsonl") == without_times(own / "metrics.jsonl")
        assert there == own.parent.parent / f"{own.parent.name}@{step}" / "seed0"
        assert read_lines(there / "eval.jsonl") == read_lines(own / "eval.jsonl")
    said = capsys.readouterr()
    assert f"fork of {own} after step 2; nothing else changed" in said.err and f"finished: {there}" in said.out


def test_a_fork_goes_its_own_way_from_the_checkpoint(own):
    """The same prompts; the parent's lines, checkpoint and moments up to there; and its origin."""
    before = {path: path.read_bytes() for path in own.rglob("*") if path.is_file()}
    there = forked(own, "step=2", "update.lr=0.02", "steps=5")
    ours, theirs = without_times(there / "metrics.jsonl"), without_times(own / "metrics.jsonl")
    assert ours[:2] == theirs[:2] and len(ours) == 5
    same = ("entropy/mean", "reward/mean", "length/mean", "kl/old_k3")
    assert [ours[2][key] for key in same[:3]] == [theirs[2][key] for key in same[:3]]  # sampled before it parts
    assert ours[2]["kl/old_k3"] != theirs[2]["kl/old_k3"] and ours[3]["entropy/mean"] != theirs[3]["entropy/mean"]
    origin = read_meta(there)["forked_from"]
    assert origin["run"] == str(own) and (origin["step"], origin["seed"]) == (2, 0)
    assert origin["changed"] == {"update.lr": 0.02} and origin["start"] == read_meta(own)["start"]
    assert read_meta(there)["status"] == "finished" and len(read_meta(there)["sessions"]) == 1
    assert {path: path.read_bytes() for path in own.rglob("*") if path.is_file()} == before
    states = [json.loads((root / "checkpoints/step000004/state.json").read_text()) for root in (there, own)]
    assert states[0]["stream"] == states[1]["stream"]


def test_a_fork_that_was_stopped_goes_on(own):
    """The same command continues it, whatever becomes of the parent's checkpoint meanwhile."""
    words = ["step=2", "update.lr=0.02"]
    whole = forked(own, *words)
    made, step = fork.config_of(own, [*words, f"run_dir={own.parent.parent / 'stopped' / 'seed0'}"])
    assert fork.prepare(own, made, step) and not fork.prepare(own, made, step)
    made.steps = 3
    assert run_training(made, Silent()) == "finished"
    made.steps = 4
    assert run_training(made, Silent()) == "finished"
    assert without_times(made.folder / "metrics.jsonl") == without_times(whole / "metrics.jsonl")


def test_the_parts_that_a_parent_did_not_have_start_afresh(own):
    """Older weights to sample from, a controller's memory; a changed age keeps what there is."""
    there = forked(own, "step=2", "rollout.staleness=2")
    assert [row.get("rollout/age") for row in read_lines(there / "metrics.jsonl")] == [None, None, 0, 1]
    again = forked(there, "step=4", "rollout.staleness=1", "steps=5")
    assert read_lines(again / "metrics.jsonl")[-1]["rollout/age"] == 1
    more = forked(there, "step=4", "rollout.staleness=4", "steps=7")
    assert [row["rollout/age"] for row in read_lines(more / "metrics.jsonl")[4:]] == [2, 3, 4]
    path = own / "checkpoints" / "step000002" / "state.json"
    state = json.loads(path.read_text())
    assert state.pop("parts") == ["optimizer"]  # as checkpoints were written before they said their parts
    path.write_text(json.dumps(state))
    old = forked(own, "step=2", "rollout.staleness=1")
    assert [row.get("rollout/age") for row in read_lines(old / "metrics.jsonl")] == [None, None, 0, 1]
    controlled = forked(own, "step=2", "controller.name=adaptive_bonus", "controller.target=0.5")
    assert "controller/target" in read_lines(controlled / "metrics.jsonl")[2]


def test_another_method_is_what_its_preset_says_differently(own):
    """And nothing that the experiment said itself."""
    made, _ = fork.config_of(own, ["step=2", "method=dapo", "loss.eps_low=0.1"])
    parent = read_config(own)
    assert (made.loss["eps_low"], made.loss["eps_high"]) == (0.1, 0.28)
    assert made.rollout.drop_constant_groups == "refill" and made.reward_values == [-1.0, 1.0]
    assert made.reward == parent.reward == "random" and made.update.lr == parent.update.lr
    assert made.method == "dapo"
    made, _ = fork.config_of(own, ["step=2", "method=cegppo", "loss.beta1=0.2"])
    assert made.loss == {"name": "cegppo", "beta1": 0.2, "beta2": 1.0, "eps_low": 0.2, "eps_high": 0.2}
    assert made.arm == f"{parent.arm}@2,loss.beta1=0.2,loss.beta2=1.0,loss.name=cegppo"


@pytest.mark.parametrize(
    "words, message",
    [
        (["step=3", "steps=9"], None),
        (["step=7"], r"no checkpoint at step=7; there are: 0 \(its start\), 1, 2, 3, 4"),
        (["step=two"], "no checkpoint at step=two"),
        ([], "would end at steps=4; say a larger steps=…"),
        (["step=2", "seed=1"], "prompts, random streams and model of its parent; seed stays"),
        (["step=2", "data.max_prompt_tokens=9"], "data.max_prompt_tokens stays"),
        (["step=2", "model.lora.rank=2"], "model.lora.rank stays"),
        (["step=2", "advantage.kind=gae"], "needs a critic"),
        (["step=2", "loss.beta=1"], "loss 'ppo_clip' has no knob 'loss.beta'"),
        (["step=2", "method=grp"], "unknown method 'grp'"),
        (["step=2", "lr"], "'lr' is not key=value"),
    ],
)
def test_bad_input(parent, words, message):
    if message is None:
        assert fork.config_of(parent, words)[1] == 3
        return
    with pytest.raises(BadInput, match=message):
        fork.config_of(parent, words)


def test_folders_that_cannot_be_forked(own, tmp_path, capsys):
    assert front_door.main(["fork", str(own.parent / "seed7")]) == 2
    assert "no such folder; did you mean 'seed0'?" in capsys.readouterr().err
    assert front_door.main(["fork", str(own.parent)]) == 2 and "no run there" in capsys.readouterr().err
    assert front_door.main(["fork", str(own), "step=2", f"run_dir={own}"]) == 2
    assert "is the run itself" in capsys.readouterr().err
    there = forked(own, "step=2", "update.lr=0.02")
    assert front_door.main(["fork", str(own), "step=1", f"run_dir={there}"]) == 2
    assert "holds another run; choose another run_dir" in capsys.readouterr().err
    shutil.rmtree(own / "checkpoints")
    assert front_door.main(["fork", str(own), "step=2"]) == 2
    assert "there are: 0 (its start)" in capsys.readouterr().err


def test_a_run_in_a_pack_forks_from_its_start_and_what_is_left(own):
    sweep = own.parent.parent
    list(keep(sweep))
    assert not (own / "meta.json").exists()
    there = forked(own, "step=2")
    assert [{k: v for k, v in r.items() if "time/" not in k} for r in read_metrics(own)] == without_times(
        there / "metrics.jsonl"
    )
    list(keep(sweep))
    assert read_meta(there)["forked_from"]["step"] == 2


def test_checkpoint_keep(tiny, tmp_path):
    def kept(n):
        folder = tmp_path / str(n)
        run_training(loaded(tiny, "steps=4", "eval_every=0", f"checkpoint_keep={n}", f"run_dir={folder}"), Silent())
        return list(fork.checkpoints(folder))

    assert kept(1) == [0, 4] and kept(2) == [0, 3, 4] and kept(0) == [0, 1, 2, 3, 4]
    assert loaded(tiny, "checkpoint_keep=0").identity() == loaded(tiny).identity()


@pytest.mark.slow
def test_two_ranks_fork_as_one_does(own):
    one = forked(own, "step=2", "update.lr=2e-3")
    process = torchrun(ROOT / "run.py", "fork", own, "step=2", "update.lr=2e-3", f"run_dir={own.parent / 'two'}")
    said, _ = process.communicate(timeout=180)
    assert process.returncode == 0, said
    assert said.count("finished: ") == 1
    assert_same_run(own.parent / "two", one)


def test_forks_of_one_parent_pair(own, capsys):
    """By seed where they leave it at one step; by seed and checkpoint where at several."""
    for step in (1, 2):
        for words in ([], ["update.lr=0.02"]):
            forked(own, f"step={step}", *words)
    arm, sweep = own.parent.name, own.parent.parent
    c = compare.chosen([str(own), str(sweep / f"{arm}@2,update.lr=0.02")], sweep.parent)
    assert c.arms == [arm, f"{arm}@2,update.lr=0.02"] and set(c.runs["seed"]) == {0}
    assert c.notes == ["forks: up to step 2 the lines are their parents'"]
    rows = evolution.contrasts(c.runs, c.tests, c.arms)
    assert all(len(values) == 1 for values in rows["values"])
    names = [str(sweep / f"{arm}@{step}{more}") for more in ("", ",update.lr=0.02") for step in (1, 2)]
    c = compare.chosen(names, sweep.parent)
    assert c.arms == [f"{arm}@*", f"{arm}@*,update.lr=0.02"] and set(c.runs["seed"]) == {"0@1", "0@2"}
    values = evolution.contrasts(c.runs, c.tests, c.arms).set_index("quantity")["values"]["entropy, last steps"]
    mean = lambda folder: sum(row["entropy/mean"] for row in read_metrics(folder)[-2:]) / 2  # half of four steps
    wanted = mean(sweep / f"{arm}@1,update.lr=0.02" / "seed0") - mean(sweep / f"{arm}@1" / "seed0")
    assert values["0@1"] == pytest.approx(wanted) and wanted != 0
    assert front_door.main(["compare", *names, "--results", str(sweep.parent)]) == 0
    with pytest.raises(load.Missing, match="pair with each other, and .* is no fork"):
        compare.chosen([*names, str(own)], sweep.parent)


# ------------------------------------------------------------------------- advise --measure


@pytest.fixture(scope="module")
def preserving(tiny_text, tmp_path_factory):
    """A CE-GPPO run with three checkpoints, and steps large enough to clip."""
    root = tmp_path_factory.mktemp("measured")
    (root / "tiny.yaml").write_text(tiny_text)
    keys = ["method=cegppo", "loss.beta1=0.1", "steps=2", "checkpoint_keep=0", "eval_every=0", "update.lr=0.02"]
    made = config.load(root / "tiny.yaml", [f"results={root / 'results'}", *keys, "arm=ours", "diagnostics.every=0"])[0]
    run_training(made, Silent())
    return made.folder


def test_the_sensitivity_is_measured_by_forks(preserving, capsys):
    """By hand from forks of one's own; a second call trains nothing; the course and the ledger of
    the unchanged fork are the run's."""
    command = ["advise", str(preserving), "--measure", "--steps", "2", "--delta", "0.5"]
    assert front_door.main([*command, "--at", "0", "1"]) == 0
    said = capsys.readouterr().out
    made = pd.read_csv(preserving / "measured" / "2steps.csv").set_index(["step", "side"])
    assert made["one_sided"].tolist() == [False] * 4  # β₁ from 0 to 0.6, β₂ from 0.5 to 1.5
    assert made["width"].tolist() == pytest.approx([0.6, 1.0] * 2)
    ends = []
    for beta2 in (0.5, 1.5):
        there = forked(preserving, "step=1", f"loss.beta2={beta2}", "steps=4", "eval.k=1")
        ends.append(read_lines(there / "metrics.jsonl")[3]["entropy/mean"])
    assert made.loc[(1, "high"), "measured"] == pytest.approx(ends[1] - ends[0], abs=1e-9) and ends[0] != ends[1]
    base = preserving / "measured" / "2steps" / "step000001" / "beta_0.1_1"
    rows = read_lines(base / "metrics.jsonl")
    assert rows[1]["entropy/mean"] == read_lines(preserving / "metrics.jsonl")[1]["entropy/mean"]
    levers, momentum = [row["ledger/lever_high"] for row in rows[1:3]], 0.9
    wanted = levers[0] * (1 + momentum) + levers[1]
    assert made.loc[(1, "high"), "first_order"] == pytest.approx(wanted) and wanted != 0
    assert "over 2 checkpoints" in said and "few checkpoints" in said and not (base / "checkpoints").exists()
    times = {path: path.stat().st_mtime_ns for path in preserving.glob("measured/*/*/*/metrics.jsonl")}
    assert len(times) == 10
    assert front_door.main([*command, "--at", "0", "1"]) == 0
    assert {path: path.stat().st_mtime_ns for path in preserving.glob("measured/*/*/*/metrics.jsonl")} == times
    inside = [run for run in load.run_folders(preserving.parent.parent) if "measured" in run.parts]
    assert not inside  # the forks in a run's folder are no runs of its sweep


def test_without_beta_a_run_is_measured_one_sided(own, capsys):
    """A run of ppo_clip is β = (0, 0): its unchanged fork goes as it went."""
    assert front_door.main(["advise", str(own), "--measure", "--steps", "1", "--at", "2"]) == 0
    assert "one-sided where β − δ would be below 0" in capsys.readouterr().out
    made = pd.read_csv(own / "measured" / "1steps.csv")
    assert made["one_sided"].all() and made["width"].tolist() == [0.25, 0.25]
    base = read_lines(own / "measured" / "1steps" / "step000002" / "beta_0_0" / "metrics.jsonl")
    ours = read_lines(own / "metrics.jsonl")
    assert [row["entropy/mean"] for row in base] == pytest.approx([row["entropy/mean"] for row in ours], abs=1e-6)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--measure", "--at", "7"], "no checkpoint at step=7; there are: 0 (its start), 1, 2, 3, 4"),
        (["--measure", "--delta", "0"], "--delta above 0"),
        (["--measure", "--steps", "0"], "--steps must be at least 1"),
        (["+0.1", "--measure"], "TARGET goes with first order"),
        (["rollout.engine=vllm", "--measure"], "say rollout.engine=hf, or fork and compare"),
        (["update.lr=1"], "'update.lr=1' is for the forks of --measure"),
    ],
)
def test_what_cannot_be_measured(parent, capsys, words, message):
    assert front_door.main(["advise", str(parent), *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_losses_and_schedules_that_have_no_one_beta(own):
    for words, message in (
        (["loss.name=reinforce"], "not of 'reinforce'"),
        (["method=cegppo", "loss.beta2=[[0, 1.0], [50%, 0.5]]"], "is a schedule"),
        (["controller.name=adaptive_bonus", "controller.target=0.5"], "may move it"),
    ):
        made, _ = fork.config_of(own, ["step=0", *words])
        with pytest.raises(BadInput, match=message):
            measure.beta_of(made.folder, made)
