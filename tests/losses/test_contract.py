"""What every loss file keeps to (cegppo/losses/__init__.py), found by its name alone.

What only some losses keep to, such as their limits, is in the test_<name>.py beside this file.
"""

import dataclasses

import pytest
import torch

from cegppo import losses
from cegppo.objective import Objective
from cegppo.types import TokenBatch

from .batches import CELLS, evaluated, one_row, ragged

every_loss = pytest.mark.parametrize("name", losses.names())
exactly = dict(rtol=1e-12, atol=1e-12)
# Losses whose bounds are not 1 − eps_low and 1 + eps_high, or that have none on a token's ratio.
OWN_BOUNDS = ["abc_grpo", "bapo", "dppo", "flexible_clip", "gmpo", "gspo", "ipo", "kl_cov", "m2po", "reinforce", "sapo"]
OWN_BOUNDS += ["topr", "vespo"]


@every_loss
def test_knobs_are_frozen_and_have_defaults(name):
    params = losses.load(name).Params
    assert dataclasses.is_dataclass(params) and params.__dataclass_params__.frozen
    params()


@every_loss
def test_loss_and_facts_are_per_token(name):
    x = ragged()
    loss_BT, weight_BT, facts = evaluated(name, x)
    assert loss_BT.shape == x.mask_BT.shape and loss_BT.dtype == torch.float64
    assert all(fact.shape == x.mask_BT.shape for fact in facts.values())
    assert weight_BT.any(), "nothing is learned from six rows of all kinds"


class Asked:
    """A batch that notes which of its fields are read."""

    def __init__(self, batch, names):
        self.batch, self.names = batch, names

    def __getattr__(self, name):
        self.names.add(name)
        return getattr(self.batch, name)

    def __len__(self):
        return len(self.batch)

    def but(self, **changes):
        return Asked(self.batch.but(**changes), self.names)


@every_loss
def test_it_says_what_it_reads(name):
    """NEEDS, DRAWS and PROXY name every field besides those that any trainer gives."""
    module, names = losses.load(name), set()
    module.token_loss(Asked(ragged(), names), module.Params())
    given = {"logprob_BT", "old_logprob_BT", "advantage_BT", "mask_BT"}
    read = {field.name for field in dataclasses.fields(TokenBatch)} & names - given
    assert Objective(module, module.Params()).needs == read


@every_loss
@pytest.mark.parametrize("log_ratio", [-2000.0, -800.0, 800.0])
def test_extreme_ratios_stay_finite(name, log_ratio):
    x = one_row([(1.5, 1.0), (-0.5, 1.0)])
    x = x.but(logprob_BT=(x.old_logprob_BT + log_ratio).requires_grad_())
    loss_BT, weight_BT, _ = evaluated(name, x)
    assert loss_BT.isfinite().all() and weight_BT.isfinite().all()


@every_loss
def test_what_is_outside_the_mask_does_not_count(name):
    """Neither for a token's loss nor for its weight, and it gets no weight itself."""
    x = ragged()
    inside = x.mask_BT.bool()
    generator = torch.Generator().manual_seed(9)
    noise = lambda: torch.randn(x.mask_BT.shape, generator=generator, dtype=torch.float64) * (1 - x.mask_BT)
    noisy = x.but(
        logprob_BT=(x.logprob_BT.detach() - 3 * noise().abs()).requires_grad_(),
        old_logprob_BT=x.old_logprob_BT - noise().abs(),
        advantage_BT=x.advantage_BT + noise(),
        entropy_BT=x.entropy_BT + noise().abs(),
        old_entropy_BT=x.old_entropy_BT + noise().abs(),
        proxy_logprob_BT=x.proxy_logprob_BT - noise().abs(),
        uniform_BT=x.uniform_BT - noise().abs(),
    )
    clean_loss_BT, clean_weight_BT, clean_facts = evaluated(name, x)
    loss_BT, weight_BT, facts = evaluated(name, noisy)
    torch.testing.assert_close(loss_BT[inside], clean_loss_BT[inside], **exactly)
    torch.testing.assert_close(weight_BT, clean_weight_BT, **exactly)
    assert not weight_BT[~inside].any()
    for key, fact_BT in facts.items():
        torch.testing.assert_close(fact_BT[inside], clean_facts[key][inside], **exactly)


