"""The ledger against autograd, against a momentum kept by class, against measured entropies; and
what it must not do."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from cegppo import losses
from cegppo.batch import split_evenly
from cegppo.instrument.entropy import BY_PROBABILITY, CLASSES
from cegppo.instrument.ledger import Ledger
from cegppo.instrument.tally import Tally
from cegppo.model.head import token_statistics
from cegppo.model.policy import Room
from cegppo.objective import Objective, Terms
from cegppo.record.files import read_lines
from cegppo.state import build
from cegppo.train import run_training
from cegppo.types import TokenBatch

from . import steps
from .test_train import Silent, gradient, load, moved

ROOT = Path(__file__).resolve().parent.parent
B, T, F, V = 12, 8, 10, 15


class SmallPolicy:
    """Logits from fixed features in float64: a regression, or a network with one hidden layer, in
    the place of a language model."""

    def __init__(self, hidden=0, depth=1, dtype=torch.float64):
        generator = torch.Generator().manual_seed(7)
        self.features_BTF = torch.randn(B, T, F, generator=generator, dtype=torch.float64).to(dtype)
        self.token_BT = torch.randint(V, (B, T), generator=generator)
        torch.manual_seed(0)
        inner = [layer for _ in range(depth - 1) for layer in (nn.Linear(hidden, hidden), nn.Tanh())]
        layers = [nn.Linear(F, hidden), nn.Tanh(), *inner, nn.Linear(hidden, V)]
        layers = layers if hidden else [nn.Linear(F, V, bias=False)]
        self.model = nn.Sequential(*layers).to(dtype)
        self.room = Room(B * T)

    def micro_batches(self, x):
        for index in torch.arange(len(x)).chunk(3):
            yield index, x.rows(index)

    def statistics(self, x, entropy_grad=False):
        inside = x.mask_BT.bool()
        pick = lambda v: v[x.row_B][:, : x.mask_BT.shape[1]][inside]
        return token_statistics(self.model(pick(self.features_BTF)), pick(self.token_BT), entropy_grad)

    def exactly(self):
        from contextlib import nullcontext

        return nullcontext()

    def score_bytes(self, x):
        return 0

    def batch(self, spread=0.5):
        """Twelve rows in four groups, a third with A = 0, ratios on both sides of the clip."""
        generator = torch.Generator().manual_seed(3)
        mask = (torch.arange(T) < torch.randint(2, T + 1, (B, 1), generator=generator)).double()
        advantage = (torch.arange(B) % 3 - 1.0).double()[:, None] * mask
        blank = torch.zeros_like(mask)
        mini = TokenBatch(blank, blank, advantage, mask, blank, row_B=torch.arange(B))
        old = blank.masked_scatter(mask.bool(), self.statistics(mini).logprob_N.detach().double())
        noise = torch.randn(B, T, generator=generator, dtype=torch.float64)
        return mini.but(old_logprob_BT=old + spread * noise * mask)


def objective(name="cegppo", terms=None, **knobs):
    module = losses.load(name)
    return Objective(module, module.Params(**knobs), Terms(**(terms or {})))


def step(policy, optimizer, minis, chosen, *, grad_clip=0.0, **options):
    """A looked-at step: (metrics, ledger)."""
    ledger = Ledger(policy, optimizer, minis[0], BY_PROBABILITY, updates=len(minis), **options)
    for mini in minis:
        steps.update(policy, optimizer, mini, chosen, Tally(), grad_clip=grad_clip, ledger=ledger)
    return ledger.close(), ledger


def flat(values):
    return torch.cat([v.detach().flatten() for v in values])


@pytest.mark.parametrize("hidden", [0, 6])
def test_influence_is_autograd_token_by_token(hidden):
    """J_t against ⟨D ∘ ∇H, ∇ log π(y_t)⟩ from one backward pass a token, to 1e-6, AdamW in
    mid-run."""
    policy = SmallPolicy(hidden)
    mini = policy.batch()
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.1)
    chosen = objective(beta1=0.5, beta2=1.0)
    for _ in range(3):
        steps.update(policy, optimizer, mini, chosen, Tally(), grad_clip=0.05)
    s = policy.statistics(mini, entropy_grad=True)
    parameters = list(policy.model.parameters())
    slope = torch.autograd.grad(s.entropy_N.mean(), parameters, retain_graph=True)
    per_token = [flat(torch.autograd.grad(value, parameters, retain_graph=True)) for value in s.logprob_N]
    made, ledger = step(policy, optimizer, [mini], chosen, grad_clip=0.05)
    t = optimizer.state[parameters[0]]["step"].item()
    second = flat([optimizer.state[p]["exp_avg_sq"] for p in parameters])
    d = -3e-3 / (1 - 0.9**t) * 0.1 / ((second / (1 - 0.98**t)).sqrt() + 1e-8) * made["ledger/clip_factor"]
    expected = torch.stack([(d * flat(slope) * g).sum() for g in per_token])
    found = ledger.seen[0].influence_BT[mini.mask_BT.bool()]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))
    assert made["ledger/influence_residual"] < 1e-6 and made["ledger/clip_factor"] < 0.9
    assert made["ledger/step_residual"] < 1e-9


@pytest.mark.parametrize("exact", [True, False])
def test_parameters_and_gradients_are_what_they_were(monkeypatch, exact):
    """After each call of the ledger, bit for bit."""
    if not exact:
        monkeypatch.setattr("cegppo.instrument.ledger.EXACT_BYTES", 0)
    policy = SmallPolicy(6, dtype=torch.float32)
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=1e-2)
    seen = []

    class Watched(Ledger):
        def after(self):
            kept = [(p.detach().clone(), p.grad.clone()) for p in self.parameters]
            super().after()
            seen.append(all(torch.equal(p, q) and torch.equal(p.grad, g) for p, (q, g) in zip(self.parameters, kept)))

    mini = policy.batch()
    ledger = Watched(policy, optimizer, mini, BY_PROBABILITY, updates=2, apart=True)
    for _ in range(2):
        steps.update(policy, optimizer, mini, objective(), Tally(), ledger=ledger)
    kept = [p.detach().clone() for p in policy.model.parameters()]
    ledger.close()
    assert seen == [True, True] and torch.equal(flat(kept), flat(policy.model.parameters()))


def by_class(policy, mini, chosen):
    """[class] lists of gradients of the policy loss, by backward passes; None the whole's."""
    from cegppo.model.policy import scatter
    from cegppo.objective import weigh

    s = policy.statistics(mini)
    x = mini.but(
        logprob_BT=scatter(s.logprob_N.detach(), mini.mask_BT), entropy_BT=scatter(s.entropy_N.detach(), mini.mask_BT)
    )
    w, _ = weigh(chosen, x, chosen.scales(mini))
    code = BY_PROBABILITY.codes(x.logprob_BT, x.entropy_BT, x.advantage_BT)[mini.mask_BT.bool()]
    slope = w.slope_BT[mini.mask_BT.bool()]
    of = lambda mask: flat(
        torch.autograd.grad(
            s.logprob_N, list(policy.model.parameters()), torch.where(mask, slope, 0.0), retain_graph=True
        )
    )
    return {name: of(code == c) for c, name in enumerate(CLASSES[1:], 1)}


