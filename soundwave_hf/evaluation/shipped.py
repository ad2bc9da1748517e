"""The weights that this repository ships and the backbones they belong to."""

from pathlib import Path


ENCODER = "openai/whisper-base"
LLM = "HuggingFaceTB/SmolLM2-135M-Instruct"
REPOSITORY = Path(__file__).resolve().parents[2]
ADAPTER = REPOSITORY / "weights" / "soundwave-small"
EXAMPLES = REPOSITORY / "examples"


def load_checkpoint(folder: str):
    """A whole checkpoint, by folder or hub name -> model in eval mode, processor."""
    from transformers import AutoModelForMultimodalLM, AutoProcessor

    return AutoModelForMultimodalLM.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


def load_processor(encoder: str = ENCODER, llm: str = LLM, adapter: str | Path = ADAPTER):
    """The processor of two backbones, found or fetched, as trained adapters need it."""
    from ..data.backbones import resolve_backbone
    from ..processing.processing_soundwave import SoundwaveProcessor

    return SoundwaveProcessor.from_backbones(resolve_backbone(encoder), resolve_backbone(llm), adapter)


def load_adapter(folder: str | Path = ADAPTER, encoder: str = ENCODER, llm: str = LLM):
    """Backbones, found or fetched, with trained adapters merged in -> model in eval mode (float32), processor.

    Raises: FileNotFoundError where the folder or a backbone is missing.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(
            f"There is no folder `{folder}` with trained adapters. The shipped ones are in `weights/` of a checkout "
            "of this repository; `make train` makes them."
        )
    import torch

    from ..data.backbones import resolve_backbone
    from ..modeling.modeling_soundwave import SoundwaveForConditionalGeneration

    encoder_folder, llm_folder = resolve_backbone(encoder), resolve_backbone(llm)
    # The hub's LLM is in bfloat16, the one from PyPI in float32: LoRA merged into the first would be rounded.
    model = SoundwaveForConditionalGeneration.from_backbones(
        encoder_folder, llm_folder, adapter=str(folder), dtype=torch.float32
    )
    return model.eval(), load_processor(encoder_folder, llm_folder, folder)
