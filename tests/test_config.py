"""Layers, origins, and one clear line for whatever cannot be used."""

import copy
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

import run as front_door
from cegppo import config, losses
from cegppo.config import reference
from cegppo.config.checks import check_loss, check_values
from cegppo.config.recipe import Worker
from cegppo.record import read
from cegppo.schedules import Schedules
from cegppo.types import BadInput

ROOT = Path(__file__).resolve().parent.parent


def test_later_layers_win_and_origins_are_kept(tiny, tmp_path):
    (tmp_path / "more.yaml").write_text("include: tiny.yaml\nsteps: 7\nupdate: {lr: 0.5}\n")
    loaded, origin = config.load(tmp_path / "more.yaml", ["method=cegppo", "update.lr=0.25", "loss.beta1=0.75"])
    assert (loaded.steps, loaded.update.lr, loaded.group_size) == (7, 0.25, 4)
    assert loaded.loss == {"name": "cegppo", "beta1": 0.75, "beta2": 1.0, "eps_low": 0.2, "eps_high": 0.2}
    assert origin["steps"].endswith("more.yaml") and origin["group_size"].endswith("tiny.yaml")
    assert origin["update.lr"] == origin["loss.beta1"] == "command line" and origin["loss.beta2"].endswith(
        "method/cegppo.yaml"
    )


def test_the_experiment_file_beats_the_preset(tiny):
    tiny.write_text(tiny.read_text() + "method: clip_higher\nloss: {eps_high: 0.5}\n")
    assert config.load(tiny)[0].loss["eps_high"] == 0.5


def test_arm_names_what_differs_from_the_plain_method(tiny):
    arm = lambda *overrides: config.load(tiny, list(overrides))[0].arm
    assert arm() == "grpo"
    assert arm("method=cegppo", "loss.beta1=0.5", "seed=3", "steps=9") == "cegppo"  # 0.5 is the preset's own
    assert arm("method=cegppo", "loss.beta1=0.25") == "cegppo,loss.beta1=0.25"
    assert arm("reward=task", "update.lr=0.5") == "grpo,reward=task,update.lr=0.5"


def test_a_recorded_configuration_loads_again(tiny, tmp_path):
    import yaml

    loaded, _ = config.load(tiny, ["method=ppo"])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(loaded.to_dict()))
    assert config.resolved(tmp_path / "config.yaml").to_dict() == loaded.to_dict()


