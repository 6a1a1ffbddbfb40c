"""The token record: one row a token of a step's updates, for tokens/step<n>.parquet."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import ranks
from ..config import Config
from ..record.files import whole
from ..types import Rollout, TokenBatch
from .entropy import CLASSES, SIDES, ClipRange, clip_side, entropy_change, gradient_contribution, token_class


class TokenRecord:
    """One row a token of a step's updates, for tokens/step<n>.parquet. Columns: docs/metrics.md.

    When a step has more than `max_tokens` response tokens, whole responses are left out, chosen at
    random by (seed, step).
    """

    def __init__(
        self, step: int, rollouts: list[Rollout], rewards: list[float], tokenizer: Any, config: Config, clip: ClipRange
    ):
        self.step, self.rollouts, self.rewards, self.tokenizer = step, rollouts, rewards, tokenizer
        self.diagnostics, self.clip = config.diagnostics, clip
        lengths = np.array([len(r.token_ids) for r in rollouts])
        order = np.random.default_rng([config.seed, step]).permutation(len(rollouts))
        self.chosen = torch.zeros(len(rollouts), dtype=torch.bool)
        self.chosen[order[lengths[order].cumsum() <= self.diagnostics.max_tokens]] = True
        self.update = 0
        self._columns: list[dict[str, np.ndarray]] = []

    def add(self, x: TokenBatch, weight_BT: Tensor, scale_BT: Tensor) -> None:
        """The tokens of a micro-batch of update number `self.update`."""
        b_N, t_N = torch.nonzero(x.mask_BT * self.chosen.to(x.mask_BT.device)[x.row_B][:, None], as_tuple=True)
        pick = lambda value_BT: value_BT[b_N, t_N].detach().double()
        logprob, entropy, advantage, ratio = (
            pick(x.logprob_BT),
            pick(x.entropy_BT),
            pick(x.advantage_BT),
            pick(x.log_ratio_BT).exp(),
        )
        weight, sum_p2 = pick(weight_BT), pick(x.sum_p2_BT)
        row = x.row_B[b_N].tolist()
        position = t_N.tolist()
        code = token_class(logprob, entropy, advantage, self.diagnostics.classes, self.diagnostics.threshold).tolist()
        side = clip_side(ratio, advantage, self.clip).tolist()
        token_ids = [self.rollouts[r].token_ids[t] for r, t in zip(row, position)]
        numbers = {
            "prob": logprob.exp(), "old_prob": pick(x.old_logprob_BT).exp(), "entropy": entropy,
            "advantage": advantage, "ratio": ratio,
            "weight": weight, "scale": pick(scale_BT), "gradient": gradient_contribution(weight, logprob.exp(), sum_p2),
            "dentropy": entropy_change(weight, logprob, entropy, sum_p2, pick(x.sum_p2_logp_BT)),
        }  # fmt: skip
        self._columns.append(
            {
                "step": np.full(len(row), self.step, dtype=np.int32),
                "update": np.full(len(row), self.update, dtype=np.int32),
                "prompt_id": np.array([self.rollouts[r].prompt.id for r in row], dtype=object),
                "rollout": np.array([self.rollouts[r].index for r in row], dtype=np.int32),
                "position": np.array(position, dtype=np.int32),
                "token_id": np.array(token_ids, dtype=np.int32),
                "token": np.array(self.tokenizer.convert_ids_to_tokens(token_ids), dtype=object),
                **{name: value.cpu().numpy().astype(np.float32) for name, value in numbers.items()},
                "class": np.array([CLASSES[c] for c in code], dtype=object),
                "side": np.array([SIDES[c] for c in side], dtype=object),
                "reward": np.array([self.rewards[r] for r in row], dtype=np.float32),
            }
        )

    def write(self, folder: Path) -> None:
        """tokens/step<n>.parquet in run folder `folder`, with every rank's tokens; appears only
        when it is complete."""
        import pandas as pd

        parts = [part for parts in ranks.gathered(self._columns) for part in parts]
        if ranks.rank() > 0 or not parts:
            return
        columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        frame = pd.DataFrame(columns).sort_values(["update", "prompt_id", "rollout", "position"])
        path = folder / "tokens" / f"step{self.step:06d}.parquet"
        path.parent.mkdir(exist_ok=True)
        with whole(path) as unfinished:
            frame.to_parquet(unfinished, index=False)
