"""`soundwave-hf merge ADAPTER DST`: backbones, adapters and LoRA as one checkpoint that `from_pretrained` loads."""

import os
from pathlib import Path

from .evaluation.shipped import ENCODER, LLM, load_adapter
from .whole_files import refuse_used, whole_folder


def merge_adapter(
    adapter: str | os.PathLike, destination: str | os.PathLike, encoder: str = ENCODER, llm: str = LLM
) -> Path:
    """Write the backbones with trained adapters, their LoRA merged into the LLM, the processor and the code.

    The folder is put in place in one step. It is what `pipeline`, servers and `push_to_hub` take.

    Args:
        adapter: folder that `soundwave-hf train` or `export` wrote.
        encoder, llm: what it was trained with, by hub name or folder.

    Raises: `FileExistsError` where the destination is no new or empty folder; what `load_adapter` raises.
    """
    destination = Path(destination)
    refuse_used(destination)
    model, processor = load_adapter(adapter, encoder, llm)
    with whole_folder(destination) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    print(f"{destination}: {sum(file.stat().st_size for file in destination.iterdir()) / 1e6:.0f} MB")
    return destination


__all__ = ["merge_adapter"]
