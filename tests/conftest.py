"""Shared by the tests: one torch thread, no wandb, and a tiny randomly initialised model with
the testbed's tokenizer."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["WANDB_MODE"] = "disabled"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# As run.py sets them before anything is imported: a test that calls it in process reads its output.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

TINY = """
steps: 3
prompts_per_step: 4
group_size: 4
updates_per_step: 2
eval_every: 2
checkpoint_every: 1
threads: 1
model: {{path: {model}, device: cpu}}
data:
  train:
    - {{name: sums, task: chain_sum, params: {{min_terms: 2, max_terms: 3, min_digits: 1, max_digits: 1}}}}
    - {{name: gcd, task: gcd, params: {{min_value: 1, max_value: 20}}}}
rollout: {{max_tokens: 12}}
update: {{lr: 1.0e-3}}
reward: random
eval:
  k: 2
  size: 3
  benchmarks:
    - {{name: sums, task: chain_sum, params: {{min_terms: 2, max_terms: 2, min_digits: 1, max_digits: 1}}}}
"""


def save_tiny_model(folder: Path) -> None:
    """A two-layer qwen3, randomly initialised (so its answers are noise and its entropy high)."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from cegppo.problems.testbed import make_tokenizer

    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=256, tie_word_embeddings=True,
        initializer_range=0.2,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():  # so that the end of a sequence is likely in some places
        model.get_output_embeddings().weight[tokenizer.eos_token_id] *= 4
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A folder with the tiny model."""
    folder = tmp_path_factory.mktemp("model")
    save_tiny_model(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_text(tiny_model) -> str:
    """An experiment on the tiny model; random rewards, so that every group teaches something."""
    return TINY.format(model=tiny_model)


@pytest.fixture
def tiny(tiny_text, tmp_path) -> Path:
    """`tiny_text` as a file."""
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_text)
    return path
