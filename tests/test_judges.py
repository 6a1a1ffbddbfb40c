"""Judgements of answers that nobody here wrote, against ours."""

import pytest

from cegppo.config import Limits
from cegppo.problems import reward
from cegppo.types import Prompt, Rollout, Verdict

from . import judges

# What we say otherwise, and why. Pairs of several boxes: the final answer is the last.
DECIMAL_COMMAS = {("1000.99", "1000,99"), ("1,22", "1.22")}  # "1,22" is a list here
THEIR_SLIP = {("1 - \\frac{1}{\\mathrm{e}}", "1 + \\frac{1}{\\mathrm{e}}")}  # which they call equal


def test_regression_pairs_of_math_verify(tmp_path_factory):
    try:
        archive = judges.fetch(tmp_path_factory.mktemp("sources"))
    except OSError as error:
        pytest.skip(f"needs the network: {error}")
    pairs = judges.judgements(archive)
    assert len(pairs) > 190 and sum(not pair.equal for pair in pairs) > 30
    made = [Rollout(Prompt("m", "m", "q", (), p.reference), 0, (), (), "stop", f"\\boxed{{{p.answer}}}") for p in pairs]
    found = [verdict is Verdict.CORRECT for verdict in reward.verdicts(made, Limits(timeout=10.0, workers=1))]
    assert [pair for pair, right in zip(pairs, found) if right and not pair.equal] == []
    refused = {(p.reference, p.answer) for p, right in zip(pairs, found) if p.equal and not right and p.boxes < 2}
    assert refused == DECIMAL_COMMAS | THEIR_SLIP
