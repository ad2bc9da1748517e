"""Soundwave speech language models (arXiv 2502.12900) for transformers.

`import soundwave_hf` makes `AutoConfig`, `AutoModel`, `AutoModelForMultimodalLM`, `AutoModelForSeq2SeqLM`,
`AutoModelForSpeechSeq2Seq` and `AutoProcessor` load Soundwave checkpoints. Public names are imported when first used.
"""

import importlib
import logging
import sys
from typing import TYPE_CHECKING

from .auto_classes import register


__version__ = "0.2.0.dev0"  # pyproject.toml reads it here

if TYPE_CHECKING:
    from .adapters import load_adapter, load_processor, resolve_adapter
    from .convert import convert_published
    from .hub import merge_adapter
    from .live import StreamingTranscriber
    from .modeling.configuration_soundwave import SoundwaveConfig
    from .modeling.modeling_soundwave import SoundwaveForConditionalGeneration, SoundwaveForCTC, SoundwaveModel
    from .processing.processing_soundwave import SoundwaveProcessor
    from .publish.push import push_model
    from .text_answers import answer_from_transcripts
    from .training.arguments import SoundwaveTrainingArguments
    from .training.collator import SoundwaveCollator, SoundwaveDataCollator
    from .training.run import run_stage, train
    from .training.sft import SoundwaveSFTConfig, SoundwaveSFTTrainer
    from .training.stages import STAGES
    from .training.trainer import SoundwaveTrainer
    from .transcribe import transcribe_clips

_MODULE_OF = {
    "convert_published": "convert",
    "load_adapter": "adapters",
    "load_processor": "adapters",
    "merge_adapter": "hub",
    "push_model": "publish.push",
    "resolve_adapter": "adapters",
    "SoundwaveConfig": "modeling.configuration_soundwave",
    "SoundwaveModel": "modeling.modeling_soundwave",
    "SoundwaveForCTC": "modeling.modeling_soundwave",
    "SoundwaveForConditionalGeneration": "modeling.modeling_soundwave",
    "SoundwaveProcessor": "processing.processing_soundwave",
    "SoundwaveCollator": "training.collator",
    "SoundwaveDataCollator": "training.collator",
    "SoundwaveTrainingArguments": "training.arguments",
    "SoundwaveTrainer": "training.trainer",
    "SoundwaveSFTConfig": "training.sft",
    "SoundwaveSFTTrainer": "training.sft",
    "STAGES": "training.stages",
    "run_stage": "training.run",
    "train": "training.run",
    "StreamingTranscriber": "live",
    "answer_from_transcripts": "text_answers",
    "transcribe_clips": "transcribe",
}

__all__ = [
    "STAGES",
    "SoundwaveCollator",
    "SoundwaveConfig",
    "SoundwaveDataCollator",
    "SoundwaveForCTC",
    "SoundwaveForConditionalGeneration",
    "SoundwaveModel",
    "SoundwaveProcessor",
    "SoundwaveSFTConfig",
    "SoundwaveSFTTrainer",
    "SoundwaveTrainer",
    "SoundwaveTrainingArguments",
    "StreamingTranscriber",
    "answer_from_transcripts",
    "convert_published",
    "load_adapter",
    "load_processor",
    "merge_adapter",
    "push_model",
    "resolve_adapter",
    "run_stage",
    "train",
    "transcribe_clips",
]


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module `{__name__}` has no attribute `{name}`; its public names are {__all__}")
    value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _is_useful(record: logging.LogRecord) -> bool:
    return "Failed to load" not in record.getMessage() and "register_constant" not in record.getMessage()


# transformers imports torchao where it is installed. Without a GPU, torchao warns of each part that needs one, and
# torch warns of how torchao registers its classes. Users can do nothing about either.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).addFilter(_is_useful)

register(sys.modules[__name__])
