"""What a run can be told: every key with its type, default, meaning and limits."""

import dataclasses
import types as pytypes
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from ..knobs import first_step
from ..types import NO_K1, AnswerForm, knob
from .recipe import Recipe

# Keys that say where and how long, not what: a folder may be resumed with other values of these.
NOT_IDENTITY = (
    "steps", "results", "run_dir", "arm", "report", "wandb", "tensorboard", "checkpoint_every", "checkpoint_keep",
    "diagnostics.every", "diagnostics.max_tokens", "diagnostics.parts", "diagnostics.influence_tokens", "grader",
    "model.device", "model.gradient_checkpointing", "model.head_chunk", "update.micro_batch_tokens",
    "update.offload_optimizer",
    "rollout.vllm.memory_share", "rollout.vllm.max_rows", "rollout.vllm.sleep", "rollout.vllm.tensor_parallel",
    "rollout.vllm.max_mismatch",
)  # fmt: skip
SCHEDULES = ("update.lr", "critic.lr")  # keys besides a loss's knobs that may change over a run
LEDGER = ("diagnostics.every", "diagnostics.influence_tokens")  # keys of those that the ledger's numbers rest on
SAMPLING = ("k", "temperature", "top_p", "max_tokens")  # keys of eval that a benchmark may have of its own
# Values that a key does not take any more, and why.
GONE_VALUES = {("update.kl_estimator", "k1"): NO_K1}
# Knobs of a loss that had another name when runs were recorded: {loss: {old name: name}}.
RENAMED_KNOBS = {"gspo": {"seq_eps_low": "eps_low", "seq_eps_high": "eps_high"}}


@dataclass
class Source:
    """Where problems come from: a reasoning-gym task with its parameters, a local file, or a
    dataset of the Hugging Face hub."""

    name: str = knob("", "of the benchmark in tables; default: the task's, the file's or the dataset's name")
    task: str | None = knob(None, "reasoning-gym task")
    params: dict[str, Any] = knob({}, "its configuration (min_terms, max_digits, …)")
    file: str | None = knob(None, ".json, .jsonl or .parquet")
    hub: str | None = knob(None, "id of a dataset on the hub, or a folder that `datasets.load_dataset` reads")
    subset: str | None = knob(None, "of the hub's dataset, which the hub calls its configuration")
    split: str = knob("train", "of the hub's dataset")
    columns: dict[str, str] = knob({}, "{problem: …, answer: …}, nested as `a.b`; default: a layout of docs/math.md")
    answer_form: Literal["whole", "boxed", "hashes"] | None = knob(
        None, "the column as it is | the last \\boxed{…} of it | what follows its last ####"
    )
    verifier: str = knob(
        "answer",
        "answer: the final answer, or the task's own scorer | code: tests, in a sandbox | instructions: of IFEval and"
        " IFBench | path.py:function, a rule that says 1 of what is right | none: nobody, and no answer is needed."
        " docs/domains.md",
    )
    weight: float = knob(1.0, "share in the training mix", above=0)
    # Of a benchmark, instead of eval's:
    k: int | None = knob(None, "of a benchmark, instead of eval.k", above=0)
    temperature: float | None = knob(None, "of a benchmark, instead of eval.temperature", above=0)
    top_p: float | None = knob(None, "of a benchmark, instead of eval.top_p", above=0, most=1)
    max_tokens: int | None = knob(None, "of a benchmark, instead of eval.max_tokens", above=0)


@dataclass
class Data:
    train: list[Source] = knob([], "the mix of problems that a run trains on")
    max_prompt_tokens: int = knob(
        1024,
        "longer prompts are counted and skipped; with a response no more than the model's positions, to which the"
        " default gives way",
        least=1,
    )
    chat_template: bool = knob(
        False, "of the model, around training and benchmark problems; else the problem and a line break"
    )
    final_answer: AnswerForm = knob(
        "boxed",
        "where a response has it: the last \\boxed{…} | its last line | its last number; the latter for small models",
    )
    bos: Literal["auto", "always", "never"] = knob(
        "auto",
        "the beginning-of-sequence token before a prompt; auto: where the tokenizer puts it before plain text, and"
        " where the chat template brings it",
    )
    suffix: str = knob("", "put after every problem as it stands, so begin it with a space or a line break")


