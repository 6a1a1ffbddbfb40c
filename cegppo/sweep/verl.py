"""A run of a sweep, trained by verl instead of this package's own loop.

    runner: verl
    gpus: 8                                                     # of each machine
    verl:
      command: /opt/verl/bin/python -m verl.trainer.main_ppo    # default: python3 -m …
      data.train_files: /data/train.parquet                     # any of verl's own keys; they win
      data.val_files: [/data/aime24.parquet]

The configuration of an arm is the same YAML; `items` says it in verl's keys, and refuses what verl
cannot do. This file run as a module is the process of one run: it starts verl, and keeps in the
run's folder what the analysis reads: config.yaml, meta.json, verl's own log (verl.<n>.jsonl, one a
start, since verl begins its file anew) and foreign.yaml, which says which of its columns are which
of our metrics. verl's checkpoints lie in the folder too, and the same command continues from them.
"""

import json
import math
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from .. import losses
from ..config import Config, as_yaml, flatten, load, under
from ..plugins.verl_names import ACTOR, DUAL_CLIP, PREFIX, columns, slots
from ..record.files import as_page, lock, read_lines, write_whole
from ..record.provenance import now, session
from ..record.read import read_config, read_meta
from ..types import BadInput, said
from .launch import environment, in_the_child

COMMAND = "python3 -m verl.trainer.main_ppo"
POLICY_LOSS, ROLLOUT, OPTIMIZER = f"{ACTOR}policy_loss.", "actor_rollout_ref.rollout.", f"{ACTOR}optim."
AGGREGATE = {"token": "token-mean", "sequence": "seq-mean-token-mean", "constant": "seq-mean-token-sum-norm"}
ESTIMATOR = {"k2": "mse", "k3": "low_var_kl"}
PRECISION = {"float32": "fp32", "bfloat16": "bf16"}
KEYWORDS = ("null", "true", "false", "inf", "nan")  # of Hydra
OFF = 1e9  # a norm that no gradient has
# Keys that name a run, or are about this package's own loop: verl does its own there.
NOT_SAID = (
    "experiment", "arm", "method", "results", "run_dir", "threads", "wandb", "grader", "diagnostics", "testbed",
    "model.device", "model.packing", "model.head_chunk", "data", "eval", "rollout.engine", "rollout.vllm",
    "update.on_nonfinite", "rollout.max_refills", "rollout.prompts_per_round",
)  # fmt: skip