@pytest.mark.parametrize(
    "overrides, line",
    [
        (["lr=1"], "command line: unknown key 'lr'; did you mean 'update.lr', 'critic.lr' or 'testbed.lr'?"),
        (["beta1=1"], "command line: unknown key 'beta1'; did you mean 'loss.beta1' or 'update.beta1'?"),
        (["eps_high=1"], "command line: unknown key 'eps_high'; did you mean 'loss.eps_high'?"),
        (["memory_share=1"], "unknown key 'memory_share'; did you mean 'rollout.vllm.memory_share'?"),
        (["updat.lr=1"], "command line: unknown key 'updat'; did you mean 'update'?"),
        (["update.lrr=1"], "command line: unknown key 'update.lrr'; did you mean 'update.lr'?"),
        (["loss.beta=1"], "command line: loss 'ppo_clip' has no knob 'loss.beta'"),
        (
            ["method=cegppo", "loss.beta=1"],
            "command line: loss 'cegppo' has no knob 'loss.beta'; did you mean 'loss.beta2'?",
        ),
        (["method=grop"], "command line: unknown method 'grop'; did you mean 'grpo'?"),
        (["loss.name=ppo_clp"], "command line: unknown loss 'ppo_clp'; did you mean 'ppo_clip'?"),
        (["loss.eps_low=1.0"], "command line: loss.eps_low must be above 0 and below 1, not 1.0"),
        (["loss.eps_high=0"], "command line: loss.eps_high must be above 0, not 0"),
        (["method=cegppo", "loss.beta1=-1"], "command line: loss.beta1 must be at least 0, not -1"),
        (["loss.eps_low=wide"], "command line: loss.eps_low takes a float, not 'wide'"),
        (["loss=3"], "command line: 'loss' takes keys (loss.name=…), not a single value"),
        (["update=3"], "command line: 'update' takes keys, not 3"),
        (["data.train=3"], "command line: 'data.train' takes a list, not 3"),
        (["steps=many"], "command line: steps: Value 'many' of type 'str' could not be converted to Integer"),
        (["steps=0"], "command line: steps must be at least 1, not 0"),
        (["group_size=1"], "command line: group_size must be at least 2 with advantage.kind=group, not 1"),
        (
            ["updates_per_step=3"],
            "command line: updates_per_step must divide prompts_per_step × group_size = 16, not 3",
        ),
        (["update.aggregate=tokens"], "command line: update.aggregate: unknown value 'tokens'; did you mean 'token'?"),
        (["rollout.top_p=0"], "command line: rollout.top_p must be in (0, 1], not 0.0"),
        (["eval.top_p=1.5"], "command line: eval.top_p must be in (0, 1], not 1.5"),
        (["update.beta1=1"], "command line: update.beta1 must be in [0, 1), not 1.0"),
        (["update.warmup_steps=-1"], "command line: update.warmup_steps must be at least 0, not -1"),
        (["rollout.vllm.memory_share=1"], "rollout.vllm.memory_share must be above 0 and below 1, not 1.0"),
        (["grader.memory_mb=1"], "command line: grader.memory_mb must be at least 256, not 1"),
        (["reward=null"], "command line: reward: unknown value 'null'"),
        (["wandb.mode=offlin"], "command line: wandb.mode: unknown value 'offlin'; did you mean 'offline'?"),
        (["rollout.stop=['']"], "command line: rollout.stop must not hold an empty string, not ['']"),
        (["rollout.temperature=0"], "command line: rollout.temperature must be above 0, not 0.0"),
        (["update.dual_clip=0.5"], "command line: update.dual_clip must be 0 (off) or above 1, not 0.5"),
        (["steps"], "command line: 'steps' is not key=value"),
        (["update.lr=.inf"], "command line: update.lr must be finite, not inf"),
        (["reward_values=[.nan,1]"], "reward_values must be finite"),
        (["loss.eps_low=.nan"], "loss.eps_low must be finite, not nan"),
        (["eval.max_tokens=0"], "command line: eval.max_tokens must be at least 1"),
        (["results=${nothing}"], "command line: results: Interpolation key 'nothing' not found"),
        (["update.lr=${wandb.project}"], "command line: update.lr: Value 'cegppo' of type 'str' could not be"),
        (["reward_values=3"], "command line: 'reward_values' takes a list, not 3"),
        (["reward_values={a: 1}"], "command line: 'reward_values' takes a list, not {'a': 1}"),
        (["reward_values=[0,x]"], "command line: reward_values[1]: Value 'x' of type 'str' could not be converted"),
        (["data.train=[{task: gcd, weight: x}]"], "command line: data.train[0].weight: Value 'x' of type 'str'"),
        (["model.path=???"], "model.path"),
        (["loss={1: 2}"], "1"),
        (["diagnostics.classes=prob"], "did you mean 'probability'?"),
        (["loss.eps_low=[[0, 0.2], [50%, 1.0]]"], "command line: loss.eps_low must be above 0 and below 1, not 1.0"),
        (["loss.eps_low=[[1, 0.2]]"], "a schedule begins at 0 and goes on, it does not begin at steps [1]"),
        (["loss.eps_low=[[0, 0.2], [2, 0.3], [50%, 0.4]]"], "it does not begin at steps [0, 2, 2]"),
        (["loss.eps_low=[[0, 0.2], [150%, 0.3]]"], "loss.eps_low: a share of the run is at most 100%"),
        (["data.train=[{task: gcd, params: [1]}]"], "command line: 'data.train.params' takes keys, not [1]"),
        (["loss.eps_low=[[0, 0.2, linear]]"], "the first entry of a schedule has no value before it"),
        (["loss.eps_low=[[0, 0.2], [9, 0.3, linea]]"], "goes linear or cosine from one value to the next, not 'linea'"),
        (["loss.eps_low=[[0, 0.2], [9, 1.0, linear]]"], "loss.eps_low must be above 0 and below 1, not 1.0"),
        (["loss.eps_low=[0.2, 0.3]"], "loss.eps_low: a schedule is a list of [step, value] or [share%, value]"),
        (["loss.eps_low=[[0, true]]"], "loss.eps_low takes a float, not True"),
        (["rollout.prompts_per_round=8"], "command line: rollout.prompts_per_round needs rollout.drop_constant_groups"),
        (["model=testbd"], "command line: model=testbd: no experiments/model/testbd.yaml; did you mean 'testbed'?"),
        (
            ["eval.benchmarks=[{task: gcd, file: x}]"],
            "command line: eval.benchmarks: each source names either a task or a file",
        ),
    ],
)
def test_bad_values(tiny, overrides, line):
    with pytest.raises(BadInput) as error:
        config.load(tiny, overrides)
    assert line in str(error.value) and "\n" not in str(error.value)