@pytest.mark.parametrize("exact", [True, False])
def test_what_momentum_carries_within_a_step_is_attributed(monkeypatch, exact):
    """Against a first moment kept for each class by hand, over a step of four updates."""
    if not exact:
        monkeypatch.setattr("cegppo.instrument.ledger.EXACT_BYTES", 0)
    policy = SmallPolicy(6)
    parameters = list(policy.model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.98), weight_decay=0.05)
    chosen = objective(beta1=0.5, beta2=1.0)
    mini = policy.batch()
    minis = [mini.rows(torch.arange(start, start + 6)) for start in (0, 3, 6, 0)]
    for _ in range(30):  # momentum from before the step
        steps.update(policy, optimizer, mini, chosen, Tally())
    # By hand, on a copy.
    state = {k: v.clone() for k, v in policy.model.state_dict().items()}
    saved = optimizer.state_dict()
    import copy

    saved = copy.deepcopy(saved)
    moment = dict.fromkeys(CLASSES[1:], 0.0)
    at_once, carried, from_before = dict.fromkeys(CLASSES[1:], 0.0), dict.fromkeys(CLASSES[1:], 0.0), 0.0
    old = flat([optimizer.state[p]["exp_avg"] for p in parameters])
    for u, part in enumerate(minis):
        s = policy.statistics(minis[0], entropy_grad=True)  # the probe
        slope = flat(torch.autograd.grad(s.entropy_N.mean(), parameters))
        own = by_class(policy, part, chosen)
        steps.update(policy, optimizer, part, chosen, Tally())
        t = optimizer.state[parameters[0]]["step"].item()
        second = flat([optimizer.state[p]["exp_avg_sq"] for p in parameters])
        scale = -1e-4 / (1 - 0.9**t) / ((second / (1 - 0.98**t)).sqrt() + 1e-8)
        from_before += float((slope * scale * 0.9 ** (u + 1) * old).sum())
        for name in CLASSES[1:]:
            carried[name] += float((slope * scale * 0.9 * moment[name]).sum())
            at_once[name] += float((slope * scale * 0.1 * own[name]).sum())
            moment[name] = 0.9 * moment[name] + 0.1 * own[name]
    policy.model.load_state_dict(state)
    optimizer.load_state_dict(saved)
    made, ledger = step(policy, optimizer, minis, chosen)
    assert made["ledger/carried_exact"] == exact and made["ledger/updates"] == 4
    size = max(map(abs, carried.values()))
    for name in CLASSES[1:]:
        assert made[f"ledger/predicted_{name}"] == pytest.approx(at_once[name], rel=1e-6, abs=1e-12)
        near = dict(rel=1e-6) if exact else dict(abs=0.2 * size)  # the recursion holds D and ∇H
        assert made[f"ledger/carried_{name}"] == pytest.approx(carried[name], **near)
    before = pytest.approx(from_before, rel=1e-5) if exact else pytest.approx(from_before, abs=0.2 * size)
    assert made["ledger/predicted_momentum"] == before
    whole = sum(made[f"ledger/{kind}_{name}"] for kind in ("predicted", "carried") for name in (*CLASSES[1:], "other"))
    assert whole + made["ledger/predicted_momentum"] + made["ledger/predicted_decay"] == pytest.approx(
        made["ledger/predicted"], rel=1e-6
    )
    assert made["dentropy/measured"] == pytest.approx(made["ledger/predicted"], rel=0.05)


