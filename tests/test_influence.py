"""Influence at the instrument's default settings against exact gradients: sums over the tokens of a
class or a clip side, by forward mode and by differences, on models of several sizes."""

import pytest
import torch

from benchmarks import influence
from cegppo.instrument import ledger as ledger_module
from cegppo.instrument.derivative import disagreement

CASES = [(tied, updates) for tied in (True, False) for updates in (0, 7)]


def check(size, tied, updates):
    """The exact derivative and the differences within 2 % of the truth, in every sum that is
    logged."""
    fresh = lambda: influence.setting(size, tied, updates=updates, lr=influence.LR[size])
    true = influence.truth_of(fresh())
    exact, _ = influence.ledger_of(fresh(), 0.0)
    assert exact["ledger/stride"] == 0 == exact["ledger/influence_disagreement"]
    assert influence.worst(exact, true) < 0.02 and exact["ledger/influence_residual"] < 1e-3
    assert all(f"ledger/{name}" in exact for name in true)
    chosen, _ = influence.ledger_of(fresh(), 0.0, forward_mode=False)
    assert chosen["ledger/stride"] > 0
    assert influence.worst(chosen, true) < 0.02
    assert sum(f"ledger/{name}" in chosen for name in true) >= 4


@pytest.mark.parametrize("tied, updates", CASES)
def test_testbed_size(tied, updates):
    check("testbed", tied, updates)


@pytest.mark.slow
@pytest.mark.parametrize("tied, updates", CASES)
def test_15m(tied, updates):
    check("15m", tied, updates)


@pytest.mark.slow
@pytest.mark.skipif(not influence.SMOLLM2.is_dir(), reason="models/smollm2 was not made (experiments/smollm2.yaml)")
@pytest.mark.parametrize("tied, updates", [(True, 0), (True, 7)])
def test_135m(tied, updates):
    check("135m", tied, updates)


def test_a_fixed_stride_is_taken_and_checked():
    s = influence.setting("testbed", True, updates=1, lr=2e-4)
    m, _ = influence.ledger_of(s, 1e-3)
    assert m["ledger/stride"] == pytest.approx(1e-3) and m["ledger/influence_disagreement"] > 0


def test_a_stride_that_is_far_too_long_is_seen():
    """What was wrong until December 2026: the sums come out wrong, and now they are left out."""
    s = influence.setting("testbed", True, updates=1, lr=2e-4)
    m, ledger = influence.ledger_of(s, 0.9)
    assert m["ledger/influence_disagreement"] > ledger_module.UNSURE and ledger.unsure
    assert all(f"ledger/{name}" not in m for name in ledger.unsure)


def test_rows_that_no_batch_has_held_have_no_slope():
    """Untied: most rows of the embedding have had no gradient, so AdamW did not move them."""
    from cegppo.instrument.optimizers import Slope

    s = influence.setting("testbed", False, updates=1, lr=2e-4)
    embedding = s.policy.model.get_input_embeddings().weight
    slope = Slope.of(s.optimizer, embedding, embedding.detach().clone()).at_once
    never = s.optimizer.state[embedding]["exp_avg_sq"] == 0
    assert never.any() and not never.all() and (slope[never] == 0).all() and (slope[~never] != 0).all()


def test_disagreement_is_relative_to_what_was_added_up():
    one = torch.tensor([[1.0, 1.0], [0.0, 0.0], [1e-6, 1.0]], dtype=torch.float64)
    other = torch.tensor([[1.1, 1.1], [0.0, 0.0], [2e-6, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(disagreement(one, other), torch.tensor([0.1 / 1.1, 0.0, 1e-3], dtype=torch.float64))


def test_passes_are_cut_where_plain_attention_would_not_fit(monkeypatch):
    s = influence.setting("testbed", True, updates=1, lr=2e-4)
    whole, _ = influence.ledger_of(s, 0.0)
    bytes_of_a_row = s.policy.score_bytes(s.mini.rows(torch.tensor([0])))
    monkeypatch.setattr("cegppo.instrument.derivative.PLAIN_BYTES", 3 * bytes_of_a_row)
    s = influence.setting("testbed", True, updates=1, lr=2e-4)
    cut, _ = influence.ledger_of(s, 0.0)
    assert cut["ledger/stride"] == 0
    for name in influence.SUMS:
        assert cut[f"ledger/{name}"] == pytest.approx(whole[f"ledger/{name}"], rel=1e-4, abs=1e-12)
    monkeypatch.setattr("cegppo.instrument.derivative.PLAIN_BYTES", bytes_of_a_row - 1)
    s = influence.setting("testbed", True, updates=1, lr=2e-4)
    assert influence.ledger_of(s, 0.0)[0]["ledger/stride"] > 0


def test_gradient_checkpointing_and_a_head_in_blocks_change_nothing():
    s = influence.setting("testbed", True, updates=0, lr=2e-4)
    ledger = influence.Ledger(s.policy, s.optimizer, s.probe, influence.BY_PROBABILITY)
    theta = [p.detach().clone() for p in ledger.parameters]
    generator = torch.Generator().manual_seed(0)
    direction = [torch.randn(t.shape, generator=generator) for t in theta]
    sums = lambda j_BT, entropy_j_BT: torch.stack([j_BT.sum(), j_BT.abs().sum()])[None]
    plain = ledger.derivative.along(theta, direction, s.mini, sums)
    s.policy.model.gradient_checkpointing_enable({"use_reentrant": False})
    s.policy.head_chunk = 0  # a token at a time
    other = ledger.derivative.along(theta, direction, s.mini, sums)
    assert plain.stride == other.stride == 0 and plain.logprob_BT.abs().min() > 0
    for name in ("logprob_BT", "entropy_BT"):
        made, expected = getattr(other, name), getattr(plain, name)
        torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
