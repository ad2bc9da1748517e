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


def load_adapter(folder: str | Path = ADAPTER, encoder: str = ENCODER, llm: str = LLM):
    """Backbones, found or fetched, with trained adapters merged in -> model in eval mode, processor.

    Raises: FileNotFoundError where the folder or a backbone is missing.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(
            f"There is no folder `{folder}` with trained adapters. The shipped ones are in `weights/` of a checkout "
            "of this repository; `make train` makes them."
        )
    from ..data.backbones import resolve_backbone
    from ..modeling.modeling_soundwave import SoundwaveForConditionalGeneration
    from ..processing.processing_soundwave import SoundwaveProcessor

    encoder_folder, llm_folder = resolve_backbone(encoder), resolve_backbone(llm)
    model = SoundwaveForConditionalGeneration.from_backbones(encoder_folder, llm_folder, adapter=str(folder))
    return model.eval(), SoundwaveProcessor.from_backbones(encoder_folder, llm_folder)