def test_with_sgd_the_remainder_is_of_second_order():
    """Halving the step quarters what the classes' sum misses."""
    remainders = []
    for lr in (2.0, 1.0, 0.5):
        policy = SmallPolicy()
        optimizer = torch.optim.SGD(policy.model.parameters(), lr=lr)
        m, _ = step(policy, optimizer, [policy.batch()], objective(beta1=0.5, beta2=1.0), grad_clip=0.05)
        assert m["ledger/clip_factor"] < 0.5 and m["ledger/predicted_momentum"] == pytest.approx(0, abs=1e-12)
        parts = sum(m[f"ledger/predicted_{name}"] for name in CLASSES[1:])
        assert parts == pytest.approx(m["ledger/predicted"], rel=1e-6)
        remainders.append(m["dentropy/measured"] - parts)
    assert remainders[0] / remainders[1] == pytest.approx(4, rel=0.05)
    assert remainders[1] / remainders[2] == pytest.approx(4, rel=0.05)


EXTRA = dict(entropy_coef=0.05, nll_coef=0.1)


def test_parts_of_one_update(tmp_path):
    """Taken apart by backward passes: each part alone does what first order says, and the cells are
    those of the clip sides."""
    policy = SmallPolicy(6)
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=1e-5, weight_decay=0.1)
    mini = policy.batch().but(correct_B=torch.arange(B).remainder(2).double())
    chosen = objective(terms=EXTRA, beta1=0.5, beta2=1.0)
    for _ in range(3):
        steps.update(policy, optimizer, mini, chosen, Tally(), grad_clip=0.05)
    m, _ = step(policy, optimizer, [mini, mini], chosen, grad_clip=0.05, apart=True)
    assert m["ledger/gradient_residual"] < 1e-12 and m["ledger/step_residual"] < 1e-8
    assert m["ledger/predicted_other"] != 0 and m["ledger/predicted_decay"] != 0
    for name in (*CLASSES[1:], "momentum", "decay", "other"):
        near = pytest.approx(m[f"ledger/first_order_{name}"], rel=0.02, abs=1e-7)
        assert m[f"ledger/measured_{name}"] == near, name
    cells = {key.removeprefix("ledger/norm_") for key in m if key.startswith("ledger/norm_")}
    assert {"na_lp_low", "pa_lp_high", "pa_lp_inside", "other"} <= cells and "pa_lp_low" not in cells
    assert sum(m[f"ledger/share_{cell}"] for cell in cells) == pytest.approx(1)