def test_bad_files(tmp_path, tiny):
    for text, part in [
        ("steps: [1", "not valid YAML"),
        ("- 1", "expected `key: value` lines"),
        ("steps", "expected `key: value` lines"),
        ("include: 3", "'include' takes a file name"),
        ("include: [1]", "'include' takes a file name"),
        ("include: nowhere.yaml", "nowhere.yaml: no such file"),
        ("include: bad.yaml", "includes itself"),
    ]:
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(BadInput, match=part):
            config.load(tmp_path / "bad.yaml")
    with pytest.raises(BadInput, match=r"tinny\.yaml: no such file; did you mean 'tiny\.yaml'\?"):
        config.load(tmp_path / "tinny.yaml")


def test_a_value_may_refer_to_another(tiny):
    """Whatever layer that came from, and its default too."""
    loaded, origin = config.load(
        tiny, ["results=${wandb.project}/x", "eval.k=${group_size}", "loss.eps_low=${update.lr}", "update.lr=0.25"]
    )
    assert (loaded.results, loaded.eval.k, loaded.loss["eps_low"]) == ("cegppo/x", loaded.group_size, 0.25)
    assert origin["results"] == "command line"


def test_what_was_read_before_changes_nothing(tiny):
    first, _ = config.load(tiny)
    before = first.to_dict()
    first.data.train[0].params["min_terms"] = -1
    first.data.train.clear()
    first.loss["eps_low"] = -1
    assert config.load(tiny)[0].to_dict() == before
    tiny.write_text(tiny.read_text().replace("group_size: 4", "group_size: 8"))  # as long as before, and as young
    assert config.load(tiny)[0].group_size == 8 != before["group_size"]


def test_a_schedule_by_shares_is_one_by_steps(tiny):
    """[58%, v] of 50 steps begins at 29; only the steps count for what run it is."""
    shares, _ = config.load(tiny, ["method=cegppo", "steps=50", "loss.beta1=[[0, 0], [58%, 0.5]]"])
    assert [Schedules(shares).at(step)["loss.beta1"] for step in (0, 28, 29, 49)] == [0.0, 0.0, 0.5, 0.5]
    steps, _ = config.load(tiny, ["method=cegppo", "steps=50", "loss.beta1=[[0, 0.0], [29, 0.5]]"])
    longer, _ = config.load(tiny, ["method=cegppo", "steps=100", "loss.beta1=[[0, 0], [58%, 0.5]]"])
    assert shares.identity() == steps.identity() != longer.identity()
    assert (
        config.load(tiny, ["method=cegppo", "loss.beta1=[[0, 0.0], [29, 0.5]]", "steps=100"])[0].identity()
        == steps.identity()
    )


