"""The instrument against hand-worked numbers, a tabular softmax, closed forms, and itself cut
into pieces."""

import math
import os
import socket

import numpy as np
import pandas as pd
import pytest
import torch

from cegppo import ranks
from cegppo.instrument.entropy import (
    BY_PROBABILITY,
    CLASSES,
    ClassRule,
    clip_side,
    covariance_form,
    entropy_change,
    gradient_contribution,
)
from cegppo.instrument.tally import Tally
from cegppo.model.head import token_statistics
from cegppo.objective import Weights
from cegppo.record.files import read_lines
from cegppo.state import build
from cegppo.train import run_training
from cegppo.types import TokenBatch

from . import steps
from .test_train import Silent, gradient, load, moved, without_times

SURPRISAL = ClassRule("surprisal")


def weights(weight_BT, low=0.8, high=1.2):
    """What the tally reads of a loss that puts `weight_BT` on its tokens."""
    low_BT, high_BT = torch.full_like(weight_BT, low), torch.full_like(weight_BT, high)
    return Weights(weight_BT, weight_BT, weight_BT, None, low_BT, high_BT, torch.ones_like(weight_BT))


def test_uniform_logits_have_entropy_log_v():
    s = token_statistics(torch.zeros(3, 50, dtype=torch.float64), torch.tensor([0, 7, 49]))
    torch.testing.assert_close(s.entropy_N, torch.full((3,), math.log(50), dtype=torch.float64), rtol=1e-12, atol=0)
    torch.testing.assert_close(s.sum_p2_N, torch.full((3,), 1 / 50, dtype=torch.float64), rtol=1e-12, atol=0)


def test_a_token_of_probability_zero_is_no_nan():
    s = token_statistics(torch.tensor([[0.0, -torch.inf, 0.0]], dtype=torch.float64), torch.tensor([0]))
    assert s.entropy_N.item() == pytest.approx(math.log(2)) and s.sum_p2_logp_N.item() == pytest.approx(
        -0.5 * math.log(2)
    )


def test_two_token_state_by_hand():
    """p = (0.8, 0.2), the second token sampled with A = −1.5 at ratio 0.5."""
    p, q, a = 0.8, 0.2, -1.5
    logits = torch.tensor([[math.log(p), math.log(q)]], dtype=torch.float64)
    s = token_statistics(logits, torch.tensor([1]))
    entropy = -(p * math.log(p) + q * math.log(q))
    p2, p2_logp = p * p + q * q, p * p * math.log(p) + q * q * math.log(q)
    near = lambda value: pytest.approx(value, abs=1e-10)
    assert (s.logprob_N.item(), s.entropy_N.item()) == (near(math.log(q)), near(entropy))
    assert (s.sum_p2_N.item(), s.sum_p2_logp_N.item()) == (near(p2), near(p2_logp))
    w = torch.tensor([a * 0.5], dtype=torch.float64)
    facts = w, s.logprob_N, s.entropy_N, s.sum_p2_N, s.sum_p2_logp_N
    # the norm of (0 − 0.8, 1 − 0.2), and dH/dz = −π (log π + H) along w (e − π)
    assert gradient_contribution(w, s.logprob_N.exp(), s.sum_p2_N).item() == near(0.75 * math.hypot(0.8, 0.8))
    slope = [-p * (math.log(p) + entropy), -q * (math.log(q) + entropy)]
    assert entropy_change(*facts).item() == near(-0.75 * (slope[0] * -0.8 + slope[1] * 0.8))
    assert covariance_form(torch.tensor([a]), s.logprob_N, s.entropy_N).item() == near(-(math.log(q) + entropy) * q * a)
    assert CLASSES[BY_PROBABILITY.codes(s.logprob_N, s.entropy_N, w)] == "na_lp"
    assert clip_side(torch.tensor([0.5]), torch.tensor([a]), 0.8, 1.2).item() == 1

    tally = Tally()
    one = torch.ones(1, 1, dtype=torch.float64)
    x = TokenBatch(
        s.logprob_N[None],
        s.logprob_N[None] - math.log(0.5),
        a * one,
        one,
        s.entropy_N[None],
        s.sum_p2_N[None],
        s.sum_p2_logp_N[None],
    )
    tally.add_tokens(x, weights(w[None]), one)
    m = tally.metrics(updates=1)
    assert (
        m["clip/low"] == m["tokens/na_lp"] == m["clip/na_lp"] == m["grad/share_clip_low"] == 1 and m["clip/high"] == 0
    )
    assert (
        m["entropy/na_lp"] == near(entropy)
        and m["clip/prob_low"] == near(0.2)
        and m["clip/prob_low_q50"] == near(np.float32(0.2))
    )
    assert m["kl/old_k1"] == near(-math.log(0.5)) and m["kl/old_k3"] == near(0.5 - 1 - math.log(0.5))
    assert m["ratio/min"] == m["ratio/max"] == near(0.5)


