"""What a teacher has to say to a prompt: solutions from a file, or the testbed's worked ones.

In: prompts. Out: `Solution`s, tokens with the end of the sequence, and the teacher's own
log-probabilities where they are known. A file has `problem` and `response` in each row and may have
`logprobs`, one a token of the response as this model's tokenizer reads it and one for its end; a
problem may have several rows.
"""

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ..config import Data
from ..config.recipe import FAMILIES, Recipe
from ..explore import Solution
from ..types import BadInput, Prompt
from .data import Tokenizer, encode, read_rows
from .testbed import direct_solution, styles, work_out

WORKED = "worked"


class Teacher:
    """Solutions by prompt; those over `max_tokens` are left out."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int):
        self.tokenizer, self.max_tokens = tokenizer, max_tokens

    def solutions(self, prompt: Prompt) -> list[Solution]:
        return [s for s in self.all_of(prompt) if len(s.token_ids) <= self.max_tokens]

    def all_of(self, prompt: Prompt) -> list[Solution]:
        raise NotImplementedError


class Worked(Teacher):
    """The worked solutions that the embedded model learnt from, of its most careful kind of worker
    and without a slip: `count` of a prompt, which differ in their connectives. Those are drawn by
    the worker's law; all else is certain, which gives each token its log-probability."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int, recipe: Recipe, seed: int, count: int):
        super().__init__(tokenizer, max_tokens)
        careful = min(styles(recipe), key=lambda style: style[0].slip_rate)
        self.words, self.law = careful[1], careful[2]
        self.seed, self.count = seed, count

    def all_of(self, prompt: Prompt) -> list[Solution]:
        found = prompt.task in FAMILIES and work_out(str(prompt.task), str(prompt.entry.get("question", "")))
        if not found:
            return []
        steps, answer = found
        draw = np.random.default_rng([self.seed, zlib.crc32(prompt.id.encode()), 3])
        words = draw.choice(len(self.words), size=(self.count, len(steps)), p=self.law)
        return [self._solution(steps, answer, row.tolist()) for row in words]

    def _solution(self, steps: list[str], answer: str, words: list[int]) -> Solution:
        """Read piece by piece, so that a word's tokens are known; the first of them has its
        log-probability."""
        pieces = [piece for step, word in zip(steps, words) for piece in ((step, 0.0), self._drawn(word))]
        token_ids: list[int] = []
        logprobs: list[float] = []
        for text, logprob in (*pieces, (direct_solution(answer), 0.0)):
            ids = self.tokenizer.encode(text, add_special_tokens=False)
            token_ids += ids
            logprobs += [logprob, *[0.0] * (len(ids) - 1)]
        text = self.tokenizer.decode(token_ids, skip_special_tokens=True)
        return Solution((*token_ids, self.tokenizer.eos_token_id), text, (*logprobs, 0.0))

    def _drawn(self, word: int) -> tuple[str, float]:
        return self.words[word], float(np.log(self.law[word]))


class FromFile(Teacher):
    """The responses in a file, by the prompt that its problem becomes."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int, path: Path, data: Data, needs_logprobs: bool):
        super().__init__(tokenizer, max_tokens)
        self.by_prompt: dict[str, list[Solution]] = {}
        rows = read_rows(path)
        if not isinstance(rows, list) or not rows:
            raise BadInput(f"{path}: holds no solutions (explore.teacher)")
        for number, row in enumerate(rows, 1):
            if not isinstance(row, dict) or not all(isinstance(row.get(k), str) for k in ("problem", "response")):
                raise BadInput(f"{path}: row {number} lacks 'problem' or 'response' (explore.teacher)")
            text, _ = encode(row["problem"], tokenizer, data)
            solution = self._solution(row, f"{path}: row {number}", needs_logprobs)
            self.by_prompt.setdefault(text, []).append(solution)

    def _solution(self, row: dict[str, Any], where: str, needs_logprobs: bool) -> Solution:
        ids = (*self.tokenizer.encode(row["response"], add_special_tokens=False), self.tokenizer.eos_token_id)
        given = row.get("logprobs")
        if given is None:
            if needs_logprobs:
                raise BadInput(f"{where} has no 'logprobs', without which explore.ratio must be policy")
            return Solution(ids, row["response"], None)
        numbers = isinstance(given, list) and all(isinstance(v, (int, float)) and v <= 0 for v in given)
        if not numbers or len(given) != len(ids):
            raise BadInput(f"{where}: 'logprobs' are {len(ids)} numbers of at most 0, one a token and one for the end")
        return Solution(ids, row["response"], tuple(map(float, given)))

    def all_of(self, prompt: Prompt) -> list[Solution]:
        return self.by_prompt.get(prompt.text, [])
