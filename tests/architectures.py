"""Every causal architecture of transformers, in miniature."""

import inspect
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 96
KINDS = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
LARGEST = 3_000_000  # parameters of what still counts as a miniature
# Sizes by the names that configurations have for them; a configuration takes those that it knows.
SIZES: dict[str, Any] = dict(
    vocab_size=VOCABULARY, bos_token_id=1, eos_token_id=2, pad_token_id=0, initializer_range=0.3, init_std=0.3,
    is_decoder=True, add_cross_attention=False,
    # width
    hidden_size=32, d_model=32, n_embd=32, emb_dim=32, embedding_size=32, embedding_dim=32, word_embed_proj_dim=32,
    input_embedding_size=32, output_embedding_size=32, attention_hidden_size=32, lru_width=32, router_hidden_size=16,
    # depth
    num_hidden_layers=2, n_layer=2, n_layers=2, num_layers=2, encoder_layers=1, decoder_layers=2, num_blocks=2,
    # heads
    num_attention_heads=4, n_head=4, n_heads=4, encoder_attention_heads=4, decoder_attention_heads=4,
    attention_heads=4, num_encoder_attention_heads=4, num_decoder_attention_heads=4, num_key_value_heads=2,
    num_kv_heads=2, head_dim=8, dim_head=8, d_head=8, attention_head_dim=8, attention_head_size=8, kv_channels=8,
    rotary_dim=4,
    # inner width
    intermediate_size=48, ffn_dim=48, encoder_ffn_dim=48, decoder_ffn_dim=48, feed_forward_size=48, dff=48, dim_ff=48,
    d_inner=48, ffn_hidden_size=48, n_inner=48,
    # length
    max_position_embeddings=64, n_positions=64, n_ctx=64, max_seq_len=64, context_length=64, max_target_positions=64,
    max_source_positions=64, keep_window_size=64, sliding_window=6, attention_window_size=6, local_attention=12,
    window_size=6, attention_chunk_size=6, mem_len=64, block_size=8,
    # experts
    moe_intermediate_size=16, shared_expert_intermediate_size=16, moe_shared_expert_intermediate_size=16,
    num_experts=4, num_local_experts=4, n_routed_experts=4, moe_num_experts=4, num_experts_per_tok=2, moe_k=2,
    n_group=1, topk_group=1, first_k_dense_replace=1, intermediate_size_mlp=48, n_shared_experts=1,
    # latent attention
    kv_lora_rank=8, q_lora_rank=8, o_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8,
    index_topk=4, index_head_dim=8, index_n_heads=2, gated_norm_rank=4,
    # linear attention, convolution and state spaces
    linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=8, linear_value_head_dim=8,
    mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8, mamba_chunk_size=8, mamba_d_ssm=64, mamba_dt_rank=8, state_size=8,
    time_step_rank=8, ssm_state_size=8, mamba_num_heads=8, mamba_head_dim=8, chunk_size=8, mamba_headdim=8, num_heads=8,
    # layers that add to the input
    hidden_size_per_layer_input=8, vocab_size_per_layer_input=VOCABULARY, laurel_rank=4, adapter_rank=4,
    audio_vocab_size=16, query_pre_attn_scalar=8,
    # what is done to the logits, where it is known
    logits_scaling=8.0, lm_head_multiplier=0.5, final_logit_softcapping=5.0, logits_soft_cap=5.0,
    output_logit_soft_cap=5.0,
)  # fmt: skip
VISION = dict(
    hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
)
TEXT = {name: SIZES[name] for name in (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "max_position_embeddings", "sliding_window", "query_pre_attn_scalar", "initializer_range",
    "bos_token_id", "eos_token_id", "pad_token_id",
)}  # fmt: skip
# What an architecture needs besides.
MORE: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ("axk1", "axk2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "longcat_flash", "youtu"),
        dict(head_dim=4, num_key_value_heads=4),
    ),
    "lfm2": dict(layer_types=["conv", "full_attention"]),
    "lfm2_moe": dict(layer_types=["conv", "full_attention"]),
    **dict.fromkeys(
        ("qwen3_5_text", "qwen3_5_moe_text", "qwen3_next", "olmo_hybrid", "qwen4_exp_text"),
        dict(layer_types=["linear_attention", "full_attention"]),
    ),
    **dict.fromkeys(
        ("cohere2", "cohere_compass_text", "gemma3_text", "gemma4_text", "gemma4_unified_text", "gemma3n_text"),
        dict(layer_types=["sliding_attention", "full_attention"]),
    ),
    "gpt_neo": dict(attention_types=[[["global", "local"], 1]]),
    "roc_bert": dict(pronunciation_vocab_size=16, shape_vocab_size=16, pronunciation_embed_dim=8, shape_embed_dim=8),
    "gemma3": dict(
        text_config=TEXT,
        vision_config=VISION,
        mm_tokens_per_image=4,
        boi_token_index=90,
        eoi_token_index=91,
        image_token_index=92,
    ),
    "bamba": dict(attn_layer_indices=[1]),
    "jamba": dict(attn_layer_period=2, attn_layer_offset=1),
    "granitemoehybrid": dict(layer_types=["mamba", "attention"]),
}


def config_of(kind: str, **more: Any) -> Any:
    """The configuration of architecture `kind` in miniature, with `more` of its keys."""
    made = CONFIG_MAPPING[kind]
    known = made().to_dict() | {name: None for name in inspect.signature(made.__init__).parameters}
    known |= getattr(made, "attribute_map", {})
    given = {name: value for name, value in SIZES.items() if name in known}
    return made(**(given | MORE.get(kind, {}) | more))


def model_of(kind: str, **more: Any) -> PreTrainedModel:
    """Architecture `kind` in miniature, randomly initialised, float32, in evaluation mode."""
    config = config_of(kind, **more)
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    assert size <= LARGEST, f"{size:,} parameters"
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a character: space to {, after <pad>, <bos>, <eos> and <unk>."""
    characters = [chr(i) for i in range(32, 32 + VOCABULARY - 4)]
    vocabulary = {piece: i for i, piece in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *characters])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    special = dict(bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", pad_token="<pad>")
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


def save(model: PreTrainedModel, folder: Path) -> Path:
    """`folder` with `model` and the tokenizer."""
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
