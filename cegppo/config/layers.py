"""What a run is: a dataclass tree, filled strictly from files and the command line.

Later wins: defaults here < `include:` files < the method's preset < the experiment file < the
command line. Every value knows where it came from. Whatever cannot be used is a BadInput that names
file, key and the nearest valid name.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import re
import types as pytypes
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .. import losses
from ..problems.grader import Limits
from ..problems.recipe import Recipe
from ..problems.reward import SOURCES, is_rule
from ..types import BadInput

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
# Keys that say where and how long, not what: a folder may be resumed with other values of these.
NOT_IDENTITY = (
    "steps", "results", "run_dir", "arm", "wandb", "checkpoint_every", "diagnostics.every", "diagnostics.max_tokens",
    "grader",
    "model.device", "model.gradient_checkpointing", "model.head_chunk", "update.micro_batch_tokens",
    "update.offload_optimizer",
    "rollout.vllm.memory_share", "rollout.vllm.max_rows", "rollout.vllm.sleep", "rollout.vllm.tensor_parallel",
    "rollout.vllm.max_mismatch",
)  # fmt: skip


@dataclass
class Source:
    """Where problems come from: a reasoning-gym task with its parameters, a local file, or a
    dataset of the Hugging Face hub."""

    name: str = ""  # of the benchmark in tables; default: the task's, the file's or the dataset's name
    task: str | None = None  # reasoning-gym task
    params: dict[str, Any] = field(default_factory=dict)  # its configuration (min_terms, max_digits, …)
    file: str | None = None  # .json, .jsonl or .parquet
    hub: str | None = None  # id of a dataset on the hub, or a folder that `datasets.load_dataset` reads
    subset: str | None = None  # of the hub's dataset, which the hub calls its configuration
    split: str = "train"  # of the hub's dataset
    columns: dict[str, str] = field(
        default_factory=dict
    )  # {problem: …, answer: …}, nested as `a.b`; default: a layout of docs/math.md
    answer_form: str | None = (
        None  # whole | boxed (the last \boxed{…} of the column) | hashes (what follows its last ####)
    )
    weight: float = 1.0  # share in the training mix
    k: int | None = None  # this and what follows: of a benchmark, instead of eval's
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None


@dataclass
class Data:
    train: list[Source] = field(default_factory=list)
    max_prompt_tokens: int = 1024  # longer prompts are counted and skipped
    chat_template: bool = (
        False  # of the model, around training and benchmark problems; else the problem and a line break
    )
    suffix: str = ""  # put after every problem as it stands, so begin it with a space or a line break


@dataclass
class Model:
    path: str = "testbed"  # a folder or hub id for from_pretrained; "testbed": the embedded model, made on first use
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    dtype: str = (
        "float32"  # float32 | bfloat16: of the computation; weights, gradients and optimizer state stay in fp32
    )
    packing: str = (
        "auto"  # auto (on a GPU in bfloat16) | always | never: sequences one after the other instead of padded
    )
    gradient_checkpointing: bool = False  # keep only each layer's input; about a third more computation
    head_chunk: int = 256  # MiB of logits held at a time; more are computed in blocks and again in the backward pass


@dataclass
class VLLM:
    """Of the engine that rollout.engine=vllm starts beside the trainer. docs/rollouts.md."""

    memory_share: float = 0.4  # of the device's memory, for weights and key-value cache; on a CPU for the cache alone
    max_rows: int = 256  # responses decoded at a time; never changes what is sampled
    sleep: bool = True  # give the device's memory back while the trainer works; a CPU cannot, and is left awake
    tensor_parallel: int = 1  # ranks that share one engine; above 1 under torchrun only
    dtype: str = "auto"  # auto (float32 on a CPU, else bfloat16) | float32 | bfloat16 | float16
    max_mismatch: float | None = (
        None  # mismatch/mean above which a run stops; default: 1e-3 if all is float32, else 0.1
    )


@dataclass
class RolloutConfig:
    engine: str = "hf"  # hf (the trainer's own model) | vllm
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    max_tokens: int = 64
    stop: list[str] = field(
        default_factory=list
    )  # a response ends with the token that completes one of these; vllm only
    drop_constant_groups: str = (
        "no"  # no | drop (train on fewer) | refill (sample more prompts until the batch is full)
    )
    prompts_per_round: int | None = (
        None  # sampled at a time when groups are dropped; default: prompts_per_step, which is what trains at most
    )
    max_refills: int = 4  # rounds of sampling that a refill may take at most
    vllm: VLLM = field(default_factory=VLLM)


@dataclass
class Advantage:
    kind: str = "group"  # group | centred | gae
    gamma: float = 1.0  # gae only
    lam: float = 1.0  # gae only
    whiten: bool = True  # gae only


@dataclass
class Update:
    lr: float = 1e-6
    warmup_steps: int = 0
    weight_decay: float = 0.0
    beta1: float = 0.9  # of AdamW, not of CE-GPPO
    beta2: float = 0.999
    grad_clip: float = 1.0
    aggregate: str = "token"  # token | sequence | constant
    micro_batch_tokens: int = 16384  # tokens of one forward pass, padding included; never changes a gradient
    offload_optimizer: bool = (
        False  # AdamW's moments wait in the CPU's memory; does nothing more where the model is there too
    )
    dual_clip: float = 0.0  # 0: off; c > 1: no gradient where A < 0 and ratio > c
    kl_coef: float = 0.0  # to the frozen starting policy
    kl_estimator: str = "k3"  # k1 | k2 | k3
    entropy_coef: float = 0.0
    nll_coef: float = 0.0  # negative log-likelihood of correct responses
    correction: str = (
        "none"  # of sampler against trainer, ρ = π_old / π_sampler: none | truncate (to the bounds) | mask (0 outside)
    )
    correction_level: str = "token"  # token | sequence (ρ is the product over the response)
    correction_low: float = 0.0
    correction_high: float = 2.0


@dataclass
class Critic:
    lr: float = 1e-5
    clip: float = 0.5  # the value may leave its old estimate by at most this much before the loss stops pulling
    warmup_steps: int = 0  # steps in which only the critic learns
    grad_clip: float = 1.0


@dataclass
class Eval:
    k: int = 8  # samples a problem
    size: int = 64  # problems a generated benchmark
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int | None = None  # default: as in training
    seed: int = 1000  # of the samples and of generated benchmarks, the same for every run
    benchmarks: list[Source] = field(
        default_factory=list
    )  # in YAML also NAME or NAME=FILE of experiments/benchmarks/NAME.yaml


@dataclass
class Diagnostics:
    every: int = 10  # steps between ledgers and token records; 0: none. Neither changes what is trained
    classes: str = (
        "probability"  # probability: high means p ≥ threshold | surprisal: high means −log p ≤ entropy of the state
    )
    threshold: float = 0.5
    probe: int = 64  # responses in the ledger's fixed probe batch
    max_tokens: int = 20000  # rows of a token record; above, whole responses are left out at random


@dataclass
class Wandb:
    mode: str | None = None  # online | offline | disabled; default: WANDB_MODE, else offline
    project: str = "cegppo"


@dataclass
class Config:
    experiment: str = ""
    arm: str = ""
    seed: int = 0
    steps: int = 100
    prompts_per_step: int = 64
    group_size: int = 8
    updates_per_step: int = 8
    method: str = "grpo"
    reward: str = "task"  # task | random (a coin; arXiv 2509.26114) | path.py:function, a rule (prompt, text) → [0, 1]
    reward_signal: float = 1.0  # share of responses that are rewarded so; the rest by a coin. 0 is `reward: random`
    reward_values: list[float] = field(default_factory=lambda: [0.0, 1.0])  # of a failed and of a correct response
    overlong_buffer: float = (
        0.0  # share of rollout.max_tokens, at its end, over which the soft overlong punishment grows; 0: off
    )
    eval_every: int = 20  # besides the start and the end; 0: only these
    checkpoint_every: int = 20
    threads: int = 0  # torch threads; 0: what torch chooses
    results: str = "results"
    run_dir: str = ""
    model: Model = field(default_factory=Model)
    testbed: Recipe = field(default_factory=Recipe)  # what the embedded model is made from; for model.path=testbed
    data: Data = field(default_factory=Data)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    advantage: Advantage = field(default_factory=Advantage)
    loss: dict[str, Any] = field(default_factory=lambda: {"name": "ppo_clip"})
    update: Update = field(default_factory=Update)
    critic: Critic = field(default_factory=Critic)
    eval: Eval = field(default_factory=Eval)
    grader: Limits = field(default_factory=Limits)  # of math-verify's workers: timeout, memory_mb, workers
    diagnostics: Diagnostics = field(default_factory=Diagnostics)
    wandb: Wandb = field(default_factory=Wandb)

    def loss_knobs(self, step: int) -> dict[str, float]:
        """The selected loss's knobs in step `step` (0 the first), schedules looked up."""
        return {k: knob_at(v, step, self.steps) for k, v in self.loss.items() if k != "name"}

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return (
            Path(self.run_dir) if self.run_dir else Path(self.results) / self.experiment / self.arm / f"seed{self.seed}"
        )

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def identity(self) -> dict[str, Any]:
        """The flattened values that make this run this run: equal for two configurations iff one
        may resume the other."""
        made = {k: v for k, v in _flatten(self.to_dict()).items() if not under(k, NOT_IDENTITY)}
        for key, value in self.loss.items():
            if isinstance(value, list):  # by steps: a share of the run is another schedule in a longer run
                made[f"loss.{key}"] = [[first_step(when, self.steps), v] for when, v in value]
        return made