@pytest.mark.parametrize("kind", ["none", "truncate", "mask"])
@pytest.mark.parametrize("betas", [(0.5, 1.0), (1.0, 0.0), (0.0, 1.0)])
def test_the_lever_of_grpo_is_what_cegppo_would_do(betas, kind):
    """Per unit of β, in parameter space: with plain SGD, whose slope does not depend on the
    gradient, the first-order change of a CE-GPPO update is that of GRPO and β₁ and β₂ times its
    levers."""
    made = {}
    for name, knobs in (("ppo_clip", {}), ("cegppo", dict(beta1=betas[0], beta2=betas[1]))):
        policy = SmallPolicy(6)
        optimizer = torch.optim.SGD(policy.model.parameters(), lr=0.1)
        mini = policy.batch()
        place = torch.arange(T).expand(B, T)  # a sampler that is off in places
        mini = mini.but(sampler_logprob_BT=mini.old_logprob_BT - 0.3 * (place % 3) * mini.mask_BT)
        chosen = objective(name, terms=dict(correction=kind, correction_high=1.5), **knobs)
        made[name], _ = step(policy, optimizer, [mini], chosen)
    grpo, ours = made["ppo_clip"], made["cegppo"]
    low, high = grpo["ledger/lever_low"], grpo["ledger/lever_high"]
    assert abs(low) > 1e-6 and abs(high) > 1e-6 and abs(low - high) > 1e-6
    assert ours["ledger/predicted"] - grpo["ledger/predicted"] == pytest.approx(
        betas[0] * low + betas[1] * high, rel=1e-6
    )
    assert ours["ledger/predicted_clip_low"] == pytest.approx(betas[0] * low, rel=1e-6, abs=1e-15)
    assert ours["ledger/predicted_clip_high"] == pytest.approx(betas[1] * high, rel=1e-6, abs=1e-15)
    assert grpo["ledger/predicted_clip_low"] == grpo["ledger/predicted_clip_high"] == 0


def test_the_lever_in_logit_space(tiny):
    """`lever/*` of GRPO times β is `dentropy/predicted_clip_*` of CE-GPPO on the same batch, side
    by side, and a hand-made sum."""
    tallies = {}
    for name, keys in (("grpo", []), ("cegppo", ["loss.beta1=0.5", "loss.beta2=0.75"])):
        state = build(load(tiny, f"method={name}", *keys))
        mini = moved(state, steps.batch(state))
        _, tally, _ = gradient(state, mini, 300)
        tallies[name] = tally.metrics(1)
    grpo, ours = tallies["grpo"], tallies["cegppo"]
    assert ours["dentropy/predicted_clip_low"] == pytest.approx(0.5 * grpo["lever/low"], rel=1e-5)
    assert ours["dentropy/predicted_clip_high"] == pytest.approx(0.75 * grpo["lever/high"], rel=1e-5)
    assert grpo["dentropy/predicted_clip_low"] == grpo["dentropy/predicted_clip_high"] == 0
    now = state.policy.evaluate(mini)
    logp, h, a = (v.double() for v in (now["logprob_BT"], now["entropy_BT"], mini.advantage_BT))
    q = logp.exp() * (logp + h)
    term = q - (now["sum_p2_logp_BT"] + h * now["sum_p2_BT"])
    ratio = (logp - mini.old_logprob_BT).exp()
    low, high = (a < 0) & (ratio < 0.8), (a > 0) & (ratio > 1.2)
    tokens = mini.mask_BT.sum()
    assert grpo["lever/low"] == pytest.approx(float(-(0.8 * a * term)[low].sum() / tokens), rel=1e-4)
    assert grpo["lever/high"] == pytest.approx(float(-(1.2 * a * term)[high].sum() / tokens), rel=1e-4)
    inside = mini.mask_BT.bool()
    assert grpo["entropy/q_mean"] == pytest.approx(float(q[inside].mean()), rel=1e-4)
    assert grpo["entropy/q_low"] == pytest.approx(float(q[low].mean()), rel=1e-4)
    assert grpo["entropy/q_high"] == pytest.approx(float(q[high].mean()), rel=1e-4)
    idle = inside & ((a == 0) | low | high)
    assert grpo["entropy/share_no_gradient"] == pytest.approx(float(h[idle].sum() / h[inside].sum()), rel=1e-4)


