"""Every token loss of `cegppo.losses` in prime-rl, as the custom loss of its trainer.

    [trainer.loss]
    type = "custom"
    import_path = "cegppo.plugins.prime_rl.policy_loss"

    [trainer.loss.kwargs]
    loss = "cegppo"
    beta1 = 0.5
    beta2 = 1.0

In: prime-rl's LossInputs, one sequence, in which the ratio is against the sampler's
log-probabilities. Out: its LossOutputs, with a sum over the loss mask, which prime-rl divides by
the tokens of all ranks. The metrics are one number a token, of which prime-rl takes means
(`clip/low/mean`), every token the same. prime-rl hands on no entropy: losses that read one are
refused, and so is what is over a whole mini-batch. Read at commit 559b4477 (0.8.1.dev67).
"""

from typing import Any

from .batch import load, refuse, serve, token_batch, token_facts


def policy_loss(inputs: Any, loss: str = "cegppo", **knobs: Any) -> Any:
    """LossInputs to LossOutputs, by `loss` with its `knobs` (docs/methods.md). Raises BadInput."""
    from prime_rl.trainer.rl.loss import LossOutputs

    objective = load("prime-rl", loss, knobs)
    x = token_batch(
        inputs.trainer_logprobs[None],
        inputs.inference_logprobs[None],
        inputs.advantages[None],
        inputs.loss_mask[None],
    )
    refuse("prime-rl", objective, x, whole=False)
    weight_T = 1.0 if inputs.loss_weights is None else inputs.loss_weights
    served = serve(objective, x, lambda loss_BT: (loss_BT * weight_T).sum())
    facts = token_facts(x, served.weights)
    return LossOutputs(loss=served.loss, metrics={name: fact[x.mask_BT.bool()] for name, fact in facts.items()})