CHOICES = {
    "reward": SOURCES,
    "model.dtype": ("float32", "bfloat16"),
    "model.packing": ("auto", "always", "never"),
    "rollout.drop_constant_groups": ("no", "drop", "refill"),
    "rollout.engine": ("hf", "vllm"),
    "rollout.vllm.dtype": ("auto", "float32", "bfloat16", "float16"),
    "diagnostics.classes": ("probability", "surprisal"),
    "advantage.kind": ("group", "centred", "gae"),
    "update.aggregate": ("token", "sequence", "constant"),
    "update.kl_estimator": ("k1", "k2", "k3"),
    "update.correction": ("none", "truncate", "mask"),
    "update.correction_level": ("token", "sequence"),
    "wandb.mode": (None, "online", "offline", "disabled"),
}
AT_LEAST = {
    "steps": 1, "prompts_per_step": 1, "group_size": 1, "updates_per_step": 1, "eval_every": 0, "checkpoint_every": 1,
    "threads": 0, "overlong_buffer": 0, "rollout.max_tokens": 1, "rollout.top_k": 0, "rollout.max_refills": 1,
    "rollout.vllm.max_rows": 1, "rollout.vllm.tensor_parallel": 1, "update.correction_low": 0, "model.head_chunk": 1,
    "update.warmup_steps": 0, "update.lr": 0, "update.weight_decay": 0, "update.micro_batch_tokens": 1,
    "update.dual_clip": 0,
    "update.kl_coef": 0, "update.entropy_coef": 0, "update.nll_coef": 0, "update.grad_clip": 0, "critic.lr": 0,
    "critic.clip": 0,
    "critic.warmup_steps": 0, "critic.grad_clip": 0, "eval.k": 1, "eval.size": 1, "eval.top_k": 0,
    "data.max_prompt_tokens": 1,
    "seed": 0, "eval.seed": 0, "diagnostics.every": 0, "diagnostics.probe": 1, "diagnostics.max_tokens": 1,
    "grader.workers": 0, "grader.memory_mb": 256,
}  # fmt: skip
ANSWER_FORMS = ("whole", "boxed", "hashes")
SAMPLING = ("k", "temperature", "top_p", "max_tokens")  # keys of eval that a benchmark may have of its own
# Exclusive; knobs named otherwise must be at least 0.
LOSS_BOUNDS = {"eps_low": (0.0, 1.0), "eps_high": (0.0, None), "seq_eps_low": (0.0, 1.0), "seq_eps_high": (0.0, None)}