def test_a_schedule_goes_from_value_to_value(tiny):
    """Straight or along half a cosine, from the step of one entry to that of the next; other
    entries are steps."""
    over = lambda schedule, steps=40: config.load(tiny, ["method=cegppo", f"steps={steps}", f"loss.beta1={schedule}"])[
        0
    ]
    at = lambda loaded, *steps: [Schedules(loaded).at(step)["loss.beta1"] for step in steps]
    line = over("[[0, 1.0], [50%, 0.0, linear], [30, 0.5], [100%, 0.7, linear]]")
    assert at(line, 0, 5, 19, 20, 29) == pytest.approx([1.0, 0.75, 0.05, 0.0, 0.0])
    assert at(line, 30, 35, 39) == pytest.approx([0.5, 0.6, 0.68])
    wave = over("[[0, 0], [10, 1], [30, 3, cosine]]")
    assert at(wave, 9, 10, 15, 20, 25, 30, 39) == pytest.approx([0, 1, 2 - 0.5**0.5, 2, 2 + 0.5**0.5, 3, 3])
    moving = Schedules(wave).metrics(Schedules(wave).at(15), trained=True)
    assert {key for key in moving if key.startswith("knob/")} == {"knob/beta1"}
    assert over("[[0, 0], [50%, 1, linear]]").identity() == over("[[0, 0], [20, 1, linear]]").identity()
    assert over("[[0, 0], [50%, 1, linear]]").identity() != over("[[0, 0], [50%, 1]]").identity()
    assert over("[[0, 0], [50%, 1, linear]]").identity() != over("[[0, 0], [50%, 1, linear]]", 50).identity()


def test_a_named_model_and_its_keys_in_either_order(tiny):
    path = ROOT / "experiments" / "paper" / "1.5b_text.yaml"
    for overrides in (["model=testbed", "model.head_chunk=10"], ["model.head_chunk=10", "model=testbed"]):
        loaded, _ = config.load(path, overrides)
        assert (loaded.model.path, loaded.model.head_chunk, loaded.rollout.engine) == ("testbed", 10, "hf")


PAPER = sorted((ROOT / "experiments" / "paper").glob("*b_*.yaml"))


def test_the_papers_experiments_say_what_the_paper_says():
    """The settings of the text and what the released script adds; nothing else differs between
    the two, or between the sizes."""
    assert [p.stem for p in PAPER] == ["1.5b_released", "1.5b_text", "7b_released", "7b_text"]
    loaded = {p.stem: config.load(p, ["method=cegppo", "loss.beta1=0.75"])[0] for p in PAPER}
    text = loaded["1.5b_text"]
    assert (text.update.lr, text.group_size, text.rollout.max_tokens, text.steps) == (1e-6, 8, 16384, 1000)
    assert text.loss == {"name": "cegppo", "beta1": 0.75, "beta2": 1.0, "eps_low": 0.2, "eps_high": 0.2}
    assert (text.update.kl_coef, text.update.entropy_coef, text.update.dual_clip, text.update.nll_coef) == (0, 0, 0, 0)
    differ = lambda a, b: {k for k in a.identity() if a.identity()[k] != b.identity().get(k)} - {"experiment"}
    added = {
        "reward_values", "rollout.drop_constant_groups", "rollout.prompts_per_round", "update.warmup_steps",
        "update.weight_decay",
        "update.dual_clip", "update.nll_coef", "prompts_per_step",
    }  # fmt: skip
    assert differ(text, loaded["1.5b_released"]) == differ(loaded["7b_text"], loaded["7b_released"]) == added
    assert differ(text, loaded["7b_text"]) == {"model.path", "eval.max_tokens"}
    assert (text.prompts_per_step, loaded["1.5b_released"].prompts_per_step) == (256, 128)
    assert 8 < text.prompts_per_step * text.steps / 30_000 < 11  # "about ten epochs"
    for method, dual_clip in (("grpo", 10), ("clip_higher", 10), ("gspo", 0), ("cispo", 0)):
        assert config.load(PAPER[0], [f"method={method}"])[0].update.dual_clip == dual_clip
    released = loaded["7b_released"].update
    assert (released.dual_clip, released.nll_coef, released.warmup_steps, released.weight_decay) == (10.0, 0.1, 10, 0.1)