def test_grad_norm_and_losses_are_what_they_say(tiny):
    """`grad/norm` is the mean over updates of the norm before clipping, `loss/*` each term's
    value."""
    extra = ["update.kl_coef=0.1", "update.entropy_coef=0.01", "update.grad_clip=0.01"]
    settings = load(tiny, "method=cegppo", *extra)
    state, other = build(settings), build(settings)
    m = steps.step(state)
    x = steps.batch(other)
    norms, sums = [], {}
    optimizer = other.optimizer
    for mini in split_evenly(settings, x, steps.now(other), 0):
        s = other.policy.statistics(mini, entropy_grad=True)
        inside = mini.mask_BT.bool()
        a, old, ref = mini.advantage_BT[inside], mini.old_logprob_BT[inside], mini.ref_logprob_BT[inside]
        r = (s.logprob_N - old).exp()
        low, high = (a < 0) & (r < 0.8), (a > 0) & (r > 1.2)
        unit = torch.exp(s.logprob_N - s.logprob_N.detach())
        policy = -a * torch.where(low, 0.5 * 0.8 * unit, torch.where(high, 1.2 * unit, r))
        gap = ref - s.logprob_N
        terms = {
            "policy": policy.mean(),
            "kl": 0.1 * (gap.exp() - 1 - gap).mean(),
            "entropy": -0.01 * s.entropy_N.mean(),
        }
        optimizer.zero_grad()
        sum(terms.values()).backward()
        norms.append(float(flat([p.grad for p in other.policy.model.parameters()]).norm()))
        for name, value in terms.items():
            sums[name] = sums.get(name, 0.0) + float(value) / 2
        torch.nn.utils.clip_grad_norm_(other.policy.model.parameters(), 0.01)
        optimizer.step()
    assert m["grad/norm"] == pytest.approx(np.mean(norms), rel=1e-4)
    for name, value in sums.items():
        assert m[f"loss/{name}"] == pytest.approx(value, rel=1e-3, abs=1e-7), name


def test_updates_without_class_tokens_are_counted():
    policy = SmallPolicy()
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=1e-3)
    mini = policy.batch()
    nothing = mini.but(advantage_BT=0 * mini.advantage_BT)
    m, _ = step(policy, optimizer, [mini, nothing, mini], objective())
    assert m["ledger/empty_updates"] == 1 and m["ledger/updates"] == 3


def test_looking_at_some_tokens_is_an_estimate_of_all():
    """Whole rows at random: what is looked at is right to the token, and the sums are scaled up."""
    mini = SmallPolicy().batch()
    rows = torch.tensor([1, 2, 4, 5, 9])
    found = {}
    for key, choose in (("all", None), ("some", lambda _: rows)):
        policy = SmallPolicy()
        optimizer = torch.optim.SGD(policy.model.parameters(), lr=0.1)
        found[key] = step(policy, optimizer, [mini], objective(), choose=choose)
    (whole, all_seen), (some, seen) = found["all"], found["some"]
    share = float(mini.rows(rows).mask_BT.sum() / mini.mask_BT.sum())
    assert some["ledger/looked"] == pytest.approx(share) and whole["ledger/looked"] == 1
    j, full = seen.seen[0].influence_BT, all_seen.seen[0].influence_BT
    assert j[0].isnan().all()
    inside = mini.mask_BT[rows].bool()
    torch.testing.assert_close(j[rows][inside], full[rows][inside], rtol=1e-6, atol=1e-12)
    s = all_seen.seen[0]
    mine = torch.where(s.code_BT == CLASSES.index("na_lp"), s.slope_BT * full, 0.0)[rows].sum()
    assert some["ledger/predicted_na_lp"] == pytest.approx(float(mine) / share, rel=1e-6)