def nearest(name: str, valid: typing.Iterable[str], prefix: str = "") -> str:
    """'; did you mean …?' for an unknown name; `prefix` is said before each valid one."""
    valid = sorted(valid)
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"; did you mean '{prefix}{close[0]}'?" if close else f"; there are: {', '.join(prefix + v for v in valid)}"


def first_step(when: int | str, steps: int) -> int:
    """The step from which an entry of a schedule holds: a step, or a share of the run such as
    "58%"."""
    return when if isinstance(when, int) else round(float(when.removesuffix("%")) / 100 * steps)


def knob_at(value: Any, step: int, steps: int) -> float:
    """A loss's knob in step `step` of `steps`: `value` itself, or the last entry of a schedule
    [[when, value], …] that has begun."""
    return value if not isinstance(value, list) else [v for when, v in value if first_step(when, steps) <= step][-1]


def _schedule_problem(value: list, steps: int) -> str | None:
    """What is wrong with a schedule; None when nothing is."""
    pairs = all(isinstance(entry, list) and len(entry) == 2 for entry in value)
    share = lambda when: isinstance(when, str) and re.fullmatch(r"\d+(\.\d+)?%", when)
    if (
        not value
        or not pairs
        or not all(share(w) or (isinstance(w, int) and not isinstance(w, bool)) for w, _ in value)
    ):
        return "a schedule is a list of [step, value] or [share%, value], such as [[0, 0.0], [58%, 0.5]]"
    starts = [first_step(when, steps) for when, _ in value]
    if any(isinstance(when, str) and float(when[:-1]) > 100 for when, _ in value):
        return "a share of the run is at most 100%"
    if starts[0] != 0 or starts != sorted(set(starts)):
        return f"a schedule begins at 0 and goes on, it does not begin at steps {starts}"
    return None


