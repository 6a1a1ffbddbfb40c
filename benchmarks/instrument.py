"""What the instrument costs: a step with the per-token part on against off, and the ledger's
seconds.

Off means: log-probabilities only, no entropies, no power sums, no tally. On and off take turns on
the same state.

* testbed: the whole step (rollout, grading, 16 updates);
* a vocabulary of 151,936: one update's forward, statistics and backward from hidden states of width
  1,536 on.

    python benchmarks/instrument.py
"""

import statistics
import time
from contextlib import contextmanager

import torch
from common import machine, ratio_line

from cegppo import config
from cegppo.instrument.tally import Tally
from cegppo.model import policy
from cegppo.model.head import TokenStatistics, token_statistics
from cegppo.objective import Weights
from cegppo.trainer import Trainer
from cegppo.types import TokenBatch

ROUNDS = 12


def logprob_only(logits_NV, token_N, entropy_grad=False):
    logprob_N = torch.log_softmax(logits_NV.float(), dim=-1).gather(-1, token_N[:, None])[:, 0]
    blank_N = torch.zeros_like(logprob_N).detach()
    return TokenStatistics(logprob_N, blank_N, blank_N, blank_N)


@contextmanager
def instrument_off():
    kept = policy.token_statistics, Tally.add_tokens
    policy.token_statistics, Tally.add_tokens = logprob_only, lambda *_, **__: None
    try:
        yield
    finally:
        policy.token_statistics, Tally.add_tokens = kept


def on_testbed() -> tuple[str, float]:
    loaded, _ = config.load("experiments/testbed.yaml", ["method=cegppo", "diagnostics.every=0"])
    trainer = Trainer(loaded)
    times: dict[bool, list[float]] = {True: [], False: []}
    for n in range(ROUNDS + 1):
        state = {k: v.clone() for k, v in trainer.policy.model.state_dict().items()}
        counters = trainer.step, trainer.stream.state()
        for on in (True, False) if n % 2 else (False, True):  # the same step twice, from the same weights
            trainer.policy.model.load_state_dict(state)
            trainer.step = counters[0]
            trainer.stream.restore(counters[1])
            start = time.perf_counter()
            if on:
                trainer.run_step()
            else:
                with instrument_off():
                    trainer.run_step()
            if n:
                times[on].append(time.perf_counter() - start)
    loaded.diagnostics.every = 1
    ledgers = [trainer.run_step()["time/ledger"] for _ in range(3)]
    return ratio_line("testbed, whole step", times[True], times[False]), statistics.median(ledgers)


def at_vocabulary(tokens: int = 256, width: int = 1536, vocabulary: int = 151_936) -> str:
    torch.manual_seed(0)
    head = torch.nn.Linear(width, vocabulary, bias=False)
    hidden = torch.randn(tokens, width, requires_grad=True)
    target = torch.randint(vocabulary, (tokens,))
    ones = torch.ones(1, tokens)

    def once(on: bool) -> None:
        s = (token_statistics if on else logprob_only)(head(hidden), target)
        if on:
            now = [v.detach()[None] for v in (s.logprob_N, s.entropy_N, s.sum_p2_N, s.sum_p2_logp_N)]
            x = TokenBatch(now[0], now[0], ones, ones, now[1], now[2], now[3])
            Tally().add_tokens(x, Weights(ones, ones, ones, None, 0.8 * ones, 1.2 * ones), ones / tokens)
        s.logprob_N.mean().backward()
        head.weight.grad = hidden.grad = None

    times: dict[bool, list[float]] = {True: [], False: []}
    for n in range(4):
        for on in (True, False):
            start = time.perf_counter()
            once(on)
            if n:
                times[on].append(time.perf_counter() - start)
    return ratio_line(f"{tokens} tokens × {vocabulary:,}, head and statistics only", times[True], times[False])


def main() -> None:
    print(machine(), "\n")
    line, ledger = on_testbed()
    print(f"|  | on | off | on / off |\n|---|---|---|---|\n{line}", flush=True)
    print(at_vocabulary())
    print(f"\nthe ledger of one update on the testbed: {ledger:.2f} s")


if __name__ == "__main__":
    main()