def test_sides_and_classes_are_not_mixed_up():
    """A token that is cut on the low side moves `lever_low` alone; its class is its own."""
    policy = SmallPolicy()
    mini = policy.batch(spread=0.0)
    one = mini.advantage_BT.clone() * 0
    one[0, 0] = -1.0
    old = mini.old_logprob_BT.clone()
    old[0, 0] += 1.0  # ratio e^−1
    mini = mini.but(advantage_BT=one, old_logprob_BT=old)
    optimizer = torch.optim.SGD(policy.model.parameters(), lr=0.1)
    m, ledger = step(policy, optimizer, [mini], objective(beta1=0.25, beta2=1.0))
    j, tokens = float(ledger.seen[0].influence_BT[0, 0]), float(mini.mask_BT.sum())
    assert m["ledger/lever_high"] == 0 and m["ledger/lever_low"] == pytest.approx(0.8 / tokens * j)
    assert m["ledger/predicted_clip_low"] == pytest.approx(0.25 * 0.8 / tokens * j)
    p = float(policy.statistics(mini).logprob_N[0].exp())
    mine = "na_hp" if p >= 0.5 else "na_lp"
    assert m[f"ledger/predicted_{mine}"] == m["ledger/predicted_clip_low"] != 0
    assert all(m[f"ledger/predicted_{name}"] == 0 for name in CLASSES[1:] if name != mine)


def test_the_ledger_of_a_real_run(tiny, tmp_path):
    options = [
        "method=cegppo", "steps=4", "diagnostics.every=2", "diagnostics.parts=true", "update.weight_decay=0.01",
        "update.nll_coef=0.1", "update.entropy_coef=0.01",
    ]  # fmt: skip
    run_training(load(tiny, *options, f"run_dir={tmp_path / 'run'}"), Silent())
    rows = [row for row in read_lines(tmp_path / "run" / "metrics.jsonl") if "ledger/predicted" in row]
    assert [row["step"] for row in rows] == [2, 4]
    for m in rows:
        assert m["ledger/gradient_residual"] < 1e-5 and m["ledger/influence_residual"] < 0.02
        tokens = (*CLASSES[1:], "other")
        parts = sum(m[f"ledger/{kind}_{name}"] for kind in ("predicted", "carried") for name in tokens)
        parts += m["ledger/predicted_momentum"] + m["ledger/predicted_decay"]
        size = sum(abs(m[f"ledger/predicted_{name}"]) for name in tokens)
        assert parts == pytest.approx(m["ledger/predicted"], abs=0.02 * size)
        assert m["ledger/predicted_other"] != 0 and m["ledger/predicted_decay"] != 0 and m["ledger/updates"] == 2


def test_the_token_record_holds_the_ledger(tiny, tmp_path):
    """`dentropy_exact` by class is `ledger/predicted_<class>`; the text of a response is all
    there."""
    run_training(load(tiny, "method=cegppo", "steps=2", "diagnostics.every=2", f"run_dir={tmp_path / 'run'}"), Silent())
    frame = pd.read_parquet(tmp_path / "run" / "tokens" / "step000002.parquet")
    m = read_lines(tmp_path / "run" / "metrics.jsonl")[1]
    size = sum(abs(m[f"ledger/predicted_{name}"]) for name in CLASSES[1:])
    for name in CLASSES[1:]:
        mine = frame[frame["class"] == name]["dentropy_exact"].sum()
        assert mine == pytest.approx(m[f"ledger/predicted_{name}"], abs=1e-4 * size)
    np.testing.assert_allclose(frame["weight"] * frame["influence"], frame["dentropy_exact"], rtol=1e-5, atol=1e-12)
    for side, bound in (("low", 0.8), ("high", 1.2)):
        mine = frame[frame["side"] == side]
        lever = (bound * mine["advantage"] * mine["influence"]).sum()
        assert lever == pytest.approx(m[f"ledger/lever_{side}"], abs=1e-4 * size)
    assert {"prompt", "answer", "verdict", "text"} <= set(frame.columns)
    first = frame[frame["update"] == 0]
    keys = ["prompt_id", "rollout"]
    assert (first.groupby(keys)["prompt"].nunique() == 1).all() and set(frame["verdict"]) <= {
        "correct", "wrong", "no_answer", "truncated", "grader_error",
    }  # fmt: skip
    state = build(load(tiny))
    for _, response in first.groupby(keys):
        response = response.sort_values("position")
        assert "".join(response["text"]) == state.policy.tokenizer.decode(response["token_id"].tolist())


