"""Worked solutions in another domain: reasoning-gym's logic, algorithm and game tasks for the
embedded model (`testbed.tasks`; experiments/logic.yaml).

An entry of reasoning-gym flows in, the steps of a solution and its answer flow out. Two of the four
tasks, palindromes and countdown, have many right answers: their solutions are drawn among all.
"""

import string
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import permutations, product
from typing import Any

import numpy as np

from ..config import Source

Slip = Callable[[int], int]  # what a careless worker makes of a result

SOURCES = {
    "knights_knaves": Source(
        task="knights_knaves", params=dict(n_people=2, depth_constraint=2, width_constraint=2)
    ),
    "letter_counting": Source(task="letter_counting", params=dict(min_words=1, max_words=4)),
    "palindrome_generation": Source(task="palindrome_generation", params=dict(min_length=3, max_length=5)),
    "countdown": Source(
        task="countdown",
        params=dict(
            min_numbers=3, max_numbers=3, min_value=1, max_value=9, min_target=1, max_target=20,
            operators=("+", "-"),
        ),
    ),
}  # fmt: skip

NAMES = (
    "Emma", "Liam", "Olivia", "Noah", "Ava", "Ethan", "Sophia", "Mason", "Isabella", "William", "Mia", "James",
    "Charlotte", "Benjamin", "Amelia", "Lucas", "Harper", "Henry", "Evelyn", "Alexander", "Abigail", "Michael",
    "Emily", "Daniel", "Elizabeth", "Jacob", "Sofia", "Logan", "Avery", "Jackson", "Ella", "Sebastian", "Scarlett",
    "Jack", "Grace", "Aiden", "Chloe", "Owen", "Victoria", "Samuel", "Riley", "Matthew", "Aria", "Joseph", "Lily",
    "Luke", "Aurora", "David", "Zoey", "Oliver", "Penelope",
)  # fmt: skip
ROLES = (
    "knight", "knave", "pioneer", "laggard", "saint", "sinner", "hero", "villain", "angel", "devil", "altruist",
    "egoist", "sage", "fool",
)  # fmt: skip
# Single tokens of the tokenizer where a task is in the recipe: the questions' fixed wording.
PHRASES: dict[str, tuple[str, ...]] = {
    "knights_knaves": (
        *NAMES, *ROLES, *(role.capitalize() for role in ROLES),
        "A very special island is inhabited only by ", "s and ", "s. ", "s always tell the truth, and ",
        "s always lie. You meet 2 inhabitants: ", ", and ", " said that ", " told you that ", " said, ", " stated, ",
        "According to ", "In ", "'s words: ", " remarked, ", " declared.", " was heard saying, ", " expressed that ",
        "As ", " put it, ", " asserted: ", " mentioned.", " commented, ", "In a statement by ", " noted, ",
        " claimed.", " So who is ", " and who is ", "? (Format your answer like: ", " is a ", " is an ", " is not ",
        "it is not the case that ", "if ", " then ", " if and only if ", " or ", " and ",
    ),
    "letter_counting": ('How many times does the letter "', '" appear in the text: "'),
    "palindrome_generation": (
        "Your task is, given a list of letters, to form a valid palindrome.\n\nA palindrome is a phrase that reads the"
        " same forwards and backwards.\n\nIf there are multiple possible answers, only respond with one of them. You"
        " must use all the letters provided.\n\nYour output should be a single string, with no spaces or"
        " punctuation.\n\nNow, form a valid palindrome using the following letters: ",
    ),
    "countdown": (
        "Using all the numbers ", ", create an expression that equals ", ".\nYou can only use each number once.",
        "Find a way to make ", " using all of these numbers: ", ".\nEach number can only be used once.",
        "Calculate ", ".\nEach number may be used at most once.",
        "\n\nFinal answer format instructions:\n1. Provide your solution as a arithmetic expression (no '=' sign).\n2."
        " Do not include the target number in the expression.\n3. Use '*' for multiplication.\n4. Use '/' for"
        " division.\n5. Do not include any other text or formatting.\n",
    ),
}  # fmt: skip


def work_out(task: str, entry: dict[str, Any], slip: Slip, rng: np.random.Generator) -> tuple[list[str], str]:
    """(steps, answer) of a problem of `SOURCES`, as each of the functions below says. `slip` is
    what a careless worker makes of a result."""
    return {
        "knights_knaves": _knights_knaves,
        "letter_counting": _letter_counting,
        "palindrome_generation": _palindrome,
        "countdown": _countdown,
    }[task](entry, slip, rng)