@dataclass
class Lora:
    """Low-rank adapters that train beside frozen weights; needs [lora]. docs/lora.md."""

    rank: int = knob(0, "of the adapters; 0: none, and all weights train", least=0, most=4096)
    alpha: float = knob(16.0, "they are added times alpha / rank", above=0)
    targets: list[str] = knob([], "names of the linear layers that get one (q_proj, …); default: all but the head")


@dataclass
class Model:
    path: str = knob(
        "testbed", 'a folder or hub id for from_pretrained; "testbed": the embedded model, made on first use'
    )
    device: str = knob("auto", "auto | cpu | cuda | cuda:N")
    dtype: Literal["float32", "bfloat16"] = knob(
        "float32", "of the computation; weights, gradients and optimizer state stay in fp32"
    )
    packing: Literal["auto", "always", "never"] = knob(
        "auto",
        "answers one after the other instead of padded; auto: where a trial gives the same numbers, on a GPU in"
        " bfloat16 all of a pass, on a CPU in bins",
    )
    gradient_checkpointing: bool = knob(False, "keep only each layer's input; about a third more computation")
    head_chunk: int = knob(
        256, "MiB of logits held at a time; more are computed in blocks and again in the backward pass", least=1
    )
    lora: Lora = field(default_factory=Lora)


@dataclass
class VLLM:
    """Of the engine that rollout.engine=vllm starts beside the trainer. docs/rollouts.md."""

    memory_share: float = knob(
        0.4, "of the device's memory, for weights and key-value cache; on a CPU for the cache alone", above=0, below=1
    )
    max_rows: int = knob(256, "responses decoded at a time; never changes what is sampled", least=1)
    sleep: bool = knob(True, "give the device's memory back while the trainer works; a CPU cannot, and is left awake")
    tensor_parallel: int = knob(1, "ranks that share one engine; above 1 under torchrun only", least=1)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = knob("auto", "auto: float32 on a CPU, else bfloat16")
    max_mismatch: float | None = knob(
        None, "mismatch/mean above which a run stops; default: 1e-3 if all is float32, else 0.1", above=0
    )


@dataclass
class RolloutConfig:
    engine: Literal["hf", "vllm"] = knob("hf", "hf: the trainer's own model")
    temperature: float = knob(1.0, "the logits are divided by it", above=0)
    top_p: float = knob(1.0, "share of the probability that is sampled from; 1: all of it", above=0, most=1)
    top_k: int = knob(0, "most probable tokens that are sampled from; 0: off", least=0)
    max_tokens: int = knob(64, "of a response; a longer one is cut there", least=1, most=2**24)
    stop: list[str] = knob(
        [], "a response ends with the token that completes one of these, besides the model's own ends"
    )
    drop_constant_groups: Literal["no", "drop", "refill"] = knob(
        "no", "drop: train on fewer; refill: sample more prompts until the batch is full"
    )
    prompts_per_round: int | None = knob(
        None,
        "sampled at a time when groups are dropped; default: prompts_per_step, which is what trains at most",
    )
    old_logprobs: Literal["auto", "recompute"] = knob(
        "auto",
        "auto: the sampler's own where it computes as the trainer does (hf, float32) and one response in 16,"
        " computed again, agrees to 1e-5 nats on average and 1e-3 at most; recompute: all of them again",
    )
    staleness: int = knob(
        0,
        "age of the sampler's weights in steps; the ratio is then against them, with update.correction against the"
        " weights that start the step, and ρ corrects for the age. docs/rollouts.md",
        least=0,
        most=1024,
    )
    max_refills: int = knob(4, "rounds of sampling that a refill may take at most", least=1)
    vllm: VLLM = field(default_factory=VLLM)