def methods() -> list[str]:
    return sorted(p.stem for p in (EXPERIMENTS / "method").glob("*.yaml"))


def benchmarks() -> list[str]:
    return sorted(p.stem for p in (EXPERIMENTS / "benchmarks").glob("*.yaml"))


def load(path: str | Path, overrides: list[str] = ()) -> tuple[Config, dict[str, str]]:
    """The configuration of experiment file `path` with `key=value` overrides, and the origin of
    each of its values.

    Raises BadInput for anything that cannot be used.
    """
    path = Path(path)
    named = [item for item in overrides if re.fullmatch(r"model=[^{\[].*", item)]  # a model for a dry run, below
    cli = parse_overrides([item for item in overrides if item not in named])
    layers = _file_layers(path)
    method = next(
        (layer["method"] for _, layer in [("command line", cli), *reversed(layers)] if "method" in layer), None
    )
    method = Config.method if method is None else method
    if method not in methods():
        raise BadInput(f"unknown method '{method}'{nearest(str(method), methods())}")
    preset = _file_layers(EXPERIMENTS / "method" / f"{method}.yaml")
    includes, own = layers[:-1], layers[-1:]
    base = [*includes, *preset, *own]
    for item in named:  # model=NAME: a small model in the place of the experiment's
        name = item.removeprefix("model=")
        known = sorted(p.stem for p in (EXPERIMENTS / "model").glob("*.yaml"))
        if name not in known:
            raise BadInput(
                f"command line: model={name}: no experiments/model/{name}.yaml{nearest(name, known)} (a path is"
                " model.path=…)"
            )
        base += _file_layers(EXPERIMENTS / "model" / f"{name}.yaml")
    config, origin = _resolve([*base, ("command line", cli)])
    config.experiment = config.experiment or path.stem
    if not config.arm:
        plain, _ = _resolve([*base, ("command line", {"method": method})])
        changed = {
            k: v
            for k, v in config.identity().items()
            if plain.identity().get(k) != v and k not in ("seed", "experiment")
        }
        config.arm = ",".join([method, *(f"{k}={_short(v)}" for k, v in changed.items())])
    return config, origin


def _short(value: Any) -> str:
    """A value as part of a folder's name."""
    text = str(value).replace("/", "_")
    return text if len(text) <= 40 else digest(value)


