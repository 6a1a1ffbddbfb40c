"""The GGUF converter on a made-up tiny Llama, written as llama.cpp writes one."""

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from cegppo.model.gguf import convert, find, main
from cegppo.types import BadInput

HEADS, KV_HEADS, LAYERS = 4, 2, 2
TOKENS = ["<unk>", "<s>", "</s>", "a", "b", "c", "Ġ", "ab", "Ġa"]
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def neighbours(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp has a head's rotary pairs beside each other, transformers half a head apart."""
    size = weight.shape[0] // heads
    return weight.reshape(heads, 2, size // 2, -1).swapaxes(1, 2).reshape(weight.shape)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(the file, the model that is in it)"""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(TOKENS), hidden_size=32, intermediate_size=48, num_hidden_layers=LAYERS,
            num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, max_position_embeddings=64, rms_norm_eps=1e-5,
            tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, initializer_range=0.3,
        )
    )  # fmt: skip
    path = tmp_path_factory.mktemp("package") / "tiny.gguf"
    w = gguf.GGUFWriter(path, "llama")
    w.add_context_length(64)
    w.add_embedding_length(32)
    w.add_block_count(LAYERS)
    w.add_feed_forward_length(48)
    w.add_head_count(HEADS)
    w.add_head_count_kv(KV_HEADS)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_freq_base(10000.0)
    w.add_vocab_size(len(TOKENS))
    w.add_tokenizer_model("gpt2")
    w.add_token_list(TOKENS)
    w.add_token_types([3, 3, 3] + [1] * (len(TOKENS) - 3))
    w.add_token_merges(["a b", "Ġ a"])
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_chat_template(TEMPLATE)
    weights = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    w.add_tensor("token_embd.weight", weights["model.embed_tokens.weight"])
    w.add_tensor("output_norm.weight", weights["model.norm.weight"])
    for layer in range(LAYERS):
        for ours, theirs in NAMES.items():
            value = weights[f"model.layers.{layer}.{ours}.weight"]
            if theirs in ("attn_q", "attn_k"):
                value = np.ascontiguousarray(neighbours(value, HEADS if theirs == "attn_q" else KV_HEADS))
            w.add_tensor(f"blk.{layer}.{theirs}.weight", value)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path, model


def test_converted_model_is_the_files(made, tmp_path):
    path, model = made
    count = convert(path, tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokens = torch.tensor([[1, 7, 5, 8, 4, 2]])
    with torch.no_grad():
        assert torch.allclose(loaded(tokens).logits, model.eval()(tokens).logits, atol=1e-5)
    assert count == sum(p.numel() for p in model.parameters()) and loaded.dtype == torch.float32
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.encode("ab ac", add_special_tokens=False) == [7, 8, 5]
    assert tokenizer.eos_token == "</s>" and tokenizer.chat_template == TEMPLATE


def test_a_package_that_holds_one(made, tmp_path, monkeypatch):
    path, _ = made
    (tmp_path / "holder").mkdir()
    (tmp_path / "holder" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(BadInput, match=r"holds 0 \.gguf files"):
        find("holder")
    (tmp_path / "holder" / "tiny.gguf").symlink_to(path)
    assert find("holder") == tmp_path / "holder" / "tiny.gguf"


def test_what_cannot_be_read_is_one_line(tmp_path, capsys):
    (tmp_path / "broken.gguf").write_bytes(b"not a model")
    for name, said in [
        (str(tmp_path / "none.gguf"), "no such file"),
        ("no_such_package", "neither a .gguf file nor an installed package"),
        (str(tmp_path / "broken.gguf"), "broken.gguf: cannot be read"),
    ]:
        assert main([name, str(tmp_path / "out")]) == 2
        assert said in (found := capsys.readouterr().err) and found.count("\n") == 1
    assert main([]) == 2
