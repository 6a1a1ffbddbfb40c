"""Sweeps that verl trains: the same YAML, verl's keys, a stand-in for verl that writes what its
file logger writes (tests/verl holds it against the real one), and the analysis at the end."""

import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import run as front_door
from analysis import load
from cegppo import config
from cegppo.record.files import read_lines
from cegppo.sweep import description, verl
from cegppo.types import BadInput

ROOT = Path(__file__).resolve().parent.parent
LOG = ROOT / "tests" / "verl_log.jsonl"
STAND_IN = """
import json, os, sys
given = dict(item.lstrip("+").split("=", 1) for item in sys.argv[1:])
log = given["ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH"]
saved = os.path.join(given["trainer.default_local_dir"], "latest_checkpointed_iteration.txt")
begin = int(open(saved).read()) if os.path.exists(saved) else 0
first, *rows = [json.loads(line) for line in open({log!r})]
os.makedirs(os.path.dirname(saved), exist_ok=True)
with open(log, "w") as out:
    if not begin:
        out.write(json.dumps(first) + "\\n")
    for step in range(begin + 1, int(given["trainer.total_training_steps"]) + 1):
        out.write(json.dumps(dict(rows[step % 2 == 0], step=step)) + "\\n")
        open(saved, "w").write(str(step))
        if step == 2 and not begin and "trainer.nnodes" in given:
            sys.exit(3)  # a node died
"""


@pytest.fixture
def sweep(tmp_path) -> Path:
    """A β sweep of three steps by a stand-in, in a folder of its own."""
    stand_in = tmp_path / "stand_in.py"
    stand_in.write_text(STAND_IN.format(log=str(LOG)))
    pd.DataFrame({"data_source": ["aime24"] * 30 + ["other"]}).to_parquet(tmp_path / "val.parquet")
    path = tmp_path / "beta.yaml"
    path.write_text(
        f"experiment: {ROOT}/experiments/paper/7b_text.yaml\n"
        "varies: [method, loss]\n"
        "seeds: [1]\n"
        "workers: 1\n"
        "gpus: 8\n"
        f"common: {{steps: 3, eval_every: 2, results: {tmp_path}/results, wandb.mode: disabled}}\n"
        "runner: verl\n"
        "verl:\n"
        f"  command: {sys.executable} {stand_in}\n"
        f"  data: {{train_files: /data/train.parquet, val_files: {tmp_path}/val.parquet}}\n"
        "arms:\n"
        "  grpo: {method: grpo}\n"
        "  cegppo: {method: cegppo, loss.beta1: 0.75}\n"
    )
    return path


def said(path: Path, *overrides: str) -> dict[str, str]:
    """What the dry run of the last arm gives verl, by key."""
    (*_, last) = description.expand(description.describe(path, list(overrides))).runs
    return dict(item.split("=", 1) for item in shlex.split(last.plan())[2:])


