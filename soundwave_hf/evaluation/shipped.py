"""The weights that this repository ships and the backbones they belong to."""

from pathlib import Path

from ..adapters import load_adapter as _load_adapter
from ..adapters import load_processor as _load_processor
from ..adapters import resolve_adapter


ENCODER = "openai/whisper-base"
LLM = "HuggingFaceTB/SmolLM2-135M-Instruct"
REPOSITORY = Path(__file__).resolve().parents[2]
ADAPTER = REPOSITORY / "weights" / "soundwave-small"
EXAMPLES = REPOSITORY / "examples"


def load_checkpoint(folder: str, dtype="auto", device: str | None = None):
    """A whole checkpoint, by folder or hub name -> model in eval mode, processor."""
    from transformers import AutoModelForMultimodalLM, AutoProcessor

    model = AutoModelForMultimodalLM.from_pretrained(folder, dtype=dtype).eval()
    return model if device is None else model.to(device), AutoProcessor.from_pretrained(folder)


def load_adapter(folder: str | Path = ADAPTER, *args, **kwargs):
    """`soundwave_hf.adapters.load_adapter`; the shipped adapters by default."""
    return _load_adapter(folder, *args, **kwargs)


def load_ctc_adapter(folder: str | Path = ADAPTER, dtype="float32", device: str | None = None, **backbones):
    """The audio side of adapters of any stage, without their LLM -> `SoundwaveForCTC` in eval mode, processor."""
    from ..modeling.modeling_soundwave import SoundwaveForCTC

    adapter = resolve_adapter(folder)
    model = SoundwaveForCTC.from_pretrained(adapter, dtype=dtype, device_map=device, **backbones)
    return model, _load_processor(adapter, backbones.get("llm"))


def load_processor(folder: str | Path = ADAPTER, *args, **kwargs):
    """`soundwave_hf.adapters.load_processor`; of the shipped adapters by default."""
    return _load_processor(folder, *args, **kwargs)
