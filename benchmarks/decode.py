"""Our sampler against `model.generate` on the testbed: the same prompts, the same sampling rule,
exactly NEW tokens a row.

python benchmarks/decode.py
"""

import torch
from common import machine, paired, ratio_line, testbed_model

from cegppo.model.policy import Policy
from cegppo.rollout import Sampling
from cegppo.rollout.hf import HFSampler
from cegppo.types import Prompt, requests

NEW = 32
ROUNDS = 9
ROWS = (64, 256, 512)


def main() -> None:
    _, model, tokenizer = testbed_model()
    question = "State the final answer to the following arithmetic problem: {} + 4 - 7 + 2 =\n"
    # Nobody may stop early: no token ends a response of ours, and `generate` may not draw the one
    # that would.
    policy = Policy(model, tokenizer)
    policy.ends = frozenset()
    print(machine(), "\n")
    print(f"| rows × {NEW} tokens | ours | generate | ours / generate |\n|---|---|---|---|")
    for rows in ROWS:
        texts = [question.format(i % 10) for i in range(rows)]
        ids = torch.tensor([tokenizer.encode(t) for t in texts])
        prompts = [Prompt(f"p/{i}", "p", t, tuple(r), "") for i, (t, r) in enumerate(zip(texts, ids.tolist()))]
        sampler = HFSampler(policy, Sampling(seed=0, max_tokens=NEW))

        def ours(prompts=prompts, sampler=sampler) -> None:
            assert all(len(r.token_ids) == NEW for r in sampler.sample(requests(prompts, 1), 0))

        def theirs(ids=ids) -> None:
            out = model.generate(
                ids, do_sample=True, temperature=1.0, top_k=0, max_new_tokens=NEW, min_new_tokens=NEW, pad_token_id=0
            )
            assert out.shape[1] == ids.shape[1] + NEW

        print(ratio_line(str(rows), *paired(ours, theirs, ROUNDS)), flush=True)


if __name__ == "__main__":
    main()