@pytest.mark.parametrize(
    "path, method", [(PAPER[0], "cegppo"), (PAPER[3], "gspo")], ids=lambda v: getattr(v, "stem", v)
)
def test_a_dry_run_of_the_papers_experiments(tmp_path, path, method):
    """The same file on the embedded model, its batches made smaller: everything else is the
    experiment's own."""
    small = ["steps=1", "prompts_per_step=8", "eval.size=2", "eval.k=2", "diagnostics.every=1"]
    small += ["rollout.prompts_per_round=16"] if "released" in path.stem else []
    done = run(
        "train", path, f"method={method}", "model=testbed", f"run_dir={tmp_path / 'run'}", "wandb.mode=disabled", *small
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text())["updates"] >= 1


def test_numbers_in_files_read_as_on_the_command_line(tiny):
    tiny.write_text(tiny.read_text() + "loss: {eps_high: 1e-1}\n")
    assert config.load(tiny)[0].loss["eps_high"] == config.load(tiny, ["loss.eps_high=1e-1"])[0].loss["eps_high"] == 0.1


def test_long_values_do_not_make_long_folder_names(tiny):
    loaded, _ = config.load(tiny, [f"data.train=[{{file: {'x' * 300}.jsonl}}]"])
    assert len(loaded.arm) < 60 and loaded.arm.startswith("grpo,data.train=")


# --------------------------------------------------------------------- limits beside the fields


def meanings(section, prefix=""):
    """{key: field} of every key below dataclass `section`."""
    found = {}
    for field in dataclasses.fields(section):
        if dataclasses.is_dataclass(field.default_factory):
            found |= meanings(field.default_factory, f"{prefix}{field.name}.")
        else:
            found[f"{prefix}{field.name}"] = field
    return found


def test_every_key_and_knob_says_what_it_means():
    fields = meanings(config.Config) | meanings(config.Source, "source.")
    for name in losses.names():
        fields |= meanings(losses.load(name).Params, f"{name}.")
    assert len(fields) > 100 and "loss" in fields and "cegppo.beta1" in fields and "grader.timeout" in fields
    assert [key for key, field in fields.items() if not field.metadata.get("doc")] == []


def test_a_loss_file_brings_its_knobs_limits_along(tiny, tmp_path, monkeypatch):
    """A new loss may have a knob below 0, and nothing of the configuration knows its name."""
    (tmp_path / "tilted.py").write_text(
        "from dataclasses import dataclass\n\nfrom ..types import knob\n\n\n@dataclass(frozen=True)\nclass Params:\n"
        '    tilt: float = knob(-0.5, "", least=-1, most=0)\n'
    )
    monkeypatch.setattr(losses, "__path__", [*losses.__path__, str(tmp_path)])
    tilted = lambda value: config.load(tiny, ["loss.name=tilted", f"loss.tilt={value}"])[0].loss["tilt"]
    assert tilted(-1) == -1.0 and tilted(0) == 0.0 and config.load(tiny, ["loss.name=tilted"])[0].loss["tilt"] == -0.5
    for value in (-1.5, 0.5):
        with pytest.raises(BadInput, match=rf"command line: loss.tilt must be in \[-1, 0\], not {value}"):
            tilted(value)


def test_checks_change_nothing(tiny):
    loaded, origin = config.load(tiny, ["method=cegppo"])
    loaded.data.train[0].name, loaded.loss["beta1"] = "", 1  # what is left out is not filled in, 1 stays a whole number
    before = copy.deepcopy(loaded)
    check_loss(loaded.loss, loaded.steps, origin)
    check_values(loaded, origin)
    assert loaded == before and type(loaded.loss["beta1"]) is int


# -------------------------------------------------------------------------- what was recorded once


def recorded(sweep):
    return [folder for folder in read.run_folders(sweep) if read.read_meta(folder)]


def test_every_committed_configuration_is_still_read():
    """One seed of each arm: the others differ in the seed alone."""
    folders = [folder for sweep in sorted((ROOT / "results").iterdir()) for folder in recorded(sweep)]
    arms = {folder.parent: folder for folder in folders}
    assert len(arms) > 30
    for folder in arms.values():
        loaded = read.read_config(folder)
        assert folder.parts[-2:] == (loaded.arm, f"seed{loaded.seed}") and loaded.loss["name"] in losses.names()


