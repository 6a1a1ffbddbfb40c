"""Parts of a run one at a time, for tests: a step, its groups, its batch, an update."""

import dataclasses

import torch

from cegppo.batch import make_batch, sample_groups
from cegppo.gradient import weighted_gradient
from cegppo.log import Log
from cegppo.model.optimizer import clip_factor, clip_grad_norm
from cegppo.schedules import Schedules, objective_of
from cegppo.stop import StopSignal
from cegppo.train import train


class Kept(Log):
    """The lines and token records of the steps that it is told of; saves nothing."""

    def __init__(self):
        self.lines, self.tokens = [], []

    def step(self, step, metrics, elapsed, tokens):
        self.lines.append(metrics)
        self.tokens.append(tokens)

    def checkpoint(self, state, best): ...


class AtOnce(StopSignal):
    def requested(self):
        return True


def step(state, log=None):
    """One step, without an evaluation: its metrics."""
    log = log or Kept()
    config = dataclasses.replace(state.config, steps=max(state.config.steps, state.step + 2), eval_every=0)
    train(config, state, log, AtOnce())
    return log.lines[-1]


def objective(config, at=0):
    """What step `at` of a run of `config` minimises."""
    return objective_of(config, Schedules(config).at(at))


def now(state):
    """What the step under way minimises."""
    return objective_of(state.config, state.schedules.at(state.step))


def groups(state):
    """(everything that the step under way samples, what of it trains)."""
    return sample_groups(state.config, state, state.step)


def batch(state, trained=None):
    """The batch of the step under way, of groups `trained` or those that it samples."""
    trained = groups(state)[1] if trained is None else trained
    return make_batch(state.config, state, trained, now(state), state.schedules.at(state.step))[0]


def update(policy, optimizer, mini, objective, tally, *, grad_clip=0.0, ledger=None):
    """One optimizer step on `mini`: its gradient norm. As the loop does it."""
    gradient = weighted_gradient(policy, mini, objective)
    norm = clip_grad_norm(policy.model, grad_clip)
    assert torch.isfinite(norm)
    if ledger is not None:
        ledger.before(gradient, clip_factor(float(norm), grad_clip))
    optimizer.step()
    if ledger is not None:
        ledger.after()
    tally.add_gradient(gradient)
    return float(norm)