def test_differences_are_taken_in_float32_where_the_run_computes_in_bfloat16(tiny):
    settings = load(
        tiny,
        "method=cegppo",
        "model.dtype=bfloat16",
        "model.packing=always",
        "diagnostics.every=1",
        "updates_per_step=2",
    )
    state = build(settings)
    assert steps.step(state)["ledger/influence_residual"] < 0.1  # the gradient itself is of bfloat16 products
    policy, state.step = state.policy, 0  # as at the start, whose rounding the bound below is for
    x = steps.batch(state)
    narrow = policy.evaluate(x)["logprob_BT"]
    with policy.exactly():
        assert not policy.bfloat16 and not policy.packing
        exact = policy.evaluate(x)["logprob_BT"]
    assert policy.bfloat16 and policy.packing
    plain = build(load(tiny)).policy
    plain.model.load_state_dict(policy.model.state_dict())
    wide = plain.evaluate(x)["logprob_BT"]
    assert (exact - wide).abs().max() < 1e-6 < 1e-3 < (narrow - wide).abs().max()


def test_what_is_recorded_is_looked_at_first(tiny, tmp_path):
    """A record smaller than the tokens looked at has an influence in every row."""
    options = ["diagnostics.every=1", "diagnostics.influence_tokens=40", "diagnostics.max_tokens=25", "steps=1"]
    run_training(load(tiny, *options, f"run_dir={tmp_path / 'run'}"), Silent())
    frame = pd.read_parquet(tmp_path / "run" / "tokens" / "step000001.parquet")
    (m,) = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert len(frame) > 5 and frame["influence"].notna().all() and 0 < m["ledger/looked"] < 1


PEAK = """
import sys, torch
torch.set_num_threads(1)
sys.path.insert(0, {root!r})
from tests import steps
from tests.test_ledger import SmallPolicy, objective
from cegppo.instrument.entropy import BY_PROBABILITY
from cegppo.instrument import ledger as module
from cegppo.instrument.ledger import Ledger
from cegppo.instrument.tally import Tally
import resource
module.EXACT_BYTES = 0
policy = SmallPolicy({width}, depth={depth}, dtype=torch.float32)  # hardly any tokens
one = sum(p.numel() * 4 for p in policy.model.parameters())
optimizer = torch.optim.AdamW(policy.model.parameters(), lr=1e-4, foreach=False)
mini = policy.batch()
steps.update(policy, optimizer, mini, objective(), Tally())
steps.update(policy, optimizer, mini, objective(), Tally())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if {look}:
    ledger = Ledger(policy, optimizer, mini, BY_PROBABILITY, updates=2)
    for _ in range(2):
        steps.update(policy, optimizer, mini, objective(), Tally(), ledger=ledger)
    ledger.close()
else:
    for _ in range(2):
        steps.update(policy, optimizer, mini, objective(), Tally())
print(before * 1024 / one, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / one)
"""


@pytest.mark.slow
@pytest.mark.parametrize("width, depth", [(1000, 16), (4000, 2)])  # many layers; one that is nearly everything
def test_three_buffers_of_the_parameters_size(width, depth):
    """Peak memory of a looked-at update over an ordinary one, in parameter-sized buffers."""
    peaks = []
    for look in (False, True):
        code = PEAK.format(root=str(ROOT), look=look, width=width, depth=depth)
        allocator = {"MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed is given back
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **allocator}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment, check=True
        )
        peaks.append(float(done.stdout.split()[-1]))
    more = peaks[1] - peaks[0]
    assert 2.0 < more < 3.6, f"{more:.2f} buffers more"


def test_memory_is_counted_before_training(tiny):
    from transformers import AutoModelForCausalLM

    from cegppo.model import memory

    settings = load(tiny, "diagnostics.every=5")
    model = AutoModelForCausalLM.from_pretrained(settings.model.path)
    parameters = sum(p.numel() for p in model.parameters())
    assert memory.estimate(settings, model, "cuda")["ledger"] == 12 * parameters
    assert memory.estimate(settings, model, "cuda", shards=4)["ledger"] == 3 * parameters
    apart = load(tiny, "diagnostics.every=5", "diagnostics.parts=true")
    assert memory.estimate(apart, model, "cuda")["ledger"] > 24 * 4 * parameters
    assert "ledger" not in memory.estimate(load(tiny, "diagnostics.every=0"), model, "cuda")
