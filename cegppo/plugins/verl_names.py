"""What things are called in verl: a loss_mode, a knob's key, a metric. Names alone, so that what
only writes verl's configuration or reads its log needs no verl.

docs/verl.md and docs/coming-from.md have the same for people; a test compares.
"""

from typing import Any

from .. import losses
from ..instrument.entropy import CLASSES, SIDES

PREFIX = "cegppo."  # of every loss_mode of ours: verl has a gspo, a sapo, a clip_cov … of its own
ACTOR = "actor_rollout_ref.actor."
# Where a knob has a key in verl's configuration, that key sets it: below ACTOR.
SLOTS = {"eps_low": "clip_ratio_low", "eps_high": "clip_ratio_high"}
OWN_SLOTS = {
    "clip_cov": {
        "share": "policy_loss.clip_cov_ratio",
        "cov_low": "policy_loss.clip_cov_lb",
        "cov_high": "policy_loss.clip_cov_ub",
    },
    "kl_cov": {"share": "policy_loss.kl_cov_ratio", "beta": "policy_loss.ppo_kl_coef"},
    "sapo": {"tau_pos": "tau_pos", "tau_neg": "tau_neg"},
}
DUAL_CLIP = "clip_ratio_c"  # inf is off; verl's default is 3


def slots(name: str) -> dict[str, str]:
    """The knobs of loss `name` that verl's configuration has a key for, and that key below
    ACTOR."""
    return {k: v for k, v in (SLOTS | OWN_SLOTS.get(name, {})).items() if hasattr(losses.load(name).Params, k)}


def columns(updates: int) -> dict[str, Any]:
    """{metric of docs/metrics.md: verl's column, or {of, over, times}: a quotient, a multiple} of a
    run with `updates` mini-batches a step.

    verl means over a step's mini-batches, each by itself; the quotients are of such means.
    """
    made: dict[str, Any] = {
        "reward/mean": "critic/rewards/mean",
        "accuracy/mean": "critic/score/mean",  # where verl's reward is 0 or 1
        "length/mean": "response_length/mean",
        "entropy/mean": "actor/entropy",
        "loss/policy": "actor/pg_loss",
        "grad/norm": "actor/grad_norm",
        "time/step": "timing_s/step",
        "time/rollout": "timing_s/gen",
        "time/update": "timing_s/update_actor",
        "entropy/share_no_gradient": {"of": "actor/part/entropy_no_gradient", "over": "actor/part/entropy"},
    }
    same = ["tokens/zero_advantage", "entropy/q_mean", "kl/old_k1", "kl/old_k3", "ratio/min", "ratio/max"]
    same += ["dentropy/predicted", "dentropy/covariance"]
    for name in CLASSES[1:]:
        same += [f"tokens/{name}", f"clip/{name}", f"dentropy/predicted_{name}"]
        made[f"entropy/{name}"] = {"of": f"actor/part/entropy_{name}", "over": f"actor/tokens/{name}"}
        made[f"grad/share_{name}"] = {"of": f"actor/part/grad_{name}", "over": "actor/part/grad"}
    for name in SIDES[1:]:
        same += [f"clip/{name}", f"dentropy/predicted_clip_{name}"]
        made[f"clip/prob_{name}"] = {"of": f"actor/part/prob_{name}", "over": f"actor/clip/{name}"}
        made[f"entropy/q_{name}"] = {"of": f"actor/part/q_{name}", "over": f"actor/clip/{name}"}
        made[f"grad/share_clip_{name}"] = {"of": f"actor/part/grad_clip_{name}", "over": "actor/part/grad"}
        made[f"lever/{name}"] = {"of": f"actor/lever/{name}", "times": updates}
    return made | {name: f"actor/{name}" for name in same}