def test_an_old_name_of_a_knob_is_understood(tiny):
    folders = [folder for folder in recorded(ROOT / "results" / "algorithms") if folder.parent.name == "gspo"]
    assert len(folders) == 5
    for folder in folders:
        assert read.read_config(folder).loss == {"name": "gspo", "eps_low": 3e-4, "eps_high": 4e-4}
    loaded, origin = config.load(tiny, ["method=gspo", "loss.seq_eps_low=1e-3"])
    assert loaded.loss["eps_low"] == 1e-3 and origin["loss.eps_low"] == "command line"
    with pytest.raises(BadInput, match="loss 'ppo_clip' has no knob 'loss.seq_eps_low'"):
        config.load(tiny, ["loss.seq_eps_low=1e-3"])


TEXTS = [" Box it.", "1e3", "null", "true", "a: b", "[x]", "", "~", "no", "3", "1:30", "0x10", "# a", "a #b", "- a",
         "'", '"', "\\", "a\nb", "\u2028\x7f\x85", "😀", "{a: 1}", "!!int 3", "&a", "%", "2020-01-01"]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_text_stays_text(tiny, tmp_path, text):
    """On a command line, in a list and a mapping on it, and in a recorded configuration."""
    for value in (text, [text, 1e-5, None], {"a": [text], "b": 3}):
        assert config.parse_overrides([config.as_override("key", value)]) == {"key": value}
    loaded, _ = config.load(tiny, [config.as_override("data.suffix", text), "arm=it"])
    (tmp_path / "config.yaml").write_text(config.as_yaml(loaded))
    assert loaded.data.suffix == config.resolved(tmp_path / "config.yaml").data.suffix == text


def test_plain_text_has_no_quotes():
    assert config.as_override("method", "grpo") == "method=grpo"
    assert config.as_override("results", "/a b/c.d") == "results=/a b/c.d"
    assert config.as_override("loss.beta1", [[0, 0.0], ["58%", 0.5]]) == 'loss.beta1=[[0, 0.0], ["58%", 0.5]]'


# --------------------------------------------------------------------------------- the front door


def run(*arguments, **options):
    return subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *map(str, arguments)], capture_output=True, text=True, **options
    )


@pytest.mark.parametrize(
    "arguments, part",
    [
        (
            ["train", "{tiny}", "data.train=[{{task: chain_sums}}]"],
            "unknown task 'chain_sums'; did you mean 'chain_sum'?",
        ),
        (["train", "{tiny}", "data.train=[{{task: gcd, params: {{min_vale: 1}}}}]"], "min_vale"),
        (["train", "{tiny}", "data.train=[{{file: none.jsonl}}]"], "none.jsonl: no such file"),
        (["train", "{tiny}", "model.path=./nowhere"], "model.path=./nowhere: no such folder"),
        (["eval", "{tiny}", "eval.kk=3"], "unknown key 'eval.kk'"),
        (["eval", "results/nowhere"], "no such folder"),
    ],
)
def test_the_front_door_says_one_line_and_exits_2(tiny, tmp_path, monkeypatch, capsys, arguments, part):
    monkeypatch.chdir(tmp_path)
    arguments = [a.format(tiny=tiny) for a in arguments]
    code = front_door.main([*arguments, *(["run_dir=run"] if arguments[0] == "train" else [])])
    said = capsys.readouterr().err
    assert code == 2 and part in said and said.startswith("error: ") and said.count("\n") == 1


def test_a_process_says_one_line_and_exits_2(tiny):
    done = run("train", tiny, "updat.lr=1")
    assert done.returncode == 2
    assert done.stderr == "error: command line: unknown key 'updat'; did you mean 'update'?\n"


def test_help_and_print(tiny):
    for verb in (["--help"], ["train", "--help"], ["eval", "--help"]):
        done = run(*verb)
        assert done.returncode == 0 and "usage" in done.stdout
    done = run("train", tiny, "--print", "method=cegppo", "seed=4")
    assert done.returncode == 0
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert lines["seed"].split("   ")[0] == "4" and lines["seed"].endswith(
        "# command line: of everything that is drawn"
    )
    assert lines["loss.beta2"].split()[0] == "1.0"
    assert lines["loss.beta2"].endswith("cegppo.yaml: β₂: share of the high side (A > 0) given back")
    assert lines["update.weight_decay"].endswith("# default: of AdamW")


