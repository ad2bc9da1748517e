"""No token, key or password in a recipe, in a run's arguments, or in what is printed of them.

A recipe is copied into every folder that a run writes, and from there to the Hub.
"""

import re


# Last words of a key that holds one. `eos_token` and its like are words of a vocabulary.
SECRET_KEY = re.compile(
    r"(^|[_.-])(token|tokens|secret|secrets|password|passwd|passphrase|pwd|credential|credentials|bearer|authorization"
    r"|auth|api_?key|access_?key|access_?key_?id|secret_?key|private_?key|auth_?key|account_?key|use_auth_token)$",
    re.IGNORECASE,
)
TEXT_TOKENS = re.compile(r"(^|_)(eos|bos|pad|unk|sep|cls|mask|audio|image|video|boi|eoi)_token$", re.IGNORECASE)
SECRET_VALUE = re.compile(
    r"hf_(?:oauth_)?(?:(?=[A-Za-z]*[A-Z0-9])[A-Za-z0-9]{8,}|[A-Za-z0-9]{20,})"  # Hugging Face
    r"|api_org_[A-Za-z0-9]{20,}"
    r"|\bsk-[A-Za-z0-9_-]{16,}"  # OpenAI and others
    r"|\b(?:ghp|gho|ghu|ghs|ghr)_[A-Za-z0-9]{20,}|github_pat_\w{20,}|\bglpat-[\w-]{16,}"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"  # AWS
    r"|\bxox[abprs]-[A-Za-z0-9-]{10,}"  # Slack
    r"|\bAIza[\w-]{30,}"  # Google
    r"|\bwandb_v\d_\w{16,}"
    r"|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"  # JSON web token
    r"|\bbearer\s+\S{8,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
    r"|(?<=://)[^/\s@'\"]+(?=@)"  # user:password of a URL
    r"|(?<=[?&])(?:access_token|auth_token|token|api_?key|key|password|sig|signature|x-amz-signature|x-amz-credential"
    r"|x-goog-signature|awsaccesskeyid)=[^&\s]+",
    re.IGNORECASE,
)
HUGGING_FACE = re.compile("^hf_", re.IGNORECASE)
WAY_OUT = "Leave it out: log in with `hf auth login`, or set the variable `HF_TOKEN` (of another service, its own)."


def holds_secret(text: str) -> bool:
    """Whether a text holds something like a token, a key or a password."""
    return any(_is_secret(match[0]) for match in SECRET_VALUE.finditer(text))


def hide_secrets(text: str) -> str:
    """A text with `***` instead of what looks like a secret."""
    return SECRET_VALUE.sub(lambda match: "***" if _is_secret(match[0]) else match[0], text)


def _is_secret(found: str) -> bool:
    # The expression ignores case, and `hf_transformers` and `HF_ENDPOINT` are words.
    is_word = found[3:].isalpha() and (found[3:].islower() or found.isupper())
    return not (HUGGING_FACE.match(found) and len(found) < 23 and is_word)


def names_secret(key: str) -> bool:
    """Whether the value of a key of this name would be a secret."""
    return bool(SECRET_KEY.search(key)) and not TEXT_TOKENS.search(key)


def refuse_secrets(values, name: str, place: str = ""):
    """Raise `ValueError` if a mapping, at any depth, has a key for a secret or a text that looks like one.

    Args: name: of the mapping, for the error, which does not repeat the secret.
    """
    if isinstance(values, dict):
        for key, value in values.items():
            inner = f"{place}.{key}" if place else str(key)
            if holds_secret(str(key)):
                raise ValueError(f"{name} has a key that looks like a token or password. {WAY_OUT}")
            if names_secret(str(key)) and value not in (None, "", False):
                raise ValueError(f"{name} sets `{inner}`, which would be written into the files of the run. {WAY_OUT}")
            refuse_secrets(value, name, inner)
    elif isinstance(values, list | tuple | set):
        for value in values:
            refuse_secrets(value, name, place)
    elif isinstance(values, str) and holds_secret(values):
        where = f"{name} holds in `{place}`" if place else f"{name} holds"
        raise ValueError(
            f"{where} what looks like a token or password, which would be written into the files of the run. {WAY_OUT}"
        )


def first_line(error: BaseException) -> str:
    """The first line of an error, without tokens and without its last full stop or colon; its type if it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return hide_secrets(lines[0] if lines else type(error).__name__).rstrip(".: ")


__all__ = ["WAY_OUT", "first_line", "hide_secrets", "holds_secret", "names_secret", "refuse_secrets"]
