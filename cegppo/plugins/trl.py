"""Every loss of `cegppo.losses` in TRL's GRPOTrainer (1.16), and what the instrument measures
beside TRL's own metrics.

    CEGPPOTrainer(model, reward_funcs, args=CEGPPOConfig(loss="cegppo", beta1=0.5, beta2=1.0, …), …)

In: what GRPOTrainer takes. `_compute_loss` is replaced, as TRL's own GMPOTrainer does; sampling,
rewards, advantages, the optimizer and saving stay TRL's. Out: TRL's log, and in it the token
metrics of docs/metrics.md by their names.

`loss_type` says how token losses are aggregated: dapo, bnpo, grpo or dr_grpo. The KL penalty, the
two-sided clip (`delta`), the entropy bonus (adaptive too), the masks of high entropy and of
off-policy sequences and the correction for vLLM do what they do in TRL. Refused, each with its
reason: losses over the whole mini-batch, and losses that need what TRL does not keep.
"""

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import get_config_model_id, nanmax, nanmin

from .. import losses
from ..instrument.entropy import clip_side
from ..instrument.tally import Tally
from ..knobs import nearest
from ..model.head import head_statistics
from ..model.traits import candidates
from ..objective import Objective, Weights, aggregation, kl_penalty
from ..types import BadInput, TokenBatch, present
from . import batch

# What `loss_type` says about aggregation; None: over the tokens of the rollout, which TRL counts.
AGGREGATES = {"dapo": None, "bnpo": "token", "grpo": "sequence", "dr_grpo": "constant"}
EPSILON = 0.2  # TRL's default of epsilon
# nats, on average: how far our pass of the head may be off TRL's log-probabilities, in bfloat16 too
CLOSE = 0.05

# The knobs of every loss, as fields: TRL's command line and its records know them then. One name is
# taken: `beta` is TRL's coefficient of the KL penalty; the one of the loss kl_cov has its default.
TAKEN = {f.name for f in fields(GRPOConfig)}
KNOBS = {knob.name: knob for name in losses.names() for knob in fields(losses.load(name).Params)}
Knobs: Any = make_dataclass(
    "Knobs",
    [
        (name, float | None, field(default=None, metadata={"help": knob.metadata["doc"]}))
        for name, knob in KNOBS.items()
        if name not in TAKEN
    ],
)