def resolved(path: str | Path, overrides: list[str] = ()) -> Config:
    """The configuration that a run's `config.yaml` recorded (no includes, no preset: it is
    complete), with overrides."""
    return _resolve([(str(path), read_yaml(Path(path))), ("command line", parse_overrides(overrides))])[0]


def as_yaml(config: Config) -> str:
    """The whole configuration, as a run's config.yaml records it and `resolved` reads it."""
    return yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True)


def of_overrides(overrides: list[str]) -> Config:
    """The defaults with `key=value` overrides, where there is no experiment. Raises BadInput."""
    return _resolve([("command line", parse_overrides(overrides))])[0]


def explain(config: Config, origin: dict[str, str]) -> str:
    """The resolved configuration, one `key: value   # origin` a line."""
    rows = [(k, json.dumps(v, ensure_ascii=False)) for k, v in _flatten(config.to_dict()).items()]
    derived = {"experiment": "file name", "arm": "derived"}
    width = max(len(f"{k}: {v}") for k, v in rows if len(v) < 60)
    return "\n".join(f"{f'{k}: {v}':<{width}}   # {origin.get(k) or derived.get(k, 'default')}" for k, v in rows)


def digest(value: Any) -> str:
    """A short stable hash of a JSON-like value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]


def under(key: str, names: typing.Iterable[str]) -> bool:
    """Whether `key` is one of `names` or lies in a section that is."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def read_yaml(path: Path) -> dict:
    """The mapping in a YAML file, {} for an empty one. Raises BadInput."""
    if not path.is_file():
        siblings = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise BadInput(f"{path}: no such file" + (nearest(path.name, siblings) if siblings else ""))
    try:  # OmegaConf's loader, so that 1e-5 is a number here as on the command line
        tree = OmegaConf.to_container(OmegaConf.create(path.read_text(encoding="utf-8") or "{}"))
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise BadInput(
            f"{path}:{where} not valid YAML ({getattr(error, 'problem', None) or type(error).__name__})"
        ) from None
    if not isinstance(tree, dict) or list(tree.values()) == [None] and ":" not in path.read_text(encoding="utf-8"):
        raise BadInput(f"{path}: expected `key: value` lines")
    return tree


def _file_layers(path: Path, seen: tuple[Path, ...] = ()) -> list[tuple[str, dict]]:
    """(origin, tree) of `path` and what it includes, included first."""
    if path.resolve() in seen:
        raise BadInput(f"{path}: includes itself")
    tree = read_yaml(path)
    includes = tree.pop("include", None) or []
    layers = []
    includes = [includes] if isinstance(includes, str) else includes
    if not isinstance(includes, list) or not all(isinstance(name, str) for name in includes):
        raise BadInput(f"{path}: 'include' takes a file name or a list of them, not {includes!r}")
    for name in includes:
        layers += _file_layers(path.parent / name, (*seen, path.resolve()))
    return [*layers, (str(path), tree)]


def parse_overrides(overrides: typing.Iterable[str]) -> dict:
    """`key=value` items as a nested mapping; values are read as YAML. Raises BadInput."""
    for item in overrides:
        if "=" not in item or item.startswith("="):
            raise BadInput(f"command line: '{item}' is not key=value")
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)))
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise BadInput(f"command line: {str(error).splitlines()[0]}") from None


def _named_benchmark(item: str, where: str) -> list[dict]:
    """The sources that NAME of `eval.benchmarks` stands for; NAME=FILE reads a local file
    instead, its layout found by itself."""
    name, given, file = item.partition("=")
    if name not in benchmarks():
        raise BadInput(f"{where}: eval.benchmarks: unknown benchmark '{name}'{nearest(name, benchmarks())}")
    path = EXPERIMENTS / "benchmarks" / f"{name}.yaml"
    items = read_yaml(path)["eval"]["benchmarks"]
    made = [source for i in items for source in (_named_benchmark(i, str(path)) if isinstance(i, str) else [i])]
    if given and len(made) > 1:
        raise BadInput(f"{where}: eval.benchmarks: '{name}' stands for {len(made)} benchmarks and takes no file")
    kept = ("name", *SAMPLING)
    return [{**{k: v for k, v in made[0].items() if k in kept}, "file": file}] if given else made