@dataclass
class Advantage:
    kind: Literal["group", "centred", "batch", "quantile", "none", "gae"] = knob(
        "group",
        "reward less its group's mean, over the group's deviation | not divided | over the batch's deviation | reward"
        " less its group's quantile, over the group's deviation | the reward itself | from a critic",
    )
    quantile: float = knob(0.4, "the baseline's, in the group; quantile only", above=0, below=1)
    gamma: float = knob(1.0, "discount; gae only", least=0, most=1)
    lam: float = knob(1.0, "λ; gae only", least=0, most=1)
    whiten: bool = knob(True, "to mean 0 and deviation 1 over the batch; gae only")
    soft: float = knob(0.0, "α of the soft policy gradient: the entropy to come is earned too; 0: off", least=0)
    polarity: float = knob(
        1.0, "largest factor on tokens that raise the entropy, or on those that lower it, for a drift; 1: off", least=1
    )
    polarity_drift: float = knob(
        0.0, "the drift to be had, as a share of what both kinds of tokens do together", least=-1, most=1
    )


@dataclass
class Update:
    lr: float | list[Any] = knob(
        1e-6, "learning rate of AdamW, or its schedule, as a knob of a loss: [[0, 1e-6], [100%, 0.0, cosine]]",
        least=0, most=10,
    )  # fmt: skip
    warmup_steps: int = knob(0, "steps in which the learning rate rises to lr, or to its schedule", least=0)
    weight_decay: float = knob(0.0, "of AdamW", least=0)
    beta1: float = knob(0.9, "of AdamW, not of CE-GPPO", least=0, below=1)
    beta2: float = knob(0.999, "of AdamW, not of CE-GPPO", least=0, below=1)
    grad_clip: float = knob(1.0, "largest norm of the gradient", least=0)
    aggregate: Literal["token", "sequence", "constant"] = knob(
        "token", "of token losses: mean over tokens | over responses of their mean | sum over a constant"
    )
    micro_batch_tokens: int = knob(
        16384, "tokens of one forward pass, padding included; never changes a gradient", least=1
    )
    offload_optimizer: bool = knob(
        False, "AdamW's moments wait in the CPU's memory; does nothing more where the model is there too"
    )
    on_nonfinite: Literal["stop", "skip"] = knob(
        "stop", "a gradient that is not finite: end the run | leave that update out and count it. Its batch is kept"
    )
    dual_clip: float = knob(0.0, "0: off; c > 1: no gradient where A < 0 and ratio > c", least=0)
    kl_coef: float = knob(0.0, "of the divergence from the frozen starting policy", least=0)
    kl_estimator: Literal["k2", "k3"] = knob(
        "k3", "of that divergence, from the sampled token; k1 is a metric, and its gradient as a loss is noise"
    )
    entropy_coef: float = knob(0.0, "of the entropy bonus", least=0)
    nll_coef: float = knob(0.0, "of the negative log-likelihood of correct responses", least=0)
    correction: Literal["none", "truncate", "mask"] = knob(
        "none", "of sampler against trainer, ρ = π_old / π_sampler: none | to the bounds | 0 outside"
    )
    correction_level: Literal["token", "sequence"] = knob("token", "sequence: ρ is the product over the response")
    correction_low: float = knob(0.0, "lower bound of ρ", least=0)
    correction_high: float = knob(2.0, "upper bound of ρ")


@dataclass
class Critic:
    lr: float | list[Any] = knob(1e-5, "learning rate of its AdamW, or its schedule", least=0, most=10)
    clip: float = knob(
        0.5, "the value may leave its old estimate by at most this much before the loss stops pulling", least=0
    )
    warmup_steps: int = knob(0, "steps in which only the critic learns", least=0)
    grad_clip: float = knob(1.0, "largest norm of the gradient", least=0)