def test_the_paper_7b_in_verls_keys(sweep):
    """The whole command, as the dry run prints it."""
    folder = f"{sweep.parent}/results/beta/cegppo/seed1"
    assert said(sweep) == {
        "data.seed": "1",
        "actor_rollout_ref.actor.data_loader_seed": "1",
        "actor_rollout_ref.rollout.seed": "1",
        "trainer.total_training_steps": "3",
        "trainer.total_epochs": "3",
        "data.train_batch_size": "256",
        "actor_rollout_ref.rollout.n": "8",
        "actor_rollout_ref.actor.ppo_mini_batch_size": "32",
        "trainer.test_freq": "2",
        "trainer.save_freq": "10",
        "actor_rollout_ref.model.path": "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
        "+actor_rollout_ref.actor.fsdp_config.mixed_precision": "{param_dtype:bf16}",
        "actor_rollout_ref.model.enable_gradient_checkpointing": "true",
        "actor_rollout_ref.rollout.temperature": "1.0",
        "actor_rollout_ref.rollout.top_p": "1.0",
        "actor_rollout_ref.rollout.top_k": "-1",
        "data.max_response_length": "16384",
        "algorithm.norm_adv_by_std_in_grpo": "true",
        "actor_rollout_ref.actor.policy_loss._target_": "cegppo.plugins.verl.PolicyLossConfig",
        "actor_rollout_ref.actor.policy_loss.loss_mode": "cegppo.cegppo",
        "+actor_rollout_ref.actor.policy_loss.knobs": "{beta1:0.75,beta2:1.0}",
        "actor_rollout_ref.actor.clip_ratio_low": "0.2",
        "actor_rollout_ref.actor.clip_ratio_high": "0.2",
        "actor_rollout_ref.actor.optim.lr": "1e-06",
        "actor_rollout_ref.actor.optim.lr_warmup_steps": "0",
        "actor_rollout_ref.actor.optim.weight_decay": "0.0",
        "actor_rollout_ref.actor.optim.betas": "[0.9,0.999]",
        "actor_rollout_ref.actor.optim.clip_grad": "1.0",
        "actor_rollout_ref.actor.loss_agg_mode": "token-mean",
        "actor_rollout_ref.actor.loss_scale_factor": "16384",
        "actor_rollout_ref.actor.use_dynamic_bsz": "true",
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": "32768",
        "actor_rollout_ref.actor.fsdp_config.optimizer_offload": "false",
        "actor_rollout_ref.actor.clip_ratio_c": "inf",
        "actor_rollout_ref.actor.use_kl_loss": "false",
        "actor_rollout_ref.actor.kl_loss_coef": "0.0",
        "actor_rollout_ref.actor.kl_loss_type": "low_var_kl",
        "actor_rollout_ref.actor.entropy_coeff": "0.0",
        "algorithm.adv_estimator": "grpo",
        "data.max_prompt_length": "4096",
        "actor_rollout_ref.actor.strategy": "fsdp2",
        "actor_rollout_ref.model.external_lib": "cegppo.plugins.verl_statistics",
        "actor_rollout_ref.rollout.name": "vllm",
        "actor_rollout_ref.rollout.gpu_memory_utilization": "0.4",
        "actor_rollout_ref.rollout.tensor_model_parallel_size": "1",
        "actor_rollout_ref.rollout.val_kwargs.n": "8",
        "actor_rollout_ref.rollout.val_kwargs.do_sample": "true",
        "actor_rollout_ref.rollout.val_kwargs.temperature": "1.0",
        "actor_rollout_ref.rollout.val_kwargs.top_p": "1.0",
        "actor_rollout_ref.rollout.val_kwargs.top_k": "-1",
        "trainer.n_gpus_per_node": "8",
        "trainer.project_name": "beta",
        "trainer.experiment_name": "cegppo_seed1",
        "trainer.default_local_dir": f"{folder}/checkpoints",
        "trainer.logger": "[console,file]",
        "trainer.resume_mode": "auto",
        "+ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH": f"{folder}/verl.0.jsonl",
        "data.train_files": "/data/train.parquet",
        "data.val_files": f"{sweep.parent}/val.parquet",
    }


def test_verls_own_keys_win_and_a_method_is_its_keys(sweep):
    text = sweep.read_text().replace("verl:\n", "verl:\n  trainer.nnodes: 2\n  data.train_batch_size: 64\n")
    text = text.replace("{method: cegppo, loss.beta1: 0.75}", "{method: gspo}")
    sweep.write_text(text.replace("[method, loss]", "[method, loss, update]"))
    made = said(sweep, "update.dual_clip=10", "update.kl_coef=0.01", "update.kl_estimator=k2")
    assert made["actor_rollout_ref.actor.policy_loss.loss_mode"] == "cegppo.gspo"
    assert made["+actor_rollout_ref.actor.policy_loss.knobs"] == "{}"
    assert made["actor_rollout_ref.actor.clip_ratio_high"] == "0.0004"
    assert made["actor_rollout_ref.actor.loss_agg_mode"] == "seq-mean-token-mean"
    assert made["actor_rollout_ref.actor.clip_ratio_c"] == "10.0"
    assert made["actor_rollout_ref.actor.kl_loss_type"] == "mse"
    assert made["trainer.nnodes"] == "2" and made["data.train_batch_size"] == "64"


@pytest.mark.parametrize(
    "old, new, says",
    [
        ("runner: verl", "runner: verll", "unknown runner 'verll'; did you mean 'verl'?"),
        ("runner: verl\n", "", "'verl' is for runner: verl"),
        ("gpus: 8\n", "", "runner: verl: 'gpus' is missing"),
        ("train_files: /data/train.parquet, ", "", "'verl' lacks data.train_files"),
        ("workers: 1", "takes_from: [other]", "'takes_from' is for runs of this package's own loop"),
        ("{method: grpo}", "{method: ppo}", "advantage.kind=gae"),
        ("{method: grpo}", "{method: dapo}", "verl cannot do reward_values=[-1.0, 1.0]"),
        ("loss.beta1: 0.75", "loss.beta1: [[0, 0.0], [2, 0.5]]", "loss.beta1 cannot be a schedule"),
        ("steps: 3", "steps: 3, updates_per_step: 512", "updates_per_step=512 does not divide 256 prompts"),
        ("steps: 3", "steps: 3, update.nll_coef: 0.1", "verl cannot do update.nll_coef=0.1"),
        ("steps: 3", "steps: 3, reward: random", "verl cannot do reward=random"),
    ],
)
def test_what_verl_cannot_do_is_said_before_anything_runs(sweep, capsys, old, new, says):
    sweep.write_text(sweep.read_text().replace(old, new))
    assert front_door.main(["sweep", str(sweep), "--dry-run"]) == 2
    assert says in capsys.readouterr().err
    assert not (sweep.parent / "results").exists()


