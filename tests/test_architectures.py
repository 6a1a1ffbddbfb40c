"""The causal architectures of transformers, in miniature: sampler and trainer say what the model's
own logits say, in every layout that it takes, or it is refused in the line that docs/models.md has
of it. All but QUICK are slow."""

import pytest

from cegppo.model.head import Scaling
from cegppo.model.traits import WRONG

from . import whole
from .architectures import KINDS

QUICK = ("bert", "cohere", "falcon_mamba", "gemma2", "gpt_neo", "granite")
CLOSE = 1e-4  # nats; a gradient, of its norm
LINES = whole.written()


def test_the_table_is_of_these_architectures():
    assert list(LINES) == list(KINDS) and set(QUICK) <= set(KINDS) and set(WRONG) <= set(KINDS)
    assert f"all {len(KINDS)} causal architectures" in whole.TABLE.read_text()


@pytest.mark.parametrize("kind", [k if k in QUICK else pytest.param(k, marks=pytest.mark.slow) for k in KINDS])
def test_an_architecture_is_right_or_refused(kind, tmp_path):
    found = whole.find(kind, tmp_path)
    assert found.line(kind) == LINES.get(kind), "python -m tests.whole writes docs/models.md anew"
    if not found.refused:
        for temperature in (1.0, 0.7):
            error = whole.errors(found, temperature)
            assert max(error.values()) < CLOSE, (temperature, error)


def test_a_wrong_scale_is_found(tmp_path):
    """What is compared with is not the policy itself."""
    found = whole.find("llama", tmp_path)
    for policy in found.policies.values():
        policy.scaling = Scaling(0.5)
    assert min(whole.errors(found, 1.0).values()) > 0.01


def test_answers_lie_in_bins_and_packed(tmp_path):
    """Else the layouts of the test above were the padded one three times."""
    found = whole.find("llama", tmp_path)
    rollouts = whole.sampled(found.policies["padded"], 1.0)
    passes = lambda layout: [m for _, m in found.policies[layout].micro_batches(batch_of(layout))]
    batch_of = lambda layout: whole.batch(found.policies[layout], rollouts)
    assert set(found.policies) == {"padded", "binned", "packed"} and found.policies["packed"].packing
    assert any(m.bin_B is not None for m in passes("binned"))
    assert all(m.bin_B is None for m in passes("padded"))