@every_loss
def test_padding_does_not_count(name):
    x = ragged()
    more = {f.name: getattr(x, f.name) for f in dataclasses.fields(x)}
    padded = {key: torch.nn.functional.pad(v.detach(), (0, 3)) for key, v in more.items() if v is not None}
    wide = x.but(**padded | {"logprob_BT": padded["logprob_BT"].requires_grad_()})
    loss_BT, weight_BT, _ = evaluated(name, x)
    wide_loss_BT, wide_weight_BT, _ = evaluated(name, wide)
    inside = x.mask_BT.bool()
    torch.testing.assert_close(wide_loss_BT[:, :-3][inside], loss_BT[inside], **exactly)
    torch.testing.assert_close(wide_weight_BT[:, :-3], weight_BT, **exactly)


@every_loss
def test_micro_batches_do_not_count(name):
    """Rows by themselves, each cut to its own length, unless the loss asks for all of them."""
    if getattr(losses.load(name), "WHOLE_BATCH", False):
        pytest.skip("is given the whole mini-batch")
    x = ragged()
    loss_BT, weight_BT, facts = evaluated(name, x)
    for index in ([0], [1, 4], [5, 3, 2]):
        part = x.rows(torch.tensor(index))
        part = part.but(logprob_BT=part.logprob_BT.detach().requires_grad_())
        inside, width = part.mask_BT.bool(), part.mask_BT.shape[1]
        part_loss_BT, part_weight_BT, part_facts = evaluated(name, part)
        torch.testing.assert_close(part_loss_BT[inside], loss_BT[index, :width][inside], **exactly)
        torch.testing.assert_close(part_weight_BT[inside], weight_BT[index, :width][inside], **exactly)
        for key, fact_BT in part_facts.items():
            torch.testing.assert_close(fact_BT[inside], facts[key][index, :width][inside], **exactly)


@every_loss
def test_the_weight_is_what_autograd_sends_to_the_logits(name):
    """Back-propagated through a softmax, the loss moves the logits by −w (e_a − π) and by nothing
    else, w being measured with log π as a leaf, as the instrument does."""
    generator = torch.Generator().manual_seed(3)
    logits_BTV = torch.randn(6, 7, 5, generator=generator, dtype=torch.float64).requires_grad_()
    token_BT1 = torch.randint(5, (6, 7, 1), generator=generator)
    logp_BTV = logits_BTV.log_softmax(-1)
    x = ragged()
    logprob_BT = logp_BTV.gather(-1, token_BT1)[..., 0]
    old_BT = logprob_BT.detach() + (x.old_logprob_BT - x.logprob_BT.detach())  # the ratios of the ragged batch
    x = x.but(logprob_BT=logprob_BT, old_logprob_BT=old_BT)
    module = losses.load(name)
    loss_BT, _ = module.token_loss(x, module.Params())
    (ours_BTV,) = torch.autograd.grad(loss_BT[x.mask_BT.bool()].sum(), logits_BTV)
    _, weight_BT, _ = evaluated(name, x.but(logprob_BT=logprob_BT.detach().requires_grad_()))
    score_BTV = torch.zeros_like(logp_BTV).scatter(-1, token_BT1, 1.0) - logp_BTV.detach().exp()
    torch.testing.assert_close(ours_BTV, -weight_BT[..., None] * score_BTV, **exactly)


@every_loss
def test_it_mutates_nothing_and_leaves_the_global_generator_alone(name):
    module, x = losses.load(name), one_row(CELLS)
    before = {f.name: getattr(x, f.name).clone() for f in dataclasses.fields(x) if getattr(x, f.name) is not None}
    state = torch.get_rng_state()
    first, _ = module.token_loss(x, module.Params())
    assert torch.equal(state, torch.get_rng_state())
    for key, value in before.items():  # what was not given is NaN, and stays so
        torch.testing.assert_close(getattr(x, key), value, rtol=0, atol=0, equal_nan=True)
    second, _ = module.token_loss(x, module.Params())
    assert torch.equal(first, second)


@every_loss
def test_bounds_are_stated_on_both_sides_or_not_at_all(name):
    """`clip_low` below 1, `clip_high` above it, and a loss that states the one states the other."""
    _, _, facts = evaluated(name, ragged())
    assert ("clip_low" in facts) == ("clip_high" in facts)
    if "clip_low" in facts:
        assert (facts["clip_low"] < 1).all() and (facts["clip_high"] > 1).all()


@pytest.mark.parametrize("name", [n for n in losses.names() if n not in OWN_BOUNDS])
def test_a_loss_that_clips_a_token_s_ratio_states_where(name):
    x = one_row(CELLS)
    _, _, facts = evaluated(name, x, eps_low=0.1, eps_high=0.3)
    torch.testing.assert_close(facts["clip_low"], torch.full_like(x.mask_BT, 0.9))
    torch.testing.assert_close(facts["clip_high"], torch.full_like(x.mask_BT, 1.3))