def test_the_two_rules_of_class():
    logprob, entropy = torch.tensor([0.6, 0.3, 0.3]).log(), torch.tensor([0.3, 1.5, 0.9])
    plus = torch.ones(3)
    name = lambda codes: [CLASSES[c] for c in codes]
    assert name(BY_PROBABILITY.codes(logprob, entropy, plus)) == ["pa_hp", "pa_lp", "pa_lp"]
    assert name(SURPRISAL.codes(logprob, entropy, -plus)) == ["na_lp", "na_hp", "na_lp"]
    assert name(BY_PROBABILITY.codes(logprob, entropy, 0 * plus)) == ["none"] * 3


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_predicted_change_of_a_tabular_softmax(sign):
    """1,000 random states: measured ΔH within 1 % of first order; on average each class moves
    entropy as the theory says."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(1000, 12, generator=generator, dtype=torch.float64) * 2
    token = torch.multinomial(torch.softmax(z, -1), 1, generator=generator)[:, 0]
    low = torch.randint(12, (1000,), generator=generator)
    token = torch.where(
        torch.arange(1000) % 2 == 0, token, low
    )  # half of them uniform, so that rare tokens are there too
    s = token_statistics(z, token)
    weight = sign * torch.rand(1000, generator=generator, dtype=torch.float64)
    predicted = entropy_change(weight, s.logprob_N, s.entropy_N, s.sum_p2_N, s.sum_p2_logp_N)
    step = 1e-6
    push = torch.zeros_like(z).scatter_(1, token[:, None], 1.0) - torch.softmax(z, -1)
    after = token_statistics(z + step * weight[:, None] * push, token)
    measured = (after.entropy_N - s.entropy_N) / step
    assert ((measured - predicted).abs() <= 0.01 * predicted.abs() + 1e-9).all()
    for rule in (BY_PROBABILITY, SURPRISAL):
        code = rule.codes(s.logprob_N, s.entropy_N, weight)
        for name, direction in (("pa_hp", -1), ("pa_lp", 1), ("na_hp", 1), ("na_lp", -1)):
            mine = measured[code == CLASSES.index(name)]
            if name.startswith("pa") == (sign > 0):
                assert len(mine) > 50 and mine.mean() * direction > 0, (rule, name)


def test_covariance_form_is_the_covariance():
    """Its expectation over a ~ π is −Cov(log π, π A), the paper's Eq. 7."""
    generator = torch.Generator().manual_seed(3)
    p = torch.softmax(torch.randn(9, generator=generator, dtype=torch.float64), -1)
    a = torch.randn(9, generator=generator, dtype=torch.float64)
    entropy = -(p * p.log()).sum()
    terms = covariance_form(a, p.log(), entropy)
    covariance = (p * p.log() * p * a).sum() - (p * p.log()).sum() * (p * p * a).sum()
    assert (p * terms).sum().item() == pytest.approx(-covariance.item(), rel=1e-10)


def test_what_cegppo_gives_back_is_the_closed_form(tiny):
    """On a real batch: the returned gradient of each side is β (1 ± ε) |A| √(1 − 2p + Σπ²),
    summed."""
    for beta1, beta2 in ((0.5, 1.0), (0.75, 0.25), (0.0, 0.0)):
        state = build(load(tiny, "method=cegppo", f"loss.beta1={beta1}", f"loss.beta2={beta2}"))
        mini = moved(state, steps.batch(state))
        _, tally, _ = gradient(state, mini, 300)
        inside = mini.mask_BT.bool()
        s = state.policy.statistics(mini)
        a, r = mini.advantage_BT[inside].double(), (s.logprob_N - mini.old_logprob_BT[inside]).detach().double().exp()
        size = (1 - 2 * s.logprob_N.detach().double().exp() + s.sum_p2_N.double()).sqrt() * a.abs()
        low, high = (a < 0) & (r < 0.8), (a > 0) & (r > 1.2)
        whole = (size * r)[~low & ~high].sum() + beta1 * 0.8 * size[low].sum() + beta2 * 1.2 * size[high].sum()
        m = tally.metrics(1)
        assert low.sum() > 5 and high.sum() > 5
        assert m["grad/share_clip_low"] == pytest.approx(
            float(beta1 * 0.8 * size[low].sum() / whole), rel=1e-5, abs=1e-12
        )
        assert m["grad/share_clip_high"] == pytest.approx(
            float(beta2 * 1.2 * size[high].sum() / whole), rel=1e-5, abs=1e-12
        )


def tally_of(x, rows):
    tally = Tally()
    for index in rows:
        part = x.rows(index)
        tally.add_tokens(part, weights(part.advantage_BT * part.ratio_BT), part.mask_BT / x.mask_BT.sum())
    return tally