@dataclass
class Eval:
    k: int = knob(8, "samples a problem", least=1, most=2**20)
    size: int = knob(
        64, "problems a generated benchmark; files and datasets have their own number", least=1, most=2**20
    )
    limit: int | None = knob(None, "problems of any benchmark at most, the first ones; default: all", least=1)
    temperature: float = knob(1.0, "as in rollout", above=0)
    top_p: float = knob(1.0, "as in rollout", above=0, most=1)
    top_k: int = knob(0, "as in rollout; 0: off", least=0)
    max_tokens: int | None = knob(None, "default: as in training", least=1)
    seed: int = knob(1000, "of the samples and of generated benchmarks, the same for every run", least=0)
    benchmarks: list[Source] = knob([], "in YAML also NAME or NAME=FILE of experiments/benchmarks/NAME.yaml")


@dataclass
class Diagnostics:
    every: int = knob(10, "steps between ledgers and token records; 0: none. Neither changes what is trained", least=0)
    classes: Literal["probability", "surprisal"] = knob(
        "probability", "high means p ≥ threshold | high means −log p ≤ entropy of the state"
    )
    threshold: float = knob(0.5, "of diagnostics.classes=probability", least=0, most=1)
    probe: int = knob(64, "responses in the ledger's fixed probe batch", least=1)
    parts: bool = knob(False, "take the last update of a step apart by backward passes too: ΔH of each part alone")
    stride: float = knob(
        0.0, "of the central differences that give a token's influence, as a share of the weights' norm; 0: none where"
        " the derivative is exact, else chosen", least=0, below=1,
    )  # fmt: skip
    influence_tokens: int = knob(0, "of an update whose influence is taken, in whole responses; 0: all", least=0)
    max_tokens: int = knob(20000, "rows of a token record; above, whole responses are left out at random", least=1)


@dataclass
class Wandb:
    mode: Literal["online", "offline", "disabled"] | None = knob(None, "default: WANDB_MODE, else offline")
    project: str = knob("cegppo", "wandb's name for a set of runs")
    tags: list[str] = knob([], "of the run, besides its method, loss and reward")
    token_rows: int = knob(
        100, "rows of a token record shown in a table, those that moved the entropy most; 0: none", least=0, most=10000
    )
    token_files: bool = knob(False, "upload the token records too, as artifacts")


@dataclass
class Limits:
    """Of the math-verify workers, which start with the first answer that needs sympy."""

    timeout: float = knob(5.0, "seconds of wall clock an answer may take", above=0, most=3600)
    memory_mb: int = knob(1024, "MiB of address space of the process that grades it", least=256, most=2**24)
    workers: int = knob(
        0, "answers graded at a time; 0: one a core, shared between the ranks of a machine", least=0, most=1024
    )


