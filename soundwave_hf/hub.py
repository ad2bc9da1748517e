"""`soundwave-hf merge ADAPTER DST`: backbones, adapters and LoRA as one checkpoint that `from_pretrained` loads."""

import os
import shutil
from pathlib import Path

from .evaluation.shipped import ENCODER, LLM, load_adapter


def merge_adapter(
    adapter: str | os.PathLike, destination: str | os.PathLike, encoder: str = ENCODER, llm: str = LLM
) -> Path:
    """Write the backbones with trained adapters, their LoRA merged into the LLM, the processor and the code.

    The folder is put in place in one step. It is what `pipeline`, servers and `push_to_hub` take.

    Args:
        adapter: folder that `soundwave-hf train` or `export` wrote.
        encoder, llm: what it was trained with, by hub name or folder.

    Raises: `FileExistsError` where the destination holds files; what `load_adapter` raises.
    """
    destination = Path(destination)
    if destination.is_dir() and any(destination.iterdir()):
        raise FileExistsError(f"`{destination}` holds files: name a new folder, or remove it.")
    model, processor = load_adapter(adapter, encoder, llm)
    part = destination.parent / f".{destination.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    try:
        model.save_pretrained(part)
        processor.save_pretrained(part)
        destination.parent.mkdir(parents=True, exist_ok=True)
        part.replace(destination)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    print(f"{destination}: {sum(file.stat().st_size for file in destination.iterdir()) / 1e6:.0f} MB")
    return destination


__all__ = ["merge_adapter"]