def _letter_counting(entry: dict[str, Any], slip: Slip, rng: np.random.Generator) -> tuple[list[str], str]:
    """Word by word: `hundred=1`; the answer is the sum."""
    letter, words = entry["metadata"]["target_letter"], entry["metadata"]["span"]
    counts = [max(0, word.lower().count(letter) + int(np.sign(slip(0)))) for word in words]
    return [f"{word}={count}" for word, count in zip(words, counts)], str(sum(counts))


def _palindrome(entry: dict[str, Any], slip: Slip, rng: np.random.Generator) -> tuple[list[str], str]:
    """Pair by pair, in any order: `oo`, `uu`, and last what stands in the middle."""
    there = Counter(entry["metadata"]["letters"])
    pairs = [letter for letter, count in sorted(there.items()) for _ in range(count // 2)]
    half = [_letter(pairs[place], slip) for place in rng.permutation(len(pairs))]
    middle = "".join(letter for letter, count in there.items() if count % 2)
    return [2 * letter for letter in half] + ([middle] if middle else []), "".join((*half, middle, *reversed(half)))


def _letter(letter: str, slip: Slip) -> str:
    return string.ascii_lowercase[slip(string.ascii_lowercase.index(letter)) % 26]


def _countdown(entry: dict[str, Any], slip: Slip, rng: np.random.Generator) -> tuple[list[str], str]:
    """Two numbers first, then the third with what they make: `7-4=3`, `3-2=1`. Drawn among all
    ways to the target; a careless worker takes any way and claims that it leads there."""
    numbers, target = entry["metadata"]["numbers"], entry["metadata"]["target"]
    every = sorted(_ways(numbers))
    right = [way for way in every if way[0] == target]
    careless = slip(0) != 0
    among = every if careless else right
    _, first, second, answer = among[int(rng.integers(len(among)))]
    return [first, f"{second}={target}"], answer


def _ways(numbers: list[int]) -> Iterator[tuple[int, str, str, str]]:
    """(value, first step, second step without its result, expression) of every way to add and
    subtract three numbers."""
    for (a, b, c), one, two in product(set(permutations(numbers)), "+-", "+-"):
        middle = a + b if one == "+" else a - b
        first, inner = f"{a}{one}{b}={middle}", f"({a}{one}{b})"
        yield middle + c if two == "+" else middle - c, first, f"{middle}{two}{c}", f"{inner}{two}{c}"
        yield c + middle if two == "+" else c - middle, first, f"{c}{two}{middle}", f"{c}{two}{inner}"


def _knights_knaves(entry: dict[str, Any], slip: Slip, rng: np.random.Generator) -> tuple[list[str], str]:
    """Who says what, in signs: `p:q+>p+` (the first says: if the second tells the truth, so do I);
    then the roles under which each truth-teller's sentence is true and each liar's false. A slip
    turns the last sign of a sentence."""
    facts = entry["metadata"]
    said = [_turned(sentence) if slip(0) else sentence for sentence in facts["statements"]]
    fits = [
        roles for roles in product((True, False), repeat=2)
        if all(_holds(sentence, roles) == role for sentence, role in zip(said, roles))
    ]  # fmt: skip
    roles = fits[0] if fits else (True, True)  # after a slip there may be none, or several
    terms = facts["knight_knave_terms"]
    named = [f"{name} is a {terms['knight' if role else 'knave']}" for name, role in zip(facts["names"], roles)]
    return [f"{who}:{_signs(sentence)}" for who, sentence in zip("pq", said)], ", and ".join(named)


def _signs(sentence: tuple) -> str:
    kind, *parts = sentence
    if kind in ("telling-truth", "lying"):
        return "pq"[parts[0]] + ("+" if kind == "telling-truth" else "-")
    if kind == "not":
        return "!" + _signs(parts[0])
    return {"and": "&", "or": "|", "->": ">", "<=>": "="}[kind].join(map(_signs, parts))


def _holds(sentence: tuple, roles: tuple[bool, ...]) -> bool:
    kind, *parts = sentence
    if kind in ("telling-truth", "lying"):
        return roles[parts[0]] == (kind == "telling-truth")
    left, *right = (_holds(part, roles) for part in parts)
    if kind == "not":
        return not left
    return {"and": left and all(right), "or": left or any(right), "->": not left or right[:1] == [True],
            "<=>": right[:1] == [left]}[kind]  # fmt: skip


def _turned(sentence: tuple) -> tuple:
    """`sentence` with its last sign the other way round."""
    kind, *parts = sentence
    if kind in ("telling-truth", "lying"):
        return ("lying" if kind == "telling-truth" else "telling-truth", *parts)
    return (kind, *parts[:-1], _turned(parts[-1]))
