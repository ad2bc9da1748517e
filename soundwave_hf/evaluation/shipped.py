"""The weights that ship with this repository, and their backbones."""

from pathlib import Path

from ..adapters import load_adapter as _load_adapter
from ..adapters import load_processor as _load_processor
from ..data.backbones import SHIPPED_BACKBONES
from ..paths import SHIPPED_WEIGHTS, checkpoint_named, shipped


ENCODER, LLM = SHIPPED_BACKBONES
REPOSITORY = Path(__file__).resolve().parents[2]
ADAPTER = shipped(SHIPPED_WEIGHTS)
EXAMPLES = REPOSITORY / "examples"


def load_checkpoint(folder: str, dtype="auto", device: str | None = None):
    """Load a whole checkpoint by folder or hub name. Returns the model in eval mode and the processor."""
    from transformers import AutoModelForMultimodalLM, AutoProcessor

    with checkpoint_named(folder):
        model = AutoModelForMultimodalLM.from_pretrained(folder, dtype=dtype).eval()
        return model if device is None else model.to(device), AutoProcessor.from_pretrained(folder)


def load_weights(
    folder: str,
    is_adapter: bool,
    ctc_only: bool = False,
    device: str | None = None,
    dtype: str | None = None,
    **backbones,
):
    """Load adapters on their backbones, or a whole checkpoint. Returns the model in eval mode and the processor.

    Args: backbones: `encoder`, `llm` and `allow_other_backbones` of adapters, as in `load_adapter`.
    """
    placing = {key: value for key, value in {"device": device, "dtype": dtype}.items() if value is not None}
    if is_adapter:
        return load_adapter(folder, ctc_only=ctc_only, **backbones, **placing)
    return load_checkpoint(folder, **placing)


def load_adapter(folder: str | Path = ADAPTER, *args, **kwargs):
    """`soundwave_hf.adapters.load_adapter` with the shipped adapters as default."""
    return _load_adapter(folder, *args, **kwargs)


def load_processor(folder: str | Path = ADAPTER, *args, **kwargs):
    """`soundwave_hf.adapters.load_processor` with the shipped adapters as default."""
    return _load_processor(folder, *args, **kwargs)