def test_every_method_is_translated_or_refused_by_name():
    """None raises anything else, and a loss that verl cannot serve is refused too."""
    served = []
    for method in config.methods():
        try:
            loaded, _ = config.load(ROOT / "experiments" / "paper" / "1.5b_text.yaml", [f"method={method}"])
        except BadInput as error:
            assert "rollout.engine" in str(error)  # some rules refuse vLLM, which the paper's setting has
            continue
        try:
            verl.items(loaded, 8)
            served.append(method)
        except BadInput as error:
            assert str(error).startswith("runner: verl")
    assert {"grpo", "clip_higher", "cegppo", "gppo", "gspo", "cispo", "dr_grpo"} <= set(served)
    assert not {"ppo", "dapo", "clip_cov", "top_entropy", "m2po", "boundary_rescue", "cegppo_auto", "entropic"} & set(
        served
    )


def test_a_sweep_runs_is_read_by_the_analysis_and_goes_on_after_a_failure(sweep, capsys):
    sweep.write_text(sweep.read_text().replace("verl:\n", "verl:\n  trainer.nnodes: 2\n"))
    results = sweep.parent / "results"
    assert front_door.main(["sweep", str(sweep)]) == 1
    folder = results / "beta" / "cegppo" / "seed1"
    meta = json.loads((folder / "meta.json").read_text())
    assert (meta["status"], meta["steps"]) == ("failed", 2) and "stand_in.py" in meta["sessions"][0]["verl"]
    assert front_door.main(["sweep", str(sweep)]) == 0
    out = capsys.readouterr().out
    meta = json.loads((folder / "meta.json").read_text())
    assert (meta["status"], meta["steps"], len(meta["sessions"])) == ("finished", 3, 2)
    assert [path.name for path in verl.logs(folder)] == ["verl.0.jsonl", "verl.1.jsonl"]
    assert "cegppo seed 1: finished  step 3/3" in out and "compare_beta" in out
    frame = load.metrics(results, "beta", ["grpo", "cegppo"])
    assert frame.groupby("arm")["step"].apply(list).to_dict() == {"grpo": [1, 2, 3], "cegppo": [1, 2, 3]}
    row, data = frame.iloc[0], read_lines(LOG)[1]["data"]
    assert row["lever/high"] == 8 * data["actor/lever/high"] and row["entropy/mean"] == data["actor/entropy"]
    assert row["clip/prob_low"] == data["actor/part/prob_low"] / data["actor/clip/low"]
    tests = load.evaluations(results, "beta", ["grpo", "cegppo"])
    assert tests[["step", "benchmark", "n", "k", "accuracy"]].values.tolist()[:2] == [
        [0, "aime24", 30, 2, 0.25],
        [2, "aime24", 30, 2, 0.5],
    ]
    assert front_door.main(["sweep", str(sweep)]) == 0 and "2 of 2 were already there" in capsys.readouterr().out
    with pytest.raises(BadInput, match="seed1: holds another run: update.lr was 1e-06, is now 0.1"):
        description.expand(description.describe(sweep, ["update.lr=0.1"]))


def test_a_run_that_is_stopped_is_passed_on_to_verl(sweep):
    """Ctrl-C reaches verl; the run can go on."""
    (sweep.parent / "stand_in.py").write_text(
        "import sys, time\n"
        "try:\n"
        "    print('begun', flush=True)\n"  # inside: the signal may come as soon as this is read
        "    time.sleep(60)\n"
        "except KeyboardInterrupt: print('verl was asked to stop'); sys.exit(1)\n"
    )
    (one, _) = description.expand(description.describe(sweep)).runs
    process = subprocess.Popen(one.command(8), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert any(line == "begun\n" for line in process.stdout)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130 and "verl was asked to stop" in process.stdout.read()
    assert json.loads((one.folder / "meta.json").read_text())["status"] == "stopped"


def test_a_command_that_is_not_there_is_one_line(sweep):
    sweep.write_text(sweep.read_text().replace(f"command: {sys.executable}", "command: /nowhere/python"))
    assert front_door.main(["sweep", str(sweep)]) == 1
    text = (sweep.parent / "results" / "beta" / "grpo" / "seed1" / "output.txt").read_text()
    assert "runner: verl: /nowhere/python: No such file or directory" in text and "Traceback" not in text


@pytest.mark.parametrize(
    "value, text",
    [
        (None, "null"), (True, "true"), (2, "2"), (1e-6, "1e-06"), (float("inf"), "inf"), ("a/b-c.d", "a/b-c.d"),
        ("a b", "'a b'"), ("it's", "'it\\'s'"), ("true", "'true'"), ("1e3", "'1e3'"), ([1, "x y"], "[1,'x y']"),
        ({"a": 0.5, "b": None}, "{a:0.5,b:null}"), ("", "''"),
    ],
)  # fmt: skip
def test_values_as_hydra_reads_them(value, text):
    assert verl.as_hydra(value) == text