def _with_named_benchmarks(tree: dict, where: str) -> dict:
    """`tree` with the names in its `eval.benchmarks` written out; what its `eval` says itself
    stands above their own settings."""
    section = tree.get("eval")
    if not isinstance(section, dict) or not isinstance(section.get("benchmarks"), list):
        return tree
    said = {key for key in SAMPLING if key in section}
    made = []
    for item in section["benchmarks"]:
        named = isinstance(item, str)
        made += (
            [{k: v for k, v in s.items() if k not in said} for s in _named_benchmark(item, where)] if named else [item]
        )
    return {**tree, "eval": {**section, "benchmarks": made}}


def _resolve(layers: list[tuple[str, dict]]) -> tuple[Config, dict[str, str]]:
    origin: dict[str, str] = {}
    merged = OmegaConf.structured(Config)
    loss: dict[str, Any] = dict(merged.loss)
    for where, tree in layers:
        tree = _with_named_benchmarks(tree, where)
        _check_keys(tree, Config, where)
        tree = dict(tree)
        said = tree.get("eval", {})
        for (
            key
        ) in SAMPLING:  # later wins: eval.k here stands above the k that a benchmark of an earlier layer has of its own
            for source in merged.eval.benchmarks if key in said and "benchmarks" not in said else []:
                source[key] = None
        if "loss" in tree:  # choosing another loss drops the knobs of the one before
            given = tree.pop("loss") or {}
            if not isinstance(given, dict):
                raise BadInput(f"{where}: 'loss' takes keys (loss.name=…), not a single value")
            if "name" in given and given["name"] != loss["name"]:
                loss = {}
                origin = {k: v for k, v in origin.items() if not k.startswith("loss.")}
            loss |= given
            origin |= {f"loss.{k}": where for k in given}
        try:
            merged = OmegaConf.merge(merged, tree)
        except OmegaConfBaseException as error:
            key = getattr(error, "full_key", None) or "?"
            raise BadInput(f"{where}: {key}: {str(error).splitlines()[0]}") from None
        origin |= {k: where for k in _flatten(tree)}
    try:
        merged.loss = loss
        config: Config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "?"
        raise BadInput(f"{origin.get(key, 'configuration')}: {key}: {str(error).splitlines()[0]}") from None
    _check_loss(config, origin)
    _check_values(config, origin)
    return config, origin


def _dataclass_of(annotation: Any) -> type | None:
    """The dataclass that `annotation` is, or that its list holds."""
    if typing.get_origin(annotation) in (list, typing.Union, pytypes.UnionType):
        return next(filter(None, map(_dataclass_of, typing.get_args(annotation))), None)
    return annotation if dataclasses.is_dataclass(annotation) else None


def _check_keys(tree: dict, schema: type, where: str, prefix: str = "") -> None:
    known = typing.get_type_hints(schema)
    for key, value in tree.items():
        if key not in known:
            raise BadInput(f"{where}: unknown key '{prefix}{key}'{nearest(str(key), known, prefix)}")
        if value == "???":  # OmegaConf's word for "still to be given"; it would silently mean the default
            raise BadInput(f"{where}: '{prefix}{key}' has no value")
        inner = _dataclass_of(known[key])
        if typing.get_origin(known[key]) is dict and key != "loss" and not isinstance(value, dict):
            raise BadInput(f"{where}: '{prefix}{key}' takes keys, not {value!r}")
        if inner is None:
            continue
        is_list = typing.get_origin(known[key]) is list
        if is_list != isinstance(value, list) or not isinstance(value, (dict, list)):
            raise BadInput(f"{where}: '{prefix}{key}' takes {'a list' if is_list else 'keys'}, not {value!r}")
        for item in value if is_list else [value]:
            if not isinstance(item, dict):
                raise BadInput(f"{where}: '{prefix}{key}' takes a list of keys, not {item!r}")
            _check_keys(item, inner, where, f"{prefix}{key}.")