def random_batch():
    generator = torch.Generator().manual_seed(5)
    draw = lambda: torch.randn(12, 9, generator=generator, dtype=torch.float64)
    mask = (torch.arange(9) < torch.randint(1, 10, (12, 1), generator=generator)).double()
    return TokenBatch(-draw().abs(), -draw().abs(), draw(), mask, draw().abs(), draw().sigmoid(), -draw().abs())


@pytest.mark.parametrize("ways", [2, 4])
def test_a_tally_does_not_know_how_it_was_cut(ways):
    x = random_batch()
    whole, parts = tally_of(x, [torch.arange(12)]), tally_of(x, torch.arange(12).chunk(ways))
    assert parts.metrics(1) == pytest.approx(whole.metrics(1), rel=1e-6, abs=1e-12)


def gather_in_process(rank, port, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.distributed.init_process_group("gloo")
    x = random_batch()
    gathered = Tally.merged(ranks.gathered(tally_of(x, [torch.arange(12).chunk(2)[rank]])))
    torch.save(gathered.metrics(1), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_make_the_same_tally(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(gather_in_process, (port, tmp_path), nprocs=2)
    whole = tally_of(random_batch(), [torch.arange(12)]).metrics(1)
    for rank in (0, 1):
        assert torch.load(tmp_path / f"{rank}.pt") == pytest.approx(whole, rel=1e-6, abs=1e-12)


def test_looking_changes_nothing(tiny, tmp_path):
    """The same metrics bit for bit, and the same random state, with diagnostics on and off."""
    ends = []
    for every in (0, 1):
        torch.manual_seed(0)
        words = ["method=cegppo", f"diagnostics.every={every}", f"run_dir={tmp_path / str(every)}"]
        run_training(load(tiny, *words), Silent())
        ends.append(torch.get_rng_state())
    off, on = (without_times(tmp_path / str(every) / "metrics.jsonl") for every in (0, 1))
    assert torch.equal(*ends) and any("ledger/predicted" in row for row in on)
    assert off == [{k: v for k, v in row.items() if k in off[i]} for i, row in enumerate(on)]


def test_the_token_record(tiny, tmp_path):
    run_training(load(tiny, "method=cegppo", "steps=2", "diagnostics.every=2", f"run_dir={tmp_path / 'run'}"), Silent())
    frame = pd.read_parquet(tmp_path / "run" / "tokens" / "step000002.parquet")
    row = read_lines(tmp_path / "run" / "metrics.jsonl")[1]
    assert len(frame) == row["tokens/total"] and set(frame["update"]) == {0, 1}
    assert not frame.duplicated(["update", "prompt_id", "rollout", "position"]).any()
    nonzero = frame[frame["class"] != "none"]
    for name in CLASSES[1:]:  # the record and the metrics say the same
        assert (frame["class"] == name).mean() == pytest.approx(row[f"tokens/{name}"])
        share = nonzero.eval("gradient * scale")[nonzero["class"] == name].sum() / frame.eval("gradient * scale").sum()
        assert share == pytest.approx(row[f"grad/share_{name}"], rel=1e-4, abs=1e-9)
    assert (frame["side"] == "low").mean() == pytest.approx(row["clip/low"])
    assert frame.eval("dentropy * scale").sum() / 2 == pytest.approx(row["dentropy/predicted"], rel=1e-4)
    np.testing.assert_allclose(frame["prob"] / frame["old_prob"], frame["ratio"], rtol=1e-4)
    small = load(
        tiny,
        "method=cegppo",
        "steps=2",
        "diagnostics.every=2",
        "diagnostics.max_tokens=60",
        f"run_dir={tmp_path / 'small'}",
    )
    run_training(small, Silent())
    part = pd.read_parquet(tmp_path / "small" / "tokens" / "step000002.parquet")
    keys = ["prompt_id", "rollout"]
    lengths = frame.groupby(keys).size()
    assert (
        30 < len(part) <= 60 and (part.groupby(keys).size() == lengths.loc[part.groupby(keys).size().index]).all()
    )  # whole responses


def test_surprisal_rule_end_to_end(tiny, tmp_path):
    run_training(load(tiny, "steps=1", "diagnostics.classes=surprisal", f"run_dir={tmp_path / 's'}"), Silent())
    run_training(load(tiny, "steps=1", f"run_dir={tmp_path / 'p'}"), Silent())
    s, p = (read_lines(tmp_path / name / "metrics.jsonl")[0] for name in "sp")
    assert s["tokens/pa_hp"] != p["tokens/pa_hp"] and s["tokens/pa_hp"] + s["tokens/pa_lp"] == pytest.approx(
        p["tokens/pa_hp"] + p["tokens/pa_lp"]
    )
    assert s["entropy/mean"] == p["entropy/mean"]
