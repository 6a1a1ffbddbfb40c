"""Every token loss of `cegppo.losses` in slime, as its custom loss.

    --loss-type custom_loss --custom-loss-function-path cegppo.plugins.slime.policy_loss
    --custom-config-path cegppo.yaml       # cegppo: {loss: cegppo, beta1: 0.5, beta2: 1.0}

In: slime's arguments, a micro-batch, the logits of its packed sequences and the reduction that
slime chose. Out: the loss and the metrics, reduced by it, as slime's own policy loss has them. Kept
of that loss: `--eps-clip` and `--eps-clip-high` where they are not 0.2 (as eps_low and eps_high),
`--eps-clip-c` (the dual clip), `--entropy-coef`, `--use-kl-loss`, `--use-rollout-logprobs` and
`--custom-pg-loss-reducer-function-path`. Refused: its corrections for the sampler (`--use-tis`,
`--use-opsm`), context parallelism, and losses over a whole mini-batch. Read at commit 624b824a
(0.3.1).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..types import BadInput
from .batch import load, refuse, serve, token_batch, token_facts

EPS_CLIP = 0.2  # slime's default, of both
REFUSED = ("use_tis", "use_opsm", "get_mismatch_metrics", "use_unbiased_kl")


def policy_loss(
    args: Any, batch: dict[str, Any], logits: Tensor, sum_of_sample_mean: Callable[[Tensor], Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """(loss, metrics) of a micro-batch. Raises BadInput."""
    from slime.backends.megatron_utils.loss import get_log_probs_and_entropy, get_rollout_top_p_logprob_kwargs

    for name in REFUSED:
        if getattr(args, name, False):
            raise BadInput(f"slime: --{name.replace('_', '-')} is not served with a loss of cegppo")
    knobs = dict(getattr(args, "cegppo", None) or {})
    for knob, given in (("eps_low", args.eps_clip), ("eps_high", args.eps_clip_high)):
        if given not in (None, EPS_CLIP):
            knobs.setdefault(knob, given)
    objective = load("slime", knobs.pop("loss", "cegppo"), knobs, dual_clip=getattr(args, "eps_clip_c", None) or 0.0)
    _, made = get_log_probs_and_entropy(
        logits,
        args=args,
        unconcat_tokens=batch["unconcat_tokens"],
        total_lengths=batch["total_lengths"],
        response_lengths=batch["response_lengths"],
        with_entropy=True,
        **get_rollout_top_p_logprob_kwargs(args, batch),
    )
    rows = lambda values: pad_sequence(list(values), batch_first=True)
    now, masks = made["log_probs"], batch["loss_masks"]
    if any(len(logprob) != len(mask) for logprob, mask in zip(now, masks)):
        raise BadInput("slime: context parallelism is not served with a loss of cegppo")
    old = batch["rollout_log_probs"] if args.use_rollout_logprobs else batch.get("log_probs")
    x = token_batch(
        rows(now), rows(old or now), rows(batch["advantages"]), rows(masks), entropy_BT=rows(made["entropy"])
    )
    refuse("slime", objective, x, whole=False)
    there_BT = rows([torch.ones_like(logprob, dtype=torch.bool) for logprob in now])
    reduce, reduce_loss = sum_of_sample_mean, _reducer(args, batch) or sum_of_sample_mean
    served = serve(objective, x, lambda loss_BT: reduce_loss(loss_BT[there_BT]))
    metrics = {name: reduce(fact[there_BT]) for name, fact in token_facts(x, served.weights).items()}
    entropy = reduce(torch.cat(made["entropy"]))
    loss = served.loss - args.entropy_coef * entropy
    metrics |= {"pg_loss": served.loss.detach(), "entropy_loss": entropy.detach()}
    if args.use_kl_loss:
        from slime.utils.ppo_utils import compute_approx_kl

        kl = reduce(
            compute_approx_kl(torch.cat(now), torch.cat(batch["ref_log_probs"]), kl_loss_type=args.kl_loss_type)
        )
        loss = loss + args.kl_loss_coef * kl
        metrics["kl_loss"] = kl.detach()
    return loss, {"loss": loss.detach(), **metrics}


def _reducer(args: Any, batch: dict[str, Any]) -> Callable[[Tensor], Tensor] | None:
    """The user's own reduction of the policy loss; None where there is none."""
    path = getattr(args, "custom_pg_loss_reducer_function_path", None)
    if path is None:
        return None
    from slime.utils.misc import load_function

    made: Callable[[Tensor], Tensor] = load_function(path)(
        batch["total_lengths"], batch["response_lengths"], batch["loss_masks"], args.calculate_per_token_loss
    )
    return made
