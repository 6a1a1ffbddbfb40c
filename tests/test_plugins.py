"""What every adapter in cegppo/plugins stands on: another trainer's tensors, by our losses and our
instrument, however that trainer cuts them up."""

import dataclasses
from dataclasses import fields

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from cegppo import losses
from cegppo.instrument.tally import Tally
from cegppo.objective import Objective, Terms, weigh
from cegppo.plugins.batch import known, load, parts, refuse, serve, token_batch
from cegppo.types import BadInput, TokenBatch

from .losses.batches import ragged

NEEDS = {  # besides log-probabilities, advantage and mask
    "boundary_rescue": {"uniform_BT"},
    "clip_b": {"old_entropy_BT"},
    "clip_cov": {"uniform_BT"},
    "erc": {"entropy_BT", "old_entropy_BT"},
    "lp_reg": {"proxy_logprob_BT"},
    "steer": {"entropy_BT"},
    "top_entropy": {"entropy_BT"},
}


def measured(seed: int = 0) -> TokenBatch:
    """Rows with every statistic that a forward pass can give, made up but possible: of a uniform
    vocabulary of 50 but for the sampled token."""
    x = ragged(seed)
    p_BT = x.logprob_BT.detach().exp().clamp(max=0.99)
    rest_BT = (1 - p_BT) / 49
    return x.but(
        logprob_BT=p_BT.log().requires_grad_(),
        entropy_BT=-(p_BT * p_BT.log() + 49 * rest_BT * rest_BT.log()),
        sum_p2_BT=p_BT**2 + 49 * rest_BT**2,
        sum_p2_logp_BT=p_BT**2 * p_BT.log() + 49 * rest_BT**2 * rest_BT.log(),
    )


def as_given(x: TokenBatch, **changes) -> TokenBatch:
    """`x` as a trainer hands it over: nothing but tensors."""
    fields = dict(entropy_BT=x.entropy_BT, sum_p2_BT=x.sum_p2_BT, sum_p2_logp_BT=x.sum_p2_logp_BT)
    return token_batch(x.logprob_BT, x.old_logprob_BT, x.advantage_BT, x.mask_BT, **fields | changes)


def token_mean(mask_BT: torch.Tensor, tokens: float):
    return lambda loss_BT: (loss_BT * mask_BT).sum() / tokens


@pytest.mark.parametrize("name", losses.names())
def test_what_a_loss_reads_is_known_beforehand(name):
    assert load("here", name, {}).needs == NEEDS.get(name, set())


@pytest.mark.parametrize("name", losses.names())
def test_a_loss_without_what_it_reads_is_refused_and_all_others_are_served(name):
    """Served, the value and the gradient are those of our own objective on the same tokens."""
    x = measured()
    given = as_given(x, entropy_BT=None, sum_p2_BT=None, sum_p2_logp_BT=None)
    objective = load("there", name, {}, dual_clip=3.0)
    if name in NEEDS:
        field = min(NEEDS[name]).removesuffix("_BT")
        with pytest.raises(BadInput, match=f"there: loss '{name}' needs {field}, which there does not give it"):
            refuse("there", objective, given, whole=True)
        return
    refuse("there", objective, given, whole=True)
    served = serve(objective, given, token_mean(x.mask_BT, float(x.mask_BT.sum())))
    ours, _ = Objective(losses.load(name), losses.load(name).Params(), Terms(dual_clip=3.0)).losses(
        x, {"policy": x.mask_BT / x.mask_BT.sum()}
    )
    torch.testing.assert_close(served.loss, ours["policy"].sum())
    (slope_BT,) = torch.autograd.grad(served.loss, x.logprob_BT, retain_graph=True)
    (ours_BT,) = torch.autograd.grad(ours["policy"].sum(), x.logprob_BT)
    torch.testing.assert_close(slope_BT, ours_BT)
    torch.testing.assert_close(served.weights.total_slope_BT, ours_BT)


def test_a_rule_over_the_whole_mini_batch_refuses_a_part_of_it():
    objective, x = load("there", "m2po", {}), as_given(measured())
    refuse("there", objective, x, whole=True)
    with pytest.raises(BadInput, match="'m2po' is a rule over the whole mini-batch, and there gave it a part"):
        refuse("there", objective, x, whole=False)


