"""Rewards by rule, for `reward=experiments/rewards.py:NAME`: (prompt, response) → a number in
[0, 1]. docs/domains.md has the other signatures that serve."""

import re

HAPPY = re.compile(r"\b(happy|happily|smil\w+|laugh\w*|glad|joy\w*)\b", re.IGNORECASE)


def happy_word(prompt, text: str) -> float:
    """1 when the story names happiness."""
    return float(bool(HAPPY.search(text)))
