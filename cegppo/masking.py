"""What looks like a password or a token, taken out of what is recorded: records are shared."""

import re
from typing import Any

# The value of a key that says what it is, after =, a colon or as the next word of an option; a
# password in an address; tokens of known services, by the beginnings that these publish.
_KEY = r"(?:token|secret|passw(?:or)?d|passphrase|api[_-]?key|access[_-]?key|credentials?)"
SECRET = re.compile(
    rf"(?P<before>(?i:[\w.-]*{_KEY}[\"']?\s*[=:]\s*[\"']?))[^\s\"',}}\]]+"
    rf"|(?P<option>(?i:--?[\w-]*{_KEY}\s+))(?!-)\S+"
    r"|(?P<bearer>(?i:\bbearer\s+))\S+"
    r"|(?P<address>://[^\s/:@]*:)[^\s/@]+(?=@)"
    r"|(?P<service>\b(?:hf_|gh[pousr]_|github_pat_|glpat-|sk[_-]|xox[abeoprs]-|wandb_v1_|npm_|pypi-|AKIA|ASIA|AIza))"
    r"[A-Za-z0-9_-]{12,}"
)
# Counts of tokens are no secrets: rollout.max_tokens=12, tokens: 5.
_COUNT = re.compile(r"[\d.]+|true|false|null|none", re.IGNORECASE)


def without_secrets(text: str) -> str:
    """`text` with *** for what looks like a secret."""

    def masked(found: re.Match[str]) -> str:
        before = next(filter(None, found.groups()))
        value = found[0][len(before) :]
        return found[0] if _COUNT.fullmatch(value) else f"{before}***"

    return SECRET.sub(masked, text)


def masked(tree: Any, key: str = "") -> Any:
    """A configuration's values with *** for what looks like a secret, by its key or by itself."""
    if isinstance(tree, dict):
        return {name: masked(value, str(name)) for name, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [masked(value, key) for value in tree]
    if not isinstance(tree, str):
        return tree
    return without_secrets(f"{key}={tree}")[len(key) + 1 :] if key else without_secrets(tree)


# Whole tokens of known services and passwords in addresses: what nobody writes for another reason.
_SURE = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{22,}|glpat-[\w-]{20,}|xox[abeoprs]-[\w-]{20,}"
    r"|(?:AKIA|ASIA)[0-9A-Z]{16}|wandb_v1_\w{20,}|sk-(?:[a-z]+-)*[A-Za-z0-9_]{20,})|://[^\s/:@]+:[^\s/@]+@"
)
_OPTION = re.compile(rf"--?[\w-]*{_KEY}", re.IGNORECASE)


def is_secret(text: str) -> bool:
    """Whether `text` holds a whole token of a known service, or an address with a password."""
    return _SURE.search(text) is not None


def masked_arguments(arguments: list[str]) -> list[str]:
    """A command line's arguments, each `without_secrets`; `--token` hides the one behind it."""
    before = [None, *arguments]
    hidden = [option is not None and _OPTION.fullmatch(option) is not None for option in before]
    return ["***" if hide and word[:1] != "-" else without_secrets(word) for hide, word in zip(hidden, arguments)]
