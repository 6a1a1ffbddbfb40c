"""The README is read in a minute: few words, the first command early, no identifiers."""

import re
from pathlib import Path

from analysis import claims

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text()


def test_it_is_short():
    assert len(TEXT.split()) <= 1200


def test_the_first_training_command_comes_early():
    first = next(n for n, line in enumerate(TEXT.splitlines(), 1) if "run.py train" in line)
    assert first <= 30 and "make demo" in "\n".join(TEXT.splitlines()[:first])


def test_findings_have_no_claim_identifiers_and_say_how_many_seeds():
    assert not {claim.name for claim in claims.read()} & set(re.findall(r"\w+", TEXT))
    findings = re.search(r"## Findings\n(.*?)\n## ", TEXT, re.DOTALL)[1]
    bullets = re.split(r"\n\* ", findings)[1:]
    assert 3 <= len(bullets) <= 5
    assert all(re.search(r"\d+ (seeds|settings|runs)|of \d+ runs", bullet) for bullet in bullets)