@dataclass
class Config:
    experiment: str = knob("", "the runs that are compared; default: the name of the file")
    arm: str = knob("", "this run among them; default: the method and what differs from it")
    seed: int = knob(0, "of everything that is drawn", least=0)
    steps: int = knob(100, "of sampling and training", least=1, most=2**31)
    prompts_per_step: int = knob(64, "problems sampled a step", least=1, most=2**20)
    group_size: int = knob(8, "responses to each of them", least=1, most=2**20)
    updates_per_step: int = knob(8, "mini-batches that a step's responses are split into", least=1, most=2**20)
    method: str = knob("grpo", "a preset of experiments/method")
    reward: str = knob(
        "task", "task | random (a coin; arXiv 2509.26114) | path.py:function, a rule (prompt, text) → [0, 1]"
    )
    reward_signal: float = knob(
        1.0, "share of responses that are rewarded so; a coin for the rest. 0 is reward=random", least=0, most=1
    )
    reward_values: list[float] = knob([0.0, 1.0], "of a failed and of a correct response")
    overlong_buffer: float = knob(
        0.0,
        "share of rollout.max_tokens, at its end, over which the soft overlong punishment grows; 0: off",
        least=0,
        below=1,
    )
    truncated_fails: bool = knob(
        False, "a response that the token limit cuts earns a failed one's reward, whatever else would reward it"
    )
    eval_every: int = knob(20, "steps, besides the start and the end; 0: only these", least=0)
    checkpoint_every: int = knob(20, "steps", least=1)
    checkpoint_keep: int = knob(1, "newest checkpoints that stay, besides the best; 0: all", least=0)
    threads: int = knob(0, "torch threads; 0: what torch chooses", least=0, most=4096)
    results: str = knob("results", "the root of the runs' folders")
    run_dir: str = knob("", "the run's folder; default: <results>/<experiment>/<arm>/seed<seed>")
    report: bool = knob(
        False, "write the run's page, report.html, at its end; of a sweep also the sweep's. docs/page.md"
    )
    model: Model = field(default_factory=Model)
    testbed: Recipe = field(default_factory=Recipe)  # of the embedded model; for model.path=testbed
    data: Data = field(default_factory=Data)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    advantage: Advantage = field(default_factory=Advantage)
    loss: dict[str, Any] = knob({"name": "ppo_clip"}, "a file of cegppo/losses by name, and its knobs")
    update: Update = field(default_factory=Update)
    controller: dict[str, Any] = knob(
        {"name": "none"}, "a file of cegppo/controllers/ by name, and its knobs; none: knobs are as configured"
    )
    explore: dict[str, Any] = knob(
        {"name": "none"},
        "a file of cegppo/explore/ by name, and its knobs; none: the policy's own responses, all of them",
    )
    critic: Critic = field(default_factory=Critic)
    eval: Eval = field(default_factory=Eval)
    grader: Limits = field(default_factory=Limits)
    diagnostics: Diagnostics = field(default_factory=Diagnostics)
    wandb: Wandb = field(default_factory=Wandb)
    tensorboard: bool = knob(
        False, "event files for TensorBoard in tensorboard/ of the run's folder; needs [tensorboard]"
    )

    @property
    def folder(self) -> Path:
        """The run's folder."""
        if self.run_dir:
            return Path(self.run_dir)
        return Path(self.results) / self.experiment / self.arm / f"seed{self.seed}"

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def identity(self) -> dict[str, Any]:
        """The flattened values that make this run this run: equal for two configurations iff one
        may resume the other."""
        flat = flatten(self.to_dict())
        # A controller that reads the ledger makes what is looked at a part of what is trained.
        read = LEDGER if self.controller.get("levers") == "ledger" else ()
        made = {k: v for k, v in flat.items() if k in read or not under(k, NOT_IDENTITY)}
        for key, value in flat.items():
            if isinstance(value, list) and (key in SCHEDULES or key.startswith(("loss.", "controller."))):
                # By steps: a share of the run is another schedule in a longer run.
                made[key] = [[first_step(when, self.steps), *rest] for when, *rest in value]
        return made


def under(key: str, names: Iterable[str]) -> bool:
    """Whether `key` is one of `names` or lies in a section that is."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    """{a: {b: 1}} as {"a.b": 1}; an empty mapping stays a value."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


@cache
def types_of(schema: type) -> dict[str, Any]:
    """The annotation of each field of dataclass `schema`."""
    return typing.get_type_hints(schema)


def annotation_of(key: str) -> Any:
    """The annotation of a dotted key; None where there is no such key, or it is not of the
    schema's own."""
    annotation: Any = Config
    for part in key.split("."):
        if not (isinstance(annotation, type) and dataclasses.is_dataclass(annotation)):
            return None
        annotation = types_of(annotation).get(part)
    return annotation


def kinds(annotation: Any) -> tuple[Any, ...]:
    """The members of a union; any other annotation by itself."""
    is_union = typing.get_origin(annotation) in (typing.Union, pytypes.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)
