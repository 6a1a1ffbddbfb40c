"""What the instrument costs: a step with the per-token part on against off, and a looked-at step
against an ordinary one.

Off means: log-probabilities only, no entropies, no power sums, no tally. What is compared takes
turns on the same state. CPU time of the process, which a busy machine leaves alone.

* per update, testbed: the whole step (rollout, grading, 32 updates of 8 responses or 8 of 64);
* per update, a vocabulary of 151,936: one update's forward, statistics and backward from hidden
  states of width 1,536 on;
* looked at: the default, and 512 responses in 8 updates (experiments/regimes/task.yaml).

    python benchmarks/instrument.py
"""

import copy
import time
from collections.abc import Callable
from contextlib import contextmanager

import torch
from common import machine, mean_ratio_line, one_step, ratio_line

from cegppo import config
from cegppo.instrument.tally import Tally
from cegppo.model import policy
from cegppo.model.head import TokenStatistics, token_statistics
from cegppo.objective import Weights
from cegppo.rollout import hf
from cegppo.state import TrainState, build
from cegppo.types import TokenBatch

ROUNDS = 80  # so many, since what is looked for is a few per cent and a pair scatters by ten
VOCABULARY_ROUNDS = 12  # of ten seconds each
OFTEN, SELDOM = "experiments/one_group.yaml", "experiments/regimes/task.yaml"  # 32 updates a step, and 8


def logprob_only(logits_NV, token_N, entropy_grad=False):
    logprob_N = torch.log_softmax(logits_NV.float(), dim=-1).gather(-1, token_N[:, None])[:, 0]
    blank_N = torch.zeros_like(logprob_N).detach()
    return TokenStatistics(logprob_N, blank_N, blank_N, blank_N)


@contextmanager
def instrument_off():
    kept = policy.token_statistics, Tally.add_tokens, hf.distribution_sums
    blank = lambda logp_BV: (logp_BV.new_zeros(len(logp_BV)),) * 3
    policy.token_statistics, Tally.add_tokens, hf.distribution_sums = logprob_only, lambda *_, **__: None, blank
    try:
        yield
    finally:
        policy.token_statistics, Tally.add_tokens, hf.distribution_sums = kept


def alternate(state: TrainState, kinds: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each kind of step, in turn from the same state, after a round that does not
    count."""
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for n in range(rounds + 1):
        weights = {k: v.clone() for k, v in state.policy.model.state_dict().items()}
        moments = copy.deepcopy(state.optimizer.state_dict())
        step, stream = state.step, state.stream.state()
        for name in list(kinds) if n % 2 else reversed(kinds):
            state.policy.model.load_state_dict(weights)
            state.optimizer.load_state_dict(copy.deepcopy(moments))
            state.step = step
            state.stream.restore(stream)
            start = time.process_time()
            kinds[name]()
            if n:
                times[name].append(time.process_time() - start)
    return times


def per_update(experiment: str) -> str:
    state = build(config.load(experiment, ["method=cegppo", "diagnostics.every=0"])[0])

    def off() -> None:
        with instrument_off():
            one_step(state)

    times = alternate(state, {"on": lambda: one_step(state), "off": off}, ROUNDS)
    return mean_ratio_line(f"{experiment}, whole step", times["on"], times["off"])


def looked_at(experiment: str, parts: bool, rounds: int = 4) -> str:
    state = build(config.load(experiment, ["method=cegppo", f"diagnostics.parts={parts}"])[0])
    state.draw_probe()

    def step(every: int) -> None:
        state.config.diagnostics.every = every
        one_step(state)

    times = alternate(state, {"looked": lambda: step(1), "not": lambda: step(0)}, rounds)
    name = f"{experiment}{', one update taken apart' if parts else ''}"
    return ratio_line(name, times["looked"], times["not"])


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
            tally = Tally()
            tally.add_tokens(x, Weights(ones, ones, ones, None, 0.8 * ones, 1.2 * ones, ones), ones / tokens)
            tally.settled()
        s.logprob_N.mean().backward()
        head.weight.grad = hidden.grad = None

    times: dict[bool, list[float]] = {True: [], False: []}
    for n in range(VOCABULARY_ROUNDS + 1):
        for on in (True, False):
            start = time.process_time()
            once(on)
            if n:
                times[on].append(time.process_time() - start)
    return mean_ratio_line(f"{tokens} tokens × {vocabulary:,}, head and statistics only", times[True], times[False])


def main() -> None:
    print(machine(), "\n")
    print("| per update | on | off | on / off |\n|---|---|---|---|")
    for experiment in (OFTEN, SELDOM):
        print(per_update(experiment), flush=True)
    print(at_vocabulary(), flush=True)
    print("\n| a looked-at step | looked at | ordinary | ratio |\n|---|---|---|---|")
    for experiment in (OFTEN, SELDOM):
        for parts in (False, True):
            print(looked_at(experiment, parts), flush=True)


if __name__ == "__main__":
    main()