def _check_loss(config: Config, origin: dict[str, str]) -> None:
    name = config.loss.get("name")
    where = origin.get("loss.name", "default")
    if name not in losses.names():
        raise BadInput(f"{where}: unknown loss '{name}'{nearest(str(name), losses.names())}")
    knobs = {f.name: f for f in dataclasses.fields(losses.load(name).Params)}
    for key, value in config.loss.items():
        if key == "name":
            continue
        where = origin.get(f"loss.{key}", "default")
        if key not in knobs:
            hint = nearest(key, knobs, "loss.") if knobs else "; it has no knobs"
            raise BadInput(f"{where}: loss '{name}' has no knob 'loss.{key}'{hint}")
        kind = knobs[key].type
        if isinstance(value, list) and (problem := _schedule_problem(value, config.steps)):
            raise BadInput(f"{where}: loss.{key}: {problem}")
        low, high = LOSS_BOUNDS.get(key, (None, None))
        for number in [v for _, v in value] if isinstance(value, list) else [value]:
            if isinstance(number, bool) or not isinstance(number, (int, float)):
                raise BadInput(f"{where}: loss.{key} takes a {getattr(kind, '__name__', kind)}, not {number!r}")
            if not math.isfinite(number):
                raise BadInput(f"{where}: loss.{key} must be finite, not {number}")
            if number < 0 or (low is not None and number <= low) or (high is not None and number >= high):
                rule = "at least 0" if low is None else f"above {low:g}" + (f" and below {high:g}" if high else "")
                raise BadInput(f"{where}: loss.{key} must be {rule}, not {number}")
    defaults = dataclasses.asdict(losses.load(name).Params())
    cast = lambda key, value: (
        [[w, cast(key, v)] for w, v in value] if isinstance(value, list) else type(defaults[key])(value)
    )
    typed = {k: cast(k, v) for k, v in config.loss.items() if k != "name"}
    config.loss = {"name": name, **defaults, **typed}


