"""Which engine samples, by the configuration."""

from dataclasses import replace

from ..config import Config, Data
from ..model.policy import Policy, load_policy
from ..model.traits import positions
from ..types import BadInput
from . import Sampler, Sampling, vllm
from .hf import HFSampler


def fitted(policy: Policy, data: Data, answer: int) -> Data:
    """`data` with prompts that leave the model room for `answer` tokens. Raises BadInput where no
    prompt does, or not all that were asked for; the default of `data.max_prompt_tokens` asks for
    none, and gives way."""
    limit = positions(policy.model)
    if limit is None or data.max_prompt_tokens + answer <= limit:
        return data
    if answer >= limit or data.max_prompt_tokens != Data().max_prompt_tokens:
        raise BadInput(
            f"data.max_prompt_tokens={data.max_prompt_tokens} + max_tokens={answer} is more than the {limit} positions"
            f" of {type(policy.model).__name__}"
        )
    return replace(data, max_prompt_tokens=limit - answer)


def start_sampler(policy: Policy, c: Config, longest: int) -> Sampler:
    """The sampler of training rollouts. `longest`: the most tokens that a prompt and its response
    may have together, in training or evaluation."""
    r = c.rollout
    rules = Sampling(
        c.seed, r.temperature, r.top_p, r.top_k, r.max_tokens, tuple(r.stop), statistics=r.old_logprobs == "auto"
    )
    made: Sampler
    if r.engine == "hf":
        made = HFSampler(policy, rules)
    else:
        made = vllm.VLLMSampler(policy, rules, longest=longest, settings=r.vllm)
    made.read = lambda folder: load_policy(folder, c.model, r.temperature, c.update.micro_batch_tokens)
    return made