@dataclass
class CEGPPOConfig(Knobs, GRPOConfig):
    """GRPOConfig with a loss and its knobs (docs/methods.md). A knob that is left out has the
    loss's own default. `epsilon` and `epsilon_high`, where they are not TRL's defaults, are
    `eps_low` and `eps_high`."""

    loss: str = field(default="cegppo", metadata={"help": "a loss of cegppo.losses"})

    def __new__(cls, *_: Any, **given: Any) -> "CEGPPOConfig":
        known = {f.name for f in fields(cls)}
        for name in given:
            if name not in known:
                # Not TRL's coefficient of the KL penalty: who says beta3 means beta1 or beta2.
                raise BadInput(f"CEGPPOConfig has no '{name}'{nearest(name, known - {'beta'})}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        super().__post_init__()
        one_BT = torch.ones(1, 1)
        has = batch.token_batch(one_BT, one_BT, one_BT, one_BT, entropy_BT=one_BT, old_entropy_BT=one_BT)
        whole = self.gradient_accumulation_steps == 1 and self.world_size == 1
        objective = self.objective()
        batch.refuse("TRL", objective, has, whole=whole)
        if self.delta is not None and self.delta <= (bound := 1 + getattr(objective.params, "eps_high", 0.0)):
            raise BadInput(f"CEGPPOConfig: delta must be above the clip's upper bound, {bound:g}, not {self.delta:g}")
        if self.loss_type not in AGGREGATES:
            other = f"; for TRL's, say loss='{self.loss_type}'" if self.loss_type in losses.names() else ""
            raise BadInput(
                f"CEGPPOConfig: loss_type says here how token losses are aggregated, by one of"
                f" {', '.join(AGGREGATES)}, not '{self.loss_type}'{other}"
            )
        if self.importance_sampling_level != "token":
            self._check_sequence_level()

    def _check_sequence_level(self) -> None:
        """One ratio per response: TRL's own loss, and no mask of tokens. Raises BadInput."""
        if self.importance_sampling_level != "sequence" or self.loss != "ppo_clip":
            raise BadInput(
                "CEGPPOConfig: importance_sampling_level is 'token' here, or 'sequence' with loss='ppo_clip'; gspo is"
                " a loss of its own"
            )
        chosen = dict(delta=self.delta, top_entropy_quantile=self.top_entropy_quantile < 1, use_vllm=self.use_vllm)
        if named := [name for name, value in chosen.items() if value]:
            raise BadInput(f"CEGPPOConfig: {named[0]} is not here with importance_sampling_level='sequence'")

    @property
    def updates_per_rollout(self) -> int:
        """A rollout is what docs/metrics.md calls a step."""
        return max(1, present(self.steps_per_generation) * self.num_iterations // self.gradient_accumulation_steps)

    def objective(self) -> Objective:
        """The loss with its knobs. Raises BadInput."""
        given = {f.name: getattr(self, f.name) for f in fields(Knobs)}
        # TRL's words for two of them. Its upper bound follows its lower one where it is not said.
        low = self.epsilon if self.epsilon != EPSILON else None
        for name, word, value in (("eps_low", "epsilon", low), ("eps_high", "epsilon_high", self.epsilon_high)):
            if value is not None and given[name] not in (None, value):
                raise BadInput(f"CEGPPOConfig: {word}={value} and {name}={given[name]} are the same knob")
            given[name] = given[name] if value is None else value
        given["eps_high"] = low if given["eps_high"] is None else given["eps_high"]
        per_response = self.importance_sampling_level == "sequence" and self.loss == "ppo_clip"
        if per_response:  # the same loss of another ratio, with TRL's width of the clip
            given["eps_low"] = given["eps_low"] or EPSILON
            given["eps_high"] = given["eps_high"] or given["eps_low"]
        knobs = {name: value for name, value in given.items() if value is not None}
        return batch.load("CEGPPOConfig", "gspo" if per_response else self.loss, knobs, dual_clip=self.delta or 0.0)


class Watcher(TrainerCallback):
    """A callback that is shown tokens."""

    def rollout(self, trainer: "CEGPPOTrainer", rows: list[dict[str, Any]], output: dict[str, Any]) -> None:
        """This process's rows of the data set and what TRL made of them, one a response."""

    def update(self, number: int, row_B: Tensor, x: TokenBatch, w: Weights, scale_BT: Tensor) -> None:
        """A micro-batch of update `number` of the rollout (0 the first): which of this process's
        responses its rows are, and what was measured."""


class CEGPPOTrainer(GRPOTrainer):
    """GRPOTrainer with a loss of `cegppo.losses`. Same arguments."""

    # TRL's own, which its loss moves, and so does ours.
    entropy_coef: float
    _last_world_entropy: float
    _entropy_window_stats: Any

    _tag_names = ["trl", "cegppo"]

    def __init__(
        self, model: Any, reward_funcs: Any = None, args: CEGPPOConfig | None = None, *more: Any, **named: Any
    ):
        if args is None:
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = CEGPPOConfig(f"{name.split('/')[-1]}-CEGPPO")
        if not isinstance(args, CEGPPOConfig):
            raise BadInput(f"CEGPPOTrainer: args must be a CEGPPOConfig, not a {type(args).__name__}")
        self.objective = args.objective()
        self.tally = Tally()  # of the updates since the last line of the log
        self.rewards: Tensor | None = None  # of the last rollout, [responses of all processes, reward functions]
        self._entropies: list[Tensor | None] | None = None  # of TRL's passes while it makes a rollout
        self._warned = False  # of a head that cannot be measured
        super().__init__(model, reward_funcs, args, *more, **named)
        if args.gradient_accumulation_steps % (present(args.steps_per_generation) * args.num_iterations) == 0:
            warnings.warn(
                "one update a rollout: the ratio is 1, nothing is outside the clip, and every clipping loss is the"
                " same. Set steps_per_generation above gradient_accumulation_steps, or num_iterations above 1.",
                stacklevel=2,
            )

    # -- a rollout: what TRL knows of it and does not hand on

    def _get_per_token_logps_and_entropies(self, *args: Any, compute_entropy: bool = False, **named: Any) -> Any:
        # The policy's own passes compute them whether or not they are asked for.
        watched = self._entropies is not None and (args[0] if args else named["model"]) is self.model
        made = super()._get_per_token_logps_and_entropies(*args, compute_entropy=compute_entropy or watched, **named)
        if watched:
            present(self._entropies).append(made[1])
        return made

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._entropies = []
        try:
            output = super()._generate_and_score_completions(inputs)
            if "old_per_token_logps" in output:  # whose pass comes before the reference's
                output["old_entropies"] = self._entropies[0]
        finally:
            self._entropies = None
        output["row"] = torch.arange(len(output["completion_ids"]), device=output["completion_ids"].device)
        for watcher in self._watchers():
            watcher.rollout(self, inputs, output)
        return output

    def _calculate_rewards(self, *args: Any, **named: Any) -> Tensor:
        self.rewards = super()._calculate_rewards(*args, **named)
        return self.rewards

    def _watchers(self) -> list[Watcher]:
        return [callback for callback in self.callback_handler.callbacks if isinstance(callback, Watcher)]

    # -- an update

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        completion_ids, train = inputs["completion_ids"], self.model.training
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        more = inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters.keys() & inputs.keys()
        with self._hidden_states() as hidden:
            logps, entropies, aux_loss = self._get_per_token_logps_and_entropies(
                model,
                torch.cat([inputs["prompt_ids"], completion_ids], dim=1),
                torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
                completion_ids.size(1),
                compute_entropy=True,
                compute_aux_loss=self.aux_loss_enabled,
                **{name: inputs[name] for name in more},  # of images
            )
        x = self._batch(logps, entropies, mask, inputs)
        kept_BT = None  # of the tokens, where only those of high entropy train
        if self.top_entropy_quantile < 1:
            kept_BT = self.get_high_entropy_mask(entropies, mask, 1 - self.top_entropy_quantile)
        plain_BT = self._scale(x, inputs, train)
        factor_BT = self._factor(x, kept_BT, inputs)
        served = batch.serve(self.objective, x, lambda loss_BT: (loss_BT * plain_BT).sum(), factor_BT)
        loss = served.loss
        if self.beta:
            ref_BT = torch.where(x.mask_BT.bool(), inputs["ref_per_token_logps"], 0.0)
            kl_BT = kl_penalty(x.logprob_BT, ref_BT, "k3")
            kl_BT = kl_BT * self._ratio(x) if self.args.use_bias_correction_kl else kl_BT
            loss = loss + self.beta * (torch.where(plain_BT != 0, kl_BT, 0.0) * plain_BT).sum()
            self._note("kl", self._mean(kl_BT.detach(), mask))
        accumulation = self.current_gradient_accumulation_steps if train else 1
        if self._entropy_bonus_enabled:
            acts = mask if kept_BT is None else mask * kept_BT
            whole = loss.detach() * (accumulation if AGGREGATES[self.loss_type] else 1)
            self._note("policy_loss", self.accelerator.gather(whole).nanmean().item())
            loss = loss - self._entropy_bonus(entropies, acts, train) / accumulation
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * aux_loss / accumulation
            self._note("aux_loss", self.accelerator.gather_for_metrics(aux_loss).mean().item())
        self._note("entropy", self._mean(entropies.detach(), mask))
        self._measure(x, served, hidden, inputs, train)
        return loss

    def _entropy_bonus(self, entropies: Tensor, acts: Tensor, train: bool) -> Tensor:
        """The coefficient times the mean entropy where `acts` is 1, whatever loss_type says. An
        adaptive one (arXiv 2505.22312) moves after an update, and acts where the update before
        found the entropy at its target or below."""
        off = self.use_adaptive_entropy and self._last_world_entropy > self.args.entropy_target
        bonus = (0.0 if off else self.entropy_coef) * (entropies * acts).sum() / acts.sum().clamp(min=1.0)
        if train and self.use_adaptive_entropy:
            sums = torch.stack([(entropies * acts).sum(), acts.sum()]).detach()
            self._entropy_window_stats = sums + (
                0 if self._entropy_window_stats is None else self._entropy_window_stats
            )
        if train and self.accelerator.sync_gradients:
            if self.use_adaptive_entropy:
                total, tokens = self.accelerator.reduce(self._entropy_window_stats, reduction="sum")
                self._last_world_entropy = (total / tokens.clamp(min=1.0)).item()
                up = 1 if self._last_world_entropy <= self.args.entropy_target else -1
                moved = self.entropy_coef + up * self.args.entropy_coef_delta
                self.entropy_coef = min(max(moved, self.args.entropy_coef_min), self.args.entropy_coef_max)
                self._entropy_window_stats = None
            self._note("entropy_coef", self.entropy_coef)
        return bonus

    def _batch(self, logps: Tensor, entropies: Tensor, mask: Tensor, inputs: dict[str, Any]) -> TokenBatch:
        """TRL's tensors under our names. Where TRL keeps no old ones, this is the first update."""
        old_BT, old_entropy_BT = inputs.get("old_per_token_logps"), inputs.get("old_entropies")
        return batch.token_batch(
            logps,
            logps if old_BT is None else old_BT,
            inputs["advantages"],
            mask,
            entropy_BT=entropies,
            old_entropy_BT=(entropies if old_entropy_BT is None else old_entropy_BT).detach(),
        )

    def _ratio(self, x: TokenBatch) -> Tensor:
        """Of each token, [B, T], or of each response, [B, 1], by `importance_sampling_level`."""
        if self.importance_sampling_level == "token":
            return x.ratio_BT
        mean_B = (x.log_ratio_BT * x.mask_BT).sum(-1) / x.length_B.clamp(min=1)
        return mean_B.exp()[:, None]

    def _factor(self, x: TokenBatch, kept_BT: Tensor | None, inputs: dict[str, Any]) -> Tensor:
        """[B, T] that TRL multiplies the losses of tokens by: what masks and corrections leave."""
        factor_BT = torch.ones_like(x.mask_BT) if kept_BT is None else kept_BT.to(x.mask_BT.dtype)
        if self.off_policy_mask_threshold is not None:
            sampled_BT = inputs.get("sampling_per_token_logps", x.old_logprob_BT)
            factor_BT = factor_BT * self.get_off_policy_mask(
                x.advantage_BT, x.logprob_BT, sampled_BT, x.mask_BT, self.off_policy_mask_threshold
            )
        if self.use_vllm and self.vllm_importance_sampling_correction:
            factor_BT = factor_BT * inputs["importance_sampling_ratio"]
        return factor_BT

    def _scale(self, x: TokenBatch, inputs: dict[str, Any], train: bool) -> Tensor:
        """[B, T] factor of each token's loss in this process's, by `loss_type`; processes are
        averaged, micro-batches summed."""
        accumulation = self.current_gradient_accumulation_steps if train else 1
        if kind := AGGREGATES[self.loss_type]:
            return aggregation(x, kind, present(self.max_completion_length)) / accumulation
        share = accumulation / self.args.steps_per_generation if train else 1
        return x.mask_BT * self.accelerator.num_processes / (inputs["num_items_in_batch"].clamp(min=1) * share)

    # -- what is measured

    @contextmanager
    def _hidden_states(self) -> Iterator[list[Tensor]]:
        """Afterwards the list holds the backbone's last hidden states, [B, S, H], of the pass in
        the block."""
        kept: list[Tensor] = []
        keep = lambda _module, _arguments, made: kept.append(made.last_hidden_state.detach())
        hook = self._policy().base_model.register_forward_hook(keep)
        try:
            yield kept
        finally:
            hook.remove()

    def _policy(self) -> Any:
        model = self.accelerator.unwrap_model(self.model)
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    def _measure(
        self, x: TokenBatch, served: batch.Served, hidden: list[Tensor], inputs: dict[str, Any], train: bool
    ) -> None:
        """Add a micro-batch to TRL's metrics and to ours; to TRL's alone in evaluation, where
        nothing is updated."""
        w, processes = served.weights, self.accelerator.num_processes
        mask, side = x.mask_BT, clip_side(x.ratio_BT.detach(), x.advantage_BT, w.clip_low_BT, w.clip_high_BT)
        if self.importance_sampling_level == "sequence":  # then TRL counts responses
            ratio, p = self._ratio(x).detach(), self.objective.params
            mask, advantage = torch.ones_like(ratio), inputs["advantages"].reshape(len(ratio), -1)[:, :1]
            side = clip_side(ratio, advantage, mask - p.eps_low, mask + p.eps_high)
        self._note("clip_ratio/region_mean", self._mean(side > 0, mask))
        for code, name, extreme in ((1, "low", ("min", nanmin)), (2, "high", ("max", nanmax))):
            outside = (side == code) * mask
            self._note(f"clip_ratio/{name}_mean", self._mean(outside, mask))
            shares = self.accelerator.gather(outside.sum(-1) / mask.sum(-1))
            self._note(f"clip_ratio/{name}_{extreme[0]}", extreme[1](shares).item())
        if not train:
            return
        x = self._with_power_sums(x.but(logprob_BT=x.logprob_BT.detach()), hidden, inputs["completion_ids"])
        scale_BT = served.scale_BT / processes  # TRL averages the processes' gradients
        self.tally.add_tokens(x, w, scale_BT)
        self.tally.add_all(served.facts)
        self.tally.add("loss/policy", served.loss / processes)
        self.tally.add("entropy_before", (x.old_entropy_BT * x.mask_BT).sum())
        self.tally.add("updates", self.accelerator.sync_gradients / processes)
        for watcher in self._watchers():
            watcher.update(self.state.global_step % self.args.updates_per_rollout, inputs["row"], x, w, scale_BT)

    def _with_power_sums(self, x: TokenBatch, hidden: list[Tensor], completion_ids: Tensor) -> TokenBatch:
        """`x` with Σπ² and Σπ² log π, which TRL's head does not give: by a pass of ours over the
        same hidden states. NaN where that pass does not find TRL's log-probabilities, because the
        head is sharded or does more than a product; metrics that need them are left out then."""
        inside = x.mask_BT.bool()
        sums = torch.full((2, *inside.shape), float("nan"), device=inside.device)
        head = self._policy().get_output_embeddings()
        hidden_NH = hidden[0][:, :-1][:, -inside.shape[1] :][inside]
        if head.weight.shape[1:] == hidden_NH.shape[1:] and type(head.weight.data) is Tensor:
            with torch.no_grad():
                hidden_NH = hidden_NH.float() if self.args.cast_lm_head_to_fp32 else hidden_NH
                for scaling in candidates(self._policy().config.get_text_config(decoder=True)):
                    s = head_statistics(
                        hidden_NH, head.weight, completion_ids[inside], head.bias, self.temperature, scaling=scaling
                    )
                    if not len(hidden_NH) or (s.logprob_N - x.logprob_BT[inside]).abs().mean() < CLOSE:
                        sums[:, inside] = torch.stack([s.sum_p2_N, s.sum_p2_logp_N]).to(sums.dtype)
                        break
        if sums[:, inside].isnan().any() and not self._warned:
            self._warned = True
            warnings.warn(
                "this model's head is sharded or unlike any known: lever/*, dentropy/* and grad/share_* are left out",
                stacklevel=2,
            )
        return x.but(sum_p2_BT=sums[0], sum_p2_logp_BT=sums[1])

    def _note(self, name: str, value: float) -> None:
        self._metrics["train" if self.model.training else "eval"][name].append(value)

    def _mean(self, value_BT: Tensor, mask: Tensor) -> float:
        """Over the tokens of all processes."""
        totals = self.accelerator.reduce(torch.stack([(value_BT * mask).sum(), mask.sum().float()]), reduction="sum")
        return (totals[0] / totals[1].clamp(min=1.0)).item()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.model.training:
            logs.update(self._token_metrics())
        super().log(logs, start_time)

    def _token_metrics(self) -> dict[str, float]:
        """Of the updates since the last line, over all micro-batches and processes; what is not a
        number is left out."""
        tally = Tally.merged(gather_object([self.tally.settled()]))
        self.tally = Tally()
        if not tally.sums.get("tokens", torch.zeros(1)).sum():  # none since then, or all of them masked
            return {}
        updates, tokens = round(float(tally.sums["updates"])), float(tally.sums["tokens"].sum())
        made = tally.metrics(updates)
        made["loss/policy"] = float(tally.sums["loss/policy"]) / updates
        made |= {k: float(v) / tokens for k, v in tally.sums.items() if k.startswith("fact/")}
        for side in ("low", "high"):  # of a rollout's updates
            made[f"lever/{side}"] *= self.args.updates_per_rollout / updates
        made["entropy/mean"] = float(tally.sums["entropy_before"]) / tokens
        return batch.known(made)