def _check_values(config: Config, origin: dict[str, str]) -> None:
    flat = _flatten(config.to_dict())

    def bad(key: str, rule: str) -> BadInput:
        return BadInput(f"{origin.get(key, 'default')}: {key} {rule}, not {flat[key]!r}")

    for key, value in flat.items():
        if any(isinstance(v, float) and not math.isfinite(v) for v in (value if isinstance(value, list) else [value])):
            raise bad(key, "must be finite")

    for key, valid in CHOICES.items():
        if flat[key] not in valid and not (key == "reward" and is_rule(config.reward)):
            hint = nearest(str(flat[key]), [v for v in valid if v])
            raise BadInput(f"{origin.get(key, 'default')}: {key}: unknown value '{flat[key]}'{hint}")
    for key, least in AT_LEAST.items():
        if not flat[key] >= least:
            raise bad(key, f"must be at least {least}")
    if config.eval.max_tokens is not None and config.eval.max_tokens < 1:
        raise bad("eval.max_tokens", "must be at least 1 (leave it out for rollout.max_tokens)")
    for section in ("rollout", "eval"):
        if not flat[f"{section}.temperature"] > 0:
            raise bad(f"{section}.temperature", "must be above 0")
        if not 0 < flat[f"{section}.top_p"] <= 1:
            raise bad(f"{section}.top_p", "must be in (0, 1]")
    if not 0 <= config.reward_signal <= 1:
        raise bad("reward_signal", "must be in [0, 1]")
    if config.reward == "random" and config.reward_signal not in (0, 1):
        raise bad("reward_signal", "needs a reward that says something; reward: random is reward_signal: 0")
    if found := config.testbed.problem():
        key, rule = found
        raise BadInput(f"{origin.get(f'testbed.{key}', 'default')}: testbed.{key} {rule}")
    if not config.grader.timeout > 0:
        raise bad("grader.timeout", "must be above 0")
    r = config.rollout
    if not 0 < r.vllm.memory_share < 1:
        raise bad("rollout.vllm.memory_share", "must be above 0 and below 1")
    if r.vllm.max_mismatch is not None and not r.vllm.max_mismatch > 0:
        raise bad("rollout.vllm.max_mismatch", "must be above 0 (leave it out for the default)")
    if r.stop and r.engine != "vllm":
        raise bad("rollout.stop", "needs rollout.engine=vllm")
    if not all(r.stop):
        raise bad("rollout.stop", "must not hold an empty string")
    if (
        r.engine == "vllm" and r.temperature != 1 and (r.top_p < 1 or r.top_k)
    ):  # neither of its two ways to report them fits
        raise bad(
            "rollout.temperature",
            "must be 1 with top_p or top_k: vllm reports no log-probabilities after the one, before the other",
        )
    if config.update.correction_high <= config.update.correction_low:
        raise bad("update.correction_high", f"must be above update.correction_low={config.update.correction_low}")
    for key in ("update.beta1", "update.beta2"):
        if not 0 <= flat[key] < 1:
            raise bad(key, "must be in [0, 1)")
    for key in ("advantage.gamma", "advantage.lam", "diagnostics.threshold"):
        if not 0 <= flat[key] <= 1:
            raise bad(key, "must be in [0, 1]")
    if 0 < config.update.dual_clip <= 1:
        raise bad("update.dual_clip", "must be 0 (off) or above 1")
    if len(config.reward_values) != 2 or config.reward_values[0] >= config.reward_values[1]:
        raise bad("reward_values", "must be [failed, correct] with failed < correct")
    if config.overlong_buffer >= 1:
        raise bad("overlong_buffer", "is a share of rollout.max_tokens and must be below 1")
    r = config.rollout
    if r.prompts_per_round is not None and (
        r.drop_constant_groups == "no" or r.prompts_per_round < config.prompts_per_step
    ):
        raise bad(
            "rollout.prompts_per_round", "needs rollout.drop_constant_groups, and at least prompts_per_step prompts"
        )
    if config.group_size == 1 and config.advantage.kind != "gae":
        raise bad("group_size", f"must be at least 2 with advantage.kind={config.advantage.kind}")
    if config.advantage.kind == "gae" and config.rollout.drop_constant_groups != "no" and config.group_size == 1:
        raise bad("group_size", "must be at least 2 to tell constant groups")
    rows = config.prompts_per_step * config.group_size
    if rows % config.updates_per_step:
        raise bad("updates_per_step", f"must divide prompts_per_step × group_size = {rows}")
    for key, sources in (("data.train", config.data.train), ("eval.benchmarks", config.eval.benchmarks)):
        for source in sources:
            where = origin.get(key, "default")
            _check_source(source, f"{where}: {key}: ", key == "eval.benchmarks")
        twice = {s.name for s in sources if sum(t.name == s.name for t in sources) > 1}
        if twice:
            raise BadInput(f"{origin.get(key, 'default')}: {key}: two sources are named '{sorted(twice)[0]}'")


def _check_source(source: Source, where: str, benchmark: bool) -> None:
    given = [v for v in (source.task, source.file, source.hub) if v is not None]
    if len(given) != 1:
        raise BadInput(f"{where}each source names either a task or a file or a dataset of the hub")
    source.name = source.name or source.task or Path(source.file or source.hub).stem
    if not 0 < source.weight < math.inf:
        raise BadInput(f"{where}weight must be above 0, not {source.weight}")
    strange = sorted(set(source.columns) - {"problem", "answer"})
    if strange:
        raise BadInput(f"{where}unknown column '{strange[0]}'{nearest(strange[0], ('problem', 'answer'))}")
    if source.columns and len(source.columns) < 2:
        raise BadInput(f"{where}columns names both 'problem' and 'answer'")
    if source.answer_form is not None and source.answer_form not in ANSWER_FORMS:
        raise BadInput(
            f"{where}answer_form: unknown value '{source.answer_form}'{nearest(source.answer_form, ANSWER_FORMS)}"
        )
    own = {key: getattr(source, key) for key in SAMPLING if getattr(source, key) is not None}
    if own and not benchmark:
        raise BadInput(f"{where}'{next(iter(own))}' is for benchmarks; training samples by rollout.* and group_size")
    for key, value in own.items():
        if not 0 < value < math.inf or (key == "top_p" and value > 1):
            raise BadInput(
                f"{where}{key} of '{source.name}' must be {'in (0, 1]' if key == 'top_p' else 'above 0'}, not {value}"
            )