@pytest.mark.parametrize("cuts", [[6], [3, 6], [1, 2, 4, 6]])
def test_parts_add_up_to_the_metrics_however_a_batch_is_cut(cuts):
    """Sums of `parts`, and the quotients that their docstring names, are a Tally's metrics; a part
    without a token has the same names."""
    x, factor_BT = measured(), torch.rand(6, 7, dtype=torch.float64)
    tokens, objective = float(x.mask_BT.sum()), load("there", "cegppo", {"beta1": 0.5, "beta2": 1.5})
    whole = Tally()
    served = serve(objective, as_given(x), token_mean(x.mask_BT, tokens), factor_BT)
    whole.add_tokens(x, served.weights, served.scale_BT)
    added: dict[str, float] = {}
    loss = 0.0
    for begin, end in zip([0, *cuts], cuts):
        rows = slice(begin, end)
        cut = dataclasses.replace(
            x, **{f.name: v[rows] for f in dataclasses.fields(x) if (v := getattr(x, f.name)) is not None}
        )
        served = serve(objective, as_given(cut), token_mean(cut.mask_BT, tokens), factor_BT[rows])
        tally = Tally()
        tally.add_tokens(as_given(cut), served.weights, served.scale_BT)
        for name, value in parts(tally, tokens).items():
            added[name] = added.get(name, 0.0) + value
        loss += float(served.loss.detach())
    assert parts(Tally(), tokens).keys() == added.keys() and not any(parts(Tally(), tokens).values())
    for name, denominator in [("low", "clip/low"), ("high", "clip/high")]:
        added[f"clip/prob_{name}"] = added.pop(f"part/prob_{name}") / added[denominator]
        added[f"entropy/q_{name}"] = added.pop(f"part/q_{name}") / added[denominator]
    for name in ("pa_hp", "pa_lp", "na_hp", "na_lp"):
        if added[f"tokens/{name}"]:
            added[f"entropy/{name}"] = added[f"part/entropy_{name}"] / added[f"tokens/{name}"]
        del added[f"part/entropy_{name}"]
    norm = added.pop("part/grad")
    for name in [name for name in added if name.startswith("part/grad_")]:
        added[name.replace("part/grad_", "grad/share_")] = added.pop(name) / norm
    added["entropy/share_no_gradient"] = added.pop("part/entropy_no_gradient") / added.pop("part/entropy")
    expected = {k: v for k, v in whole.metrics(1).items() if "_q" not in k or k.startswith("entropy")}
    for key in ("ratio/min", "ratio/max"):  # which do not add up
        del expected[key]
    assert added == pytest.approx(expected, rel=1e-9, abs=1e-15)
    together = serve(objective, as_given(x), token_mean(x.mask_BT, tokens), factor_BT).loss
    assert loss == pytest.approx(float(together.detach()), rel=1e-12)
    (weight_BT,) = torch.autograd.grad(together, x.logprob_BT)
    plain, _ = weigh(objective, x, {"policy": x.mask_BT / tokens})
    torch.testing.assert_close(weight_BT, plain.total_slope_BT * factor_BT)


def test_what_a_trainer_does_not_give_is_left_out_and_nothing_else():
    x = measured()
    everything, some = Tally(), Tally()
    for tally, given in ((everything, as_given(x)), (some, as_given(x, entropy_BT=None, sum_p2_BT=None))):
        served = serve(load("there", "ppo_clip", {}), given, token_mean(x.mask_BT, 25.0))
        tally.add_tokens(given, served.weights, served.scale_BT)
    of_all, of_some = known(everything.metrics(2)), known(some.metrics(2))
    assert of_all == everything.metrics(2)
    assert of_some == {k: v for k, v in of_all.items() if k in of_some}
    assert {k.split("/")[0] for k in of_all.keys() - of_some.keys()} == {"entropy", "grad", "dentropy", "lever"}
    assert {k.split("/")[0] for k in of_some} == {"tokens", "clip", "kl", "ratio"}


def test_a_line_whose_completions_are_all_cut_and_masked_has_no_metrics_of_tokens():
    """As a trainer that masks truncated completions hands it over: a loss of 0, and no KeyError."""
    x = as_given(measured().but(mask_BT=torch.zeros_like(measured().mask_BT)))
    served = serve(load("there", "cegppo", {}), x, token_mean(x.mask_BT, 1.0))
    tally = Tally()
    tally.add_tokens(x, served.weights, served.scale_BT)
    assert served.loss == 0 and tally.settled().metrics(1) == {} and "tokens" not in tally.sums
    whole = as_given(measured())
    served = serve(load("there", "cegppo", {}), whole, token_mean(whole.mask_BT, 1.0))
    alone = Tally()
    for each in (tally, alone):
        each.add_tokens(whole, served.weights, served.scale_BT)
    assert tally.settled().metrics(1) == alone.settled().metrics(1)


