"""verl for real, on a CPU: `make test-verl`, in an environment of its own; `make test` does not
collect this folder.

verl's own `compute_policy_loss_vanilla`, `ppo_loss` and TrainingWorker run on the same tensors;
worker.py says how the last is brought to do so without a GPU.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

os.environ |= dict(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1", MASTER_ADDR="127.0.0.1")
os.environ.setdefault("MASTER_PORT", "29531")

from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY, get_policy_loss_fn

from cegppo import losses
from cegppo.instrument.tally import Tally
from cegppo.model.head import token_statistics
from cegppo.objective import Objective, Terms
from cegppo.plugins import verl as plugin
from cegppo.plugins.batch import parts, serve, token_batch
from cegppo.plugins.verl_names import columns
from cegppo.types import BadInput

from .worker import TEMPERATURE, actor_config, update

ROOT = Path(__file__).resolve().parent.parent.parent
MODES = ["token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"]
# What each of them needs is not given by verl's registry alone (`Objective.needs`).
NEEDY = ["boundary_rescue", "lp_reg", "clip_b", "clip_cov", "erc", "steer", "top_entropy"]


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    """Six responses of 1 to 7 tokens with ratios on both sides of every bound; noise where there
    is padding."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    old = -draw(6, 7).abs() - 0.1
    return dict(
        old_log_prob=old,
        log_prob=(old + 0.8 * draw(6, 7)).clamp(max=-0.01).requires_grad_(),
        advantages=draw(6, 1).expand(6, 7).clone(),
        response_mask=torch.arange(7)[None] < torch.tensor([7, 1, 4, 6, 2, 5])[:, None],
    )


