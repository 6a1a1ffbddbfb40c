"""Is there such a model? One short question, before libraries ask the hub for file after file, each
with retries."""

import sys
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

from ..types import BadInput, said

SECONDS = 10


def ask(path: str) -> None:
    """Raises BadInput where `path` is neither a folder nor, as far as one may tell, a model of the
    Hugging Face hub. One that is cached is not asked for, nor is any with HF_HUB_OFFLINE."""
    if Path(path).exists():
        return
    try:
        cached = huggingface_hub.try_to_load_from_cache(path, "config.json")
    except HFValidationError:  # more than one slash, a space: no name of a model
        raise BadInput(f"model.path={path}: no such folder") from None
    if isinstance(cached, str) or huggingface_hub.constants.HF_HUB_OFFLINE:
        return
    print(f"model.path={path}: no such folder; asking the Hugging Face hub", file=sys.stderr, flush=True)
    try:
        huggingface_hub.model_info(path, timeout=SECONDS)
    except RepositoryNotFoundError:
        raise BadInput(f"model.path={path}: no such folder, and no such model on the hub that you may read") from None
    except Exception as error:  # of the network, of several libraries
        raise BadInput(f"model.path={path}: no such folder, and the hub cannot be asked ({said(error)})") from None