def test_knobs_of_every_kind(tiny, tmp_path, monkeypatch):
    """A knob takes what its default is: a switch, a word, a whole number, a number."""
    monkeypatch.setattr(losses, "__path__", [*losses.__path__, str(tmp_path / "losses")])
    (tmp_path / "losses").mkdir()
    (tmp_path / "losses" / "kinds.py").write_text(
        "from dataclasses import dataclass\n\n@dataclass(frozen=True)\nclass Params:\n"
        "    on: bool = False\n    how: str = 'mean'\n    many: int = 2\n    much: float = 0.5\n\n"
        "def token_loss(x, p):\n    return -x.advantage_BT * x.logprob_BT, {}\n"
    )
    chosen = ["loss.name=kinds", "loss.on=true", "loss.how=max", "loss.many=3", "loss.much=1"]
    loaded, _ = config.load(tiny, chosen)
    assert loaded.loss == {"name": "kinds", "on": True, "how": "max", "many": 3, "much": 1.0}
    assert isinstance(loaded.loss["much"], float)
    for wrong, kind in (("on=1", "bool"), ("how=2", "str"), ("many=2.5", "int"), ("much=yes_please", "float")):
        with pytest.raises(BadInput, match=f"command line: loss.{wrong.partition('=')[0]} takes a {kind}, not"):
            config.load(tiny, ["loss.name=kinds", f"loss.{wrong}"])


def test_the_reference_is_what_the_schema_says():
    """`python -m cegppo.config` writes it anew."""
    assert reference.DOC.read_text() == reference.text()


def test_every_key_has_a_meaning(tiny):
    """In the reference and beside `--print`, for every loss."""
    for name in losses.names():
        loaded, origin = config.load(tiny, [f"loss.name={name}"])
        said = reference.meanings(name)
        assert all(said.get(key) for key in config.flatten(loaded.to_dict()) if not key.startswith("testbed.tasks."))
        lines = config.explain(loaded, origin).splitlines()
        assert all(": " in line.partition("   # ")[2] for line in lines if "testbed.tasks." not in line), name
    assert f"   # {tiny}: learning rate of AdamW" in "\n".join(lines)
    assert all(
        len(item.metadata["doc"]) > 3 for schema in (config.Source, Worker) for _, item in reference.leaves(schema)
    )


@pytest.mark.parametrize("written", ["no", "'no'", '"no"'])
def test_words_that_yaml_takes_for_truth_values(tiny, tmp_path, written):
    loaded, _ = config.load(tiny, ["method=dapo", f"rollout.drop_constant_groups={written}"])
    assert loaded.rollout.drop_constant_groups == "no"
    path = tmp_path / "words.yaml"
    path.write_text(f"include: {tiny.name}\nmethod: dapo\nrollout: {{drop_constant_groups: {written}}}\n")
    assert config.load(path)[0].rollout.drop_constant_groups == "no"
    with pytest.raises(BadInput, match="command line: arm: takes a text, and this is a truth value in YAML; put it in"):
        config.load(tiny, ["arm=on"])
    assert config.load(tiny, ["arm='on'"])[0].arm == "on"


def test_a_long_name_ends_in_a_digest(tiny):
    many = [
        f"update.{key}" for key in ("lr=1e-4", "warmup_steps=2", "weight_decay=0.1", "dual_clip=10", "nll_coef=0.1")
    ]
    many += [
        "loss.eps_high=0.28",
        "rollout.temperature=0.9",
        "rollout.max_tokens=16",
        "group_size=2",
        "update.grad_clip=0.5",
    ]
    one, other = (config.load(tiny, [*many, f"rollout.top_k={k}"])[0].arm for k in (3, 4))
    assert one != other and all(len(name.encode()) <= 200 and name.startswith("grpo,") for name in (one, other))