def test_advantages_may_be_one_a_row_and_half_precision_is_widened():
    logprob_BT = torch.full((2, 3), -1.0, dtype=torch.bfloat16, requires_grad=True)
    x = token_batch(logprob_BT, logprob_BT, torch.tensor([1.0, -2.0]), torch.ones(2, 3, dtype=torch.bool))
    assert x.logprob_BT.dtype == x.mask_BT.dtype == torch.float32 and x.old_logprob_BT.grad_fn is None
    assert x.advantage_BT.tolist() == [[1.0] * 3, [-2.0] * 3]
    serve(load("there", "reinforce", {}), x, torch.sum).loss.backward()
    assert logprob_BT.grad.float().tolist() == [[-1.0] * 3, [2.0] * 3]


@pytest.mark.parametrize(
    "name, knobs, says",
    [
        ("cegpo", {}, "verl: unknown loss 'cegpo'; did you mean 'cegppo'?"),
        ("cegppo", {"beta_1": 0.5}, "verl: loss 'cegppo' has no knob 'beta_1'; did you mean 'beta1'?"),
        ("cegppo", {"beta1": "half"}, "verl: beta1 takes a float, not 'half'"),
        ("cegppo", {"beta1": -1.0}, "verl: beta1 must be at least 0, not -1.0"),
        ("cegppo", {"beta1": [[0, 0.0]]}, "verl: beta1 takes one value here, and no schedule"),
        ("reinforce", {"eps": 1}, "verl: loss 'reinforce' has no knob 'eps'; it has no knobs"),
    ],
)
def test_a_wrong_name_or_value_is_one_clear_line(name, knobs, says):
    with pytest.raises(BadInput) as error:
        load("verl", name, knobs)
    assert str(error.value).startswith(says)


FIELDS = (
    "logprob_BT", "old_logprob_BT", "advantage_BT", "entropy_BT", "sum_p2_BT", "sum_p2_logp_BT", "old_entropy_BT",
    "proxy_logprob_BT", "uniform_BT", "sampler_logprob_BT", "behaviour_logprob_BT", "ref_logprob_BT", "old_value_BT",
    "return_BT",
)  # fmt: skip
JUNK = (float("nan"), float("inf"), -float("inf"), 1e300)


def _handed_over(name: str, junk_of: dict[str, float]) -> tuple[torch.Tensor, torch.Tensor, dict[str, float]]:
    """(loss, gradient by what a trainer computed, facts) of loss `name`, with junk at the masked
    places of the fields named."""
    x, own = measured(), {}
    inside = x.mask_BT.bool()
    leaf = x.logprob_BT.detach().requires_grad_()
    for field in FIELDS:
        value = leaf + 0 if field == "logprob_BT" else getattr(x, field).detach()
        own[field] = torch.where(inside, value, junk_of.get(field, 0.0))
    factor_BT = torch.where(inside, x.mask_BT / 2, junk_of.get("factor", 0.0))
    first = [own.pop(field) for field in FIELDS[:3]]
    served = serve(
        load("there", name, {}, dual_clip=3.0), token_batch(*first, x.mask_BT, **own),
        token_mean(x.mask_BT, float(x.mask_BT.sum())), factor_BT,
    )  # fmt: skip
    return served.loss, torch.autograd.grad(served.loss, leaf)[0], served.facts


def test_every_field_of_tokens_is_tried():
    assert set(FIELDS) == {f.name for f in fields(TokenBatch) if f.name.endswith("_BT")} - {"mask_BT"}


@pytest.mark.parametrize("name", losses.names())
@hypothesis.settings(max_examples=15, deadline=None)
@hypothesis.given(junk_of=st.dictionaries(st.sampled_from([*FIELDS, "factor"]), st.sampled_from(JUNK), min_size=1))
def test_nothing_at_a_masked_place_reaches_a_loss_or_a_gradient(name, junk_of):
    (loss, gradient, facts), (right, exact, known_facts) = _handed_over(name, junk_of), _handed_over(name, {})
    assert torch.equal(loss, right) and torch.equal(gradient, exact) and facts == known_facts
    assert gradient.isfinite().all() and not gradient[~measured().mask_BT.bool()].any()
