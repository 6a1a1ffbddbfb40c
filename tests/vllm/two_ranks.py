"""Run by torchrun on two ranks that share one engine: each asks for other prompts and writes
what it got. Arguments: model, folder."""

import dataclasses
import json
import sys
from pathlib import Path

import torch.distributed as dist

from cegppo.config import VLLM
from cegppo.model.policy import Policy
from cegppo.rollout import Sampling
from cegppo.rollout.vllm import VLLMSampler
from cegppo.types import requests
from tests.vllm.test_vllm import LONGEST, RULES, SETTINGS, key, prompts

dist.init_process_group("gloo")
policy = Policy.load(sys.argv[1], "cpu")
settings = VLLM(**{**dataclasses.asdict(SETTINGS), "tensor_parallel": 2})
sampler = VLLMSampler(policy, Sampling(**RULES), longest=LONGEST, settings=settings)
chosen = prompts(policy)[:1] if dist.get_rank() == 0 else prompts(policy)[1:]
jobs = [(request.prompt, request.index) for request in requests(chosen, 6)]
(Path(sys.argv[2]) / f"{dist.get_rank()}.json").write_text(json.dumps(key(sampler.draw(jobs, step=5))))