def items(config: Config, gpus: int) -> dict[str, Any]:
    """verl's keys for the run of `config` on machines of `gpus` each. Raises BadInput for what
    verl's trainer, or its call of a loss, cannot do."""
    c, u, r = config, config.update, config.rollout
    name, knobs = c.loss["name"], {k: v for k, v in c.loss.items() if k != "name"}
    own = slots(name)
    if c.prompts_per_step % c.updates_per_step:
        raise BadInput(
            f"runner: verl: updates_per_step={c.updates_per_step} does not divide {c.prompts_per_step} prompts"
        )
    module = losses.load(name)
    for asked, what in (("WHOLE_BATCH", "is a rule over the whole mini-batch"), ("DRAWS", "needs seeded draws")):
        if getattr(module, asked, False):
            raise BadInput(f"runner: verl: loss '{name}' {what}, which verl does not give it")
    for knob, value in knobs.items():
        if isinstance(value, list):
            raise BadInput(f"runner: verl: loss.{knob} cannot be a schedule: verl tells a loss no step")
    if isinstance(u.lr, list):
        raise BadInput("runner: verl: update.lr cannot be a schedule of ours; say verl's own under 'verl:'")
    said_of: dict[str, dict[str, Any]] = {
        "seed": {"data.seed": c.seed, f"{ACTOR}data_loader_seed": c.seed, f"{ROLLOUT}seed": c.seed},
        "steps": {"trainer.total_training_steps": c.steps, "trainer.total_epochs": c.steps},
        "prompts_per_step": {"data.train_batch_size": c.prompts_per_step},
        "group_size": {f"{ROLLOUT}n": c.group_size},
        "updates_per_step": {f"{ACTOR}ppo_mini_batch_size": c.prompts_per_step // c.updates_per_step},
        "eval_every": {"trainer.test_freq": c.eval_every or -1},
        "checkpoint_every": {"trainer.save_freq": c.checkpoint_every},
        "model.path": {"actor_rollout_ref.model.path": c.model.path},
        "model.dtype": {f"+{ACTOR}fsdp_config.mixed_precision": {"param_dtype": PRECISION[c.model.dtype]}},
        "model.gradient_checkpointing": {
            "actor_rollout_ref.model.enable_gradient_checkpointing": c.model.gradient_checkpointing
        },
        "rollout.temperature": {f"{ROLLOUT}temperature": r.temperature},
        "rollout.top_p": {f"{ROLLOUT}top_p": r.top_p},
        "rollout.top_k": {f"{ROLLOUT}top_k": r.top_k or -1},
        "rollout.max_tokens": {"data.max_response_length": r.max_tokens},
        "advantage.kind": {"algorithm.norm_adv_by_std_in_grpo": c.advantage.kind == "group"},
        "loss": {
            f"{POLICY_LOSS}_target_": "cegppo.plugins.verl.PolicyLossConfig",
            f"{POLICY_LOSS}loss_mode": PREFIX + name,
            f"+{POLICY_LOSS}knobs": {k: v for k, v in knobs.items() if k not in own},
            **{ACTOR + own[k]: v for k, v in knobs.items() if k in own},
        },
        "update.lr": {f"{OPTIMIZER}lr": u.lr},
        "update.warmup_steps": {f"{OPTIMIZER}lr_warmup_steps": u.warmup_steps},
        "update.weight_decay": {f"{OPTIMIZER}weight_decay": u.weight_decay},
        "update.beta1": {f"{OPTIMIZER}betas": [u.beta1, u.beta2]},
        "update.beta2": {},
        "update.grad_clip": {f"{OPTIMIZER}clip_grad": u.grad_clip or OFF},
        "update.aggregate": {
            f"{ACTOR}loss_agg_mode": AGGREGATE[u.aggregate],
            f"{ACTOR}loss_scale_factor": r.max_tokens,
        },
        "update.micro_batch_tokens": {
            f"{ACTOR}use_dynamic_bsz": True,
            f"{ACTOR}ppo_max_token_len_per_gpu": max(u.micro_batch_tokens, c.data.max_prompt_tokens + r.max_tokens),
        },
        "update.offload_optimizer": {f"{ACTOR}fsdp_config.optimizer_offload": u.offload_optimizer},
        "update.dual_clip": {ACTOR + DUAL_CLIP: u.dual_clip or math.inf},
        "update.kl_coef": {f"{ACTOR}use_kl_loss": u.kl_coef > 0, f"{ACTOR}kl_loss_coef": u.kl_coef},
        "update.kl_estimator": {f"{ACTOR}kl_loss_type": ESTIMATOR[u.kl_estimator]},
        "update.entropy_coef": {f"{ACTOR}entropy_coeff": u.entropy_coef},
    }
    if c.advantage.kind == "gae":
        raise BadInput(
            "runner: verl: advantage.kind=gae: verl's critic has settings of its own; use verl's ppo directly"
        )
    if c.advantage.kind not in ("group", "centred"):
        raise BadInput(f"runner: verl: advantage.kind={c.advantage.kind}: verl's groups take group or centred")
    plain = flatten(Config().to_dict())
    for key, value in flatten(c.to_dict()).items():
        if value != plain.get(key) and not under(key, [*said_of, *NOT_SAID]):
            raise BadInput(
                f"runner: verl cannot do {key}={value}; leave it out, or say it in verl's own keys under 'verl:'"
            )
    made = {key: value for part in said_of.values() for key, value in part.items()}
    return made | {
        "algorithm.adv_estimator": "grpo",
        "data.max_prompt_length": c.data.max_prompt_tokens,
        f"{ACTOR}strategy": "fsdp2",
        "actor_rollout_ref.model.external_lib": "cegppo.plugins.verl_statistics",
        f"{ROLLOUT}name": "vllm",
        f"{ROLLOUT}gpu_memory_utilization": r.vllm.memory_share,
        f"{ROLLOUT}tensor_model_parallel_size": r.vllm.tensor_parallel,
        f"{ROLLOUT}val_kwargs.n": c.eval.k,
        f"{ROLLOUT}val_kwargs.do_sample": True,
        f"{ROLLOUT}val_kwargs.temperature": c.eval.temperature,
        f"{ROLLOUT}val_kwargs.top_p": c.eval.top_p,
        f"{ROLLOUT}val_kwargs.top_k": c.eval.top_k or -1,
        "trainer.n_gpus_per_node": gpus,
        "trainer.project_name": c.experiment,
        "trainer.experiment_name": f"{c.arm}_seed{c.seed}",
        "trainer.default_local_dir": str((c.folder / "checkpoints").resolve()),
        "trainer.logger": ["console", "file"],
        "trainer.resume_mode": "auto",
    }


def check(path: Path, sweep: dict[str, Any]) -> None:
    """The keys of the sweep file at `path` that verl needs, and those that it cannot do with.
    Raises BadInput."""
    for key in ("data.train_files", "data.val_files"):
        if key not in sweep["verl"]:
            raise BadInput(f"{path}: runner: verl: 'verl' lacks {key}: verl reads its problems from parquet files")
    if not sweep.get("gpus"):
        raise BadInput(f"{path}: runner: verl: 'gpus' is missing: how many each machine has")
    if found := [key for key in ("takes_from", "search", "space") if key in sweep]:
        raise BadInput(f"{path}: runner: verl: '{found[0]}' is for runs of this package's own loop")


def command(config: Config, settings: dict[str, Any], gpus: int, log: Path) -> list[str]:
    """What trains the run of `config` by verl, its metrics in file `log`."""
    own = {key: value for key, value in settings.items() if key != "command"}
    path = "+ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH"  # Ray's workers see no variable of ours
    made = items(config, gpus) | {path: str(log.resolve())} | own
    return [*shlex.split(settings.get("command", COMMAND)), *(f"{key}={as_hydra(v)}" for key, v in made.items())]


def as_hydra(value: Any) -> str:
    """`value` as Hydra's command line reads it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(as_hydra(v) for v in value)}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{k}:{as_hydra(v)}' for k, v in value.items())}}}"
    text = str(value)
    if not isinstance(value, str) or re.fullmatch(r"[A-Za-z_/][\w./+-]*", text) and text.lower() not in KEYWORDS:
        return text
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def logs(folder: Path) -> list[Path]:
    """verl's logs of the run in `folder`, in the order in which they were begun."""
    return sorted(folder.glob("verl.*.jsonl"), key=lambda path: int(path.name.split(".")[1]))


def last_metrics(folder: Path, config: Config) -> dict[str, Any]:
    """The last training step that verl has logged, under our names; {} before the first."""
    rows = [row for path in logs(folder) for row in read_lines(path) if "actor/pg_loss" in row["data"]]
    if not rows:
        return {}
    data = rows[-1]["data"]
    known = {ours: data[name] for ours, name in columns(1).items() if isinstance(name, str) and name in data}
    return {"step": rows[-1]["step"], **known}


def refuse_other_run(folder: Path, config: Config) -> None:
    """Raises BadInput when `folder` holds verl's run of another configuration."""
    if not logs(folder) or not (folder / "config.yaml").is_file():
        return
    before, after = read_config(folder).identity(), config.identity()
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            was = f"{key} was {before.get(key)!r}, is now {after.get(key)!r}"
            raise BadInput(f"{folder}: holds another run: {was}; choose another results or arm")


def column_map(folder: Path, config: Config, settings: dict[str, Any]) -> dict[str, Any] | None:
    """foreign.yaml: what the logs so far have of our metrics, and of evaluations; None before the
    first training step."""
    found = {key for path in logs(folder) for row in read_lines(path) for key in row["data"]}
    if "actor/pg_loss" not in found:
        return None
    there = lambda made: {made["of"], made.get("over", made["of"])} if isinstance(made, dict) else {made}
    spec: dict[str, Any] = {
        "format": "verl-jsonl",
        "file": [path.name for path in logs(folder)],
        "columns": {k: made for k, made in columns(config.updates_per_step).items() if there(made) <= found},
    }
    tests = [re.fullmatch(r"val-core/(.+)/[^/]+/mean@(\d+)", key) for key in sorted(found)]
    if known := {test[1]: test for test in tests if test}:
        counts = problems(settings["data.val_files"])
        if missing := known.keys() - counts.keys():
            print(f"verl's evaluations are left out: no '{min(missing)}' in data.val_files", file=sys.stderr)
        else:
            spec["evaluations"] = {name: test[0] for name, test in known.items()}
            spec["k"] = {name: int(test[2]) for name, test in known.items()}
            spec["n"] = {name: counts[name] for name in known}
    return spec


def problems(files: str | list[str]) -> dict[str, int]:
    """{data_source: number of problems} of verl's parquet files; {} where they cannot be read from
    here."""
    import pandas as pd

    try:
        sources = [pd.read_parquet(f, columns=["data_source"]) for f in ([files] if isinstance(files, str) else files)]
    except (OSError, ValueError, KeyError) as error:
        print(f"verl's data.val_files: {said(error)}", file=sys.stderr)
        return {}
    return {str(name): int(count) for name, count in pd.concat(sources)["data_source"].value_counts().items()}


def train(config: Config, settings: dict[str, Any], gpus: int) -> int:
    """Train the run of `config` by verl, from its last checkpoint if there is one; the exit code.
    Raises BadInput."""
    folder = config.folder
    folder.mkdir(parents=True, exist_ok=True)
    held = lock(folder / ".lock", f"{folder}: another live process is writing to it")
    refuse_other_run(folder, config)
    log = folder / f"verl.{len(logs(folder))}.jsonl"
    started = command(config, settings, gpus, log)
    meta = read_meta(folder)
    meta |= {"status": "running", "start": meta.get("start", now()), "runner": "verl"}
    meta["sessions"] = [*meta.get("sessions", []), session() | {"verl": shlex.join(started)}]
    write_whole(folder / "config.yaml", as_yaml(config))
    status = "failed"
    try:
        write_whole(folder / "meta.json", as_page(meta))
        print(shlex.join(started), flush=True)
        code = _ended(started)
        steps = last_metrics(folder, config).get("step", 0)
        if code == 0 and steps < config.steps:
            print(f"verl ended at step {steps} of {config.steps}", file=sys.stderr)
        status = {130: "stopped", 0: "finished" if steps >= config.steps else "failed"}.get(code, "failed")
        return 1 if status == "failed" and code == 0 else code
    finally:
        meta |= {"status": status, "end": now(), "steps": last_metrics(folder, config).get("step", 0)}
        meta["sessions"][-1]["end"] = now()
        if (spec := column_map(folder, config, settings)) is not None:
            write_whole(folder / "foreign.yaml", yaml.safe_dump(spec, sort_keys=False))
        write_whole(folder / "meta.json", as_page(meta))
        held.close()


def _ended(started: Sequence[str]) -> int:
    """Run verl to its end and pass Ctrl-C on to it, which then continues from its last checkpoint
    another time; the exit code, 130 when it was asked to stop."""
    try:
        process = subprocess.Popen(started, env=environment(), preexec_fn=in_the_child)
    except OSError as error:
        raise BadInput(f"runner: verl: {started[0]}: {error.strerror}") from None
    asked = False
    while process.poll() is None:
        try:
            time.sleep(0.2)
        except KeyboardInterrupt:
            asked = True
            process.send_signal(signal.SIGINT)
    return 130 if asked else process.returncode


def main(arguments: Sequence[str]) -> int:
    """Arguments: verl's settings as JSON, GPUs, experiment, key=value …"""
    settings, gpus, experiment, *overrides = arguments
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return train(load(experiment, overrides)[0], json.loads(settings), int(gpus))
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