def evaluated(mode: str, given: dict[str, torch.Tensor], config, aggregate: str = "token-mean", **more):
    loss, metrics = get_policy_loss_fn(mode)(**given, loss_agg_mode=aggregate, config=config, **more)
    (slope,) = torch.autograd.grad(loss, given["log_prob"])
    return loss.detach(), slope, metrics


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=64, tie_word_embeddings=False,
        initializer_range=0.2,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def batch(model) -> dict[str, torch.Tensor]:
    """Eight rows as verl's rollouts have them: prompts padded on the left, responses on the
    right."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 61, (8, 9), generator=generator)
    attention = torch.ones(8, 9, dtype=torch.long)
    for row, (left, right) in enumerate([(0, 0), (1, 2), (2, 1), (0, 4), (1, 0), (0, 5), (2, 3), (0, 1)]):
        attention[row, :left] = 0
        attention[row, 9 - right :] = 0
    made = dict(
        input_ids=ids,
        attention_mask=attention,
        position_ids=(attention.cumsum(-1) - 1).clamp(min=0),
        prompts=ids[:, :3],
        responses=ids[:, 3:],
        response_mask=attention[:, 3:],
        advantages=torch.randn(8, 1, generator=generator).expand(8, 6).clone(),
    )
    now = statistics(model, made)
    made["old_log_probs"] = now.logprob_N.view(8, 6) + 0.3 * torch.randn(8, 6, generator=generator)
    made["rollout_is_weights"] = 0.5 + torch.rand(8, 6, generator=generator)
    return made


def statistics(model: str, batch: dict[str, torch.Tensor]):
    """Of every response position, row by row, by transformers alone."""
    with torch.no_grad():
        out = Qwen3ForCausalLM.from_pretrained(model)(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            position_ids=batch["position_ids"],
        )
    logits_NV = out.logits[:, 2:-1].flatten(0, 1) / TEMPERATURE
    return token_statistics(logits_NV, batch["responses"].flatten())


# ------------------------------------------------------------------------------ registration


@pytest.mark.skipif(not (ROOT / ".venv-verl" / "before.txt").is_file(), reason="made by make test-verl")
def test_installing_this_package_beside_verl_moves_no_version():
    lists = [(ROOT / ".venv-verl" / name).read_text().splitlines() for name in ("before.txt", "installed")]
    before, after = ({line for line in lines if "==" in line and not line.startswith("#")} for lines in lists)
    assert any(line.startswith("verl==") for line in before) and before == after


def test_every_loss_is_registered_by_the_entry_point_and_none_of_verls_is_replaced():
    ours = {name for name in POLICY_LOSS_REGISTRY if name.startswith(plugin.PREFIX)}
    assert ours == {plugin.PREFIX + name for name in losses.names()}
    assert {"vanilla", "gspo", "cispo", "clip_cov"} <= POLICY_LOSS_REGISTRY.keys()
    assert all(POLICY_LOSS_REGISTRY[name].__module__.startswith("verl.") for name in POLICY_LOSS_REGISTRY.keys() - ours)


def test_a_registration_that_fails_is_said(tmp_path):
    """verl itself mentions a failing entry point at debug level only."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Break:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'cegppo.objective': raise ImportError('broken on purpose')\n"
        "sys.meta_path.insert(0, Break())\n"
    )
    script = (
        "import verl; from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY as losses;"
        "print('gspo' in losses, 'cegppo.gspo' in losses)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip().endswith("True False"), done.stderr
    assert "cegppo: its losses are NOT registered with verl: ImportError: broken on purpose" in done.stderr


# ---------------------------------------------------------------------- numbers, by verl's registry


@pytest.mark.parametrize("aggregate", MODES)
@pytest.mark.parametrize("dual_clip", [1.5, math.inf])
@pytest.mark.parametrize("dp_size", [1, 4])
def test_grpo_is_verls_clipped_loss(aggregate, dual_clip, dp_size):
    """Value and gradient, with dual clip off and on, importance weights, and a share of a
    mini-batch on one of several ranks; CE-GPPO with β = (0, 0) has the same gradient."""
    given = tensors()
    config = actor_config("cegppo.ppo_clip", clip_ratio_low=0.2, clip_ratio_high=0.28, clip_ratio_c=dual_clip)
    config.global_batch_info.update(dp_size=dp_size, batch_num_tokens=90, global_batch_size=20, loss_scale_factor=None)
    more = {"rollout_is_weights": torch.linspace(0.2, 1.8, 42, dtype=torch.float64).view(6, 7)}
    theirs, slope, _ = evaluated("vanilla", given, config, aggregate, **more)
    ours, our_slope, _ = evaluated("cegppo.ppo_clip", given, config, aggregate, **more)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    torch.testing.assert_close(our_slope, slope, rtol=1e-6, atol=1e-12)
    zero = actor_config("cegppo.cegppo", {"beta1": 0.0, "beta2": 0.0}, clip_ratio_high=0.28, clip_ratio_c=dual_clip)
    zero.global_batch_info.update(config.global_batch_info)
    torch.testing.assert_close(
        evaluated("cegppo.cegppo", given, zero, aggregate, **more)[1], slope, rtol=1e-6, atol=1e-12
    )
    assert (slope == 0)[given["response_mask"]].any() and slope.any()


@pytest.mark.parametrize("name", losses.names())
def test_every_loss_is_served_as_ours_is_or_refused(name):
    """Value and gradient of our own objective on the tokens; NaN never."""
    given = tensors()
    config = actor_config(f"cegppo.{name}", clip_ratio_c=2.0)
    config.global_batch_info.update(dp_size=1, batch_num_tokens=25, global_batch_size=6, loss_scale_factor=None)
    if name in NEEDY:
        with pytest.raises(BadInput, match=f"verl: loss '{name}' needs"):
            evaluated(f"cegppo.{name}", given, config)
        return
    value, slope, metrics = evaluated(f"cegppo.{name}", given, config)
    x = token_batch(*(given[key] for key in ("log_prob", "old_log_prob", "advantages", "response_mask")))
    params = plugin.objective_of(name, config).params
    objective = Objective(losses.load(name), params, Terms(dual_clip=2.0))
    ours, _ = objective.losses(x, objective.scales(x))
    torch.testing.assert_close(value, ours["policy"].sum().detach())
    torch.testing.assert_close(slope, torch.autograd.grad(ours["policy"].sum(), given["log_prob"])[0])
    assert all(math.isfinite(number) for number in metrics.values())
    assert {"actor/clip/low", "actor/clip/na_lp", "actor/tokens/pa_hp", "actor/kl/old_k3"} <= metrics.keys()
    unseen = ("lever", "entropy", "part/grad")  # no logits were
    assert not any(part in key for key in metrics for part in unseen)


def test_a_rule_over_the_whole_mini_batch_gets_it_or_is_refused():
    """A micro-batch that is all of it is served; a part of it, or one whose mini-batch is unknown,
    is an error."""
    given, config = tensors(), actor_config("cegppo.m2po")
    whole = dict(dp_size=1, batch_num_tokens=25, global_batch_size=6, loss_scale_factor=None)
    config.global_batch_info.update(whole)
    evaluated("cegppo.m2po", given, config)
    for info in (whole | {"batch_num_tokens": 26}, {}):
        config.global_batch_info.clear()
        config.global_batch_info.update(info)
        with pytest.raises(BadInput, match="'m2po' is a rule over the whole mini-batch, and verl gave it a part"):
            evaluated("cegppo.m2po", given, config)


@pytest.mark.parametrize(
    "mode, knobs, changes, says",
    [
        ("cegppo", {"beta_1": 0.5}, {}, "verl: loss 'cegppo' has no knob 'beta_1'; did you mean 'beta1'?"),
        (
            "cegppo",
            {"eps_low": 0.1},
            {},
            "verl: policy_loss.knobs.eps_low: verl's own key for it is actor.clip_ratio_low",
        ),
        ("sapo", {"tau_pos": 2.0}, {}, "verl: policy_loss.knobs.tau_pos: verl's own key for it is actor.tau_pos"),
        (
            "cegppo",
            {"beta1": [[0, 0.0], ["58%", 0.5]]},
            {},
            "verl: beta1 takes one value here, and no schedule: the trainer tells no step",
        ),
        ("cegppo", {"beta1": -1}, {}, "verl: beta1 must be at least 0, not -1"),
        ("cegppo", {}, {"clip_ratio_low": 1.5}, "verl: actor.clip_ratio_low must be above 0 and below 1, not 1.5"),
        ("cegppo", {}, {"clip_ratio_c": 0.0}, "verl: actor.clip_ratio_c must be above 1 (inf is off), not 0.0"),
    ],
)
def test_a_wrong_knob_is_one_clear_line(mode, knobs, changes, says):
    with pytest.raises(BadInput) as error:
        evaluated(f"cegppo.{mode}", tensors(), actor_config(f"cegppo.{mode}", knobs, **changes))
    assert str(error.value) == says


def test_knobs_come_from_verls_own_keys_where_it_has_them():
    config = actor_config("cegppo.sapo", clip_ratio_low=0.1, clip_ratio_high=0.3, tau_pos=1.5, tau_neg=2.5)
    assert vars(plugin.objective_of("sapo", config).params) == dict(tau_pos=1.5, tau_neg=2.5)
    params = plugin.objective_of("cegppo", actor_config("cegppo.cegppo", {"beta2": 0.75}, clip_ratio_high=0.3)).params
    assert vars(params) == dict(beta1=0.5, beta2=0.75, eps_low=0.2, eps_high=0.3)


# -------------------------------------------------------------------- verl's worker and FSDP engine


def expected(
    model: str, batch: dict[str, torch.Tensor], name: str, old_entropy_BT: torch.Tensor | None = None, **knobs
) -> dict[str, float]:
    """The parts of the whole mini-batch, by transformers and our own code alone."""
    s, mask_BT = statistics(model, batch), batch["response_mask"]
    shaped = lambda value_N: value_N.view(mask_BT.shape)
    x = token_batch(
        shaped(s.logprob_N).requires_grad_(), batch["old_log_probs"], batch["advantages"], mask_BT,
        entropy_BT=shaped(s.entropy_N), sum_p2_BT=shaped(s.sum_p2_N), sum_p2_logp_BT=shaped(s.sum_p2_logp_N),
        old_entropy_BT=old_entropy_BT,
    )  # fmt: skip
    objective = Objective(losses.load(name), losses.load(name).Params(**knobs))
    tokens = float(mask_BT.sum())
    mean = lambda loss_BT: (loss_BT * x.mask_BT).sum() / tokens
    served = serve(objective, x, mean, batch["rollout_is_weights"])
    tally = Tally()
    tally.add_tokens(x, served.weights, served.scale_BT)
    made = parts(tally, tokens) | {"ratio/min": tally.least["ratio"], "ratio/max": tally.greatest["ratio"]}
    return {"actor/pg_loss": float(served.loss.detach())} | {f"actor/{key}": value for key, value in made.items()}


@pytest.mark.parametrize("micro, packed", [(8, True), (2, True), (1, False)])
def test_the_workers_metrics_are_ours_however_it_cuts_the_mini_batch(model, batch, micro, packed):
    case = dict(mode="cegppo.cegppo", knobs={"beta1": 0.5, "beta2": 1.0}, micro=micro, packed=packed)
    metrics, _ = update(model, batch, case)
    ours = expected(model, batch, "cegppo")
    assert {key: metrics[key] for key in ours} == pytest.approx(ours, rel=2e-5, abs=1e-7)
    assert ours["actor/lever/low"] and ours["actor/lever/high"] and ours["actor/clip/low"] and ours["actor/clip/high"]


def test_the_worker_trains_as_with_verls_own_loss(model, batch):
    """The weights after a plain gradient step: `ppo_clip` and CE-GPPO with β = (0, 0) against
    verl's, and β = (0.5, 1) somewhere else."""
    of = lambda mode, **knobs: update(model, batch, dict(mode=mode, knobs=knobs, micro=4))[1]
    theirs = of("vanilla")
    for ours in (of("cegppo.ppo_clip"), of("cegppo.cegppo", beta1=0.0, beta2=0.0)):
        for key, value in theirs.items():
            torch.testing.assert_close(ours[key], value, rtol=1e-6, atol=1e-6)
    moved = of("cegppo.cegppo", beta1=0.5, beta2=1.0)
    assert max(float((moved[key] - value).abs().max()) for key, value in theirs.items()) > 1e-3


def test_the_entropy_of_the_pass_before_serves_a_loss_that_reads_it(model, batch):
    """As verl's trainer leaves it among a batch's fields."""
    before = statistics(model, batch).entropy_N.view(8, 6) * 1.04
    case = dict(mode="cegppo.erc", micro=2)
    metrics, _ = update(model, {**batch, "entropy": before}, case)
    ours = expected(model, batch, "erc", old_entropy_BT=before, eps_high=0.2)
    assert {key: metrics[key] for key in ours} == pytest.approx(ours, rel=2e-5, abs=1e-7)
    with pytest.raises(BadInput, match="verl: loss 'erc' needs old_entropy, which verl does not give it"):
        update(model, batch, case)


def test_without_the_statistics_the_clip_facts_stay_and_the_levers_go(model, batch):
    """An engine that shows no logits: the same facts of the clip, and nothing made up. Run in
    another process, as what the statistics need is imported once and for all; registered there
    without the entry point."""
    script = (
        "import json, sys, torch; from tests.verl.worker import update; "
        "print('METRICS', json.dumps({k: float(v) for k, v in update(sys.argv[1], torch.load(sys.argv[2]), "
        "dict(mode='cegppo.cegppo', micro=2, statistics=False, calculate_entropy=True))[0].items() "
        "if k.startswith('actor/')}))"
    )
    torch.save(batch, Path(model) / "batch.pt")
    registered = {"VERL_USE_EXTERNAL_PLUGINS": "none", "VERL_USE_EXTERNAL_MODULES": "cegppo.plugins.verl"}
    environment = {**os.environ, **registered, "MASTER_PORT": str(int(os.environ["MASTER_PORT"]) + 1)}
    done = subprocess.run(
        [sys.executable, "-c", script, model, str(Path(model) / "batch.pt")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    metrics = json.loads(done.stdout.split("METRICS", 1)[1])
    ours = expected(model, batch, "cegppo")
    told = {key: value for key, value in ours.items() if key in metrics}
    assert told.keys() == {
        key for key in ours if not key.startswith(("actor/lever", "actor/dentropy", "actor/part/grad"))
    } | {"actor/dentropy/covariance"}
    assert {key: metrics[key] for key in told} == pytest.approx(told, rel=2e-5, abs=1e-7)


def test_two_ranks_give_one_ranks_metrics_and_weights(model, batch, tmp_path):
    """Sharded over two processes with gloo, with micro-batches of another size."""
    case = dict(mode="cegppo.cegppo", knobs={"beta1": 0.5, "beta2": 1.0}, micro=2)
    torch.save(batch, tmp_path / "batch.pt")
    cases = dict(model=model, batch=str(tmp_path / "batch.pt"), cases={"two": case})
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "tests.verl.worker"]
    done = subprocess.run(
        [sys.executable, *launcher, str(tmp_path / "cases.json"), str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, weights = update(model, batch, case | {"micro": 8})
    for rank in range(2):
        two, their_weights = torch.load(tmp_path / f"two.{rank}.pt", weights_only=False)
        mine = {key: value for key, value in one.items() if key.startswith("actor/")}
        assert {key: two[key] for key in mine} == pytest.approx(mine, rel=2e-5, abs=1e-7)
        for key, value in weights.items():
            torch.testing.assert_close(their_weights[key], value, rtol=1e-5, atol=1e-6)


# --------------------------------------------------------- what verl is told, and what it logs


@pytest.mark.parametrize("method", ["cegppo", "gspo", "dr_grpo"])
def test_the_sweeps_command_is_a_configuration_of_verl(method, tmp_path):
    """Hydra reads every key, verl makes its actor's configuration of them, and checks it."""
    from hydra import compose, initialize_config_module
    from verl.utils.config import omega_conf_to_dataclass

    from cegppo.config import load
    from cegppo.sweep.verl import command

    overrides = [f"method={method}", "loss.beta1=0.75"][: 1 + (method == "cegppo")]
    loaded, _ = load(ROOT / "experiments" / "paper" / "7b_text.yaml", [*overrides, f"results={tmp_path}"])
    own = {"data.train_files": "a.parquet", "data.val_files": ["b c.parquet"], "trainer.nnodes": 2}
    with initialize_config_module("verl.trainer.config", version_base=None):
        made = compose("ppo_trainer", command(loaded, own, 8, tmp_path / "verl.0.jsonl")[3:])
    actor = omega_conf_to_dataclass(made.actor_rollout_ref.actor)
    actor.validate(16, made.data.train_batch_size)
    assert plugin.ours(actor)
    objective = plugin.objective_of(method if method != "dr_grpo" else "ppo_clip", actor)
    assert vars(objective.params) == {k: v for k, v in loaded.loss.items() if k != "name"}
    assert objective.terms.dual_clip == math.inf and actor.rollout_n == 8
    assert made.data.val_files == ["b c.parquet"] and made.trainer.nnodes == 2
    assert actor.loss_scale_factor == 16384 and actor.optim.betas == [0.9, 0.999] and actor.optim.lr == 1e-6


def log_of_verl(path: Path, model: str, batch: dict[str, torch.Tensor]) -> None:
    """Two steps of a run in `path`, by verl's own metrics and `file` logger; a validation
    before."""
    from verl import DataProto
    from verl.trainer.ppo.metric_utils import compute_data_metrics, compute_timing_metrics
    from verl.utils.metric import reduce_metrics
    from verl.utils.py_functional import rename_dict
    from verl.utils.tracking import Tracking

    case = dict(mode="cegppo.cegppo", knobs={"beta1": 0.5, "beta2": 1.0}, micro=2)
    metrics = reduce_metrics(rename_dict({k: [v] for k, v in update(model, batch, case)[0].items()}, "actor/"))
    right_B1 = torch.tensor([[1.0], [0.0]]).repeat(4, 1)
    rewards = torch.nn.functional.one_hot(batch["response_mask"].sum(-1) - 1, 6) * right_B1
    whole = batch | dict(token_level_scores=rewards, token_level_rewards=rewards, returns=batch["advantages"])
    data = DataProto.from_dict({k: v for k, v in whole.items() if k != "rollout_is_weights"})
    metrics |= compute_data_metrics(data, use_critic=False)
    metrics |= compute_timing_metrics(data, dict(gen=2.0, update_actor=1.0, step=3.5))
    metrics |= {"actor/entropy": 3.25, "training/global_step": 1}
    os.environ["VERL_FILE_LOGGER_PATH"] = str(path)
    tracking = Tracking("cegppo", "run", ["file"])
    tracking.log({"val-core/aime24/acc/mean@2": 0.25}, step=0)
    tracking.log(metrics, step=1)
    tracking.log(metrics | {"val-core/aime24/acc/mean@2": 0.5}, step=2)
    tracking.finish()


def test_verls_log_is_what_the_stand_in_writes_and_the_analysis_reads(model, batch, tmp_path):
    """tests/verl_log.jsonl, which tests without verl take for its log, has the columns that verl
    writes; and quotients of them are the metrics of one whole mini-batch."""
    from analysis import load

    log_of_verl(tmp_path / "verl.0.jsonl", model, batch)
    made = [json.loads(line) for line in (tmp_path / "verl.0.jsonl").read_text().splitlines()]
    kept = [json.loads(line) for line in (ROOT / "tests" / "verl_log.jsonl").read_text().splitlines()]
    shape = lambda rows: [(row.keys(), row["step"], sorted(row["data"])) for row in rows]
    assert shape(made) == shape(kept)
    spec = {"format": "verl-jsonl", "file": "verl.0.jsonl", "columns": columns(4)}
    (tmp_path / "foreign.yaml").write_text(json.dumps(spec))
    metrics, _ = load.foreign_run(tmp_path)
    ours = expected(model, batch, "cegppo")
    first = metrics[metrics["step"] == 1].iloc[0]
    share = ours["actor/part/grad_clip_high"] / ours["actor/part/grad"]
    assert first["grad/share_clip_high"] == pytest.approx(share, rel=1e-4)
    assert first["lever/high"] == pytest.approx(4 * made[1]["data"]["actor/lever/high"])
    assert first["clip/prob_low"] == pytest.approx(ours["actor/part/prob_low"] / ours["actor/clip/low"], rel=1e-4)
    assert first["accuracy/mean"] == 0.5 and first["time/step"] == 3.5
