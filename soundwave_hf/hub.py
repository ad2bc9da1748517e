"""`soundwave-hf merge ADAPTER DST`: backbones, adapters and LoRA as one checkpoint that `from_pretrained` loads."""

import os
from pathlib import Path

from .adapters import load_adapter
from .atomic import atomic_folder, refuse_used


SHARD_SIZE = "5GB"


def merge_adapter(
    adapter: str | os.PathLike,
    destination: str | os.PathLike,
    encoder: str | None = None,
    llm: str | None = None,
    dtype="auto",
    device: str | None = None,
    allow_other_backbones: bool = False,
) -> Path:
    """Write the backbones with trained adapters, their LoRA merged into the LLM, the processor and the code.

    The folder is put in place in one step. It is what `pipeline`, servers and `push_to_hub` take. Layers are merged
    one by one, in place, in float32, and each is rounded once to the dtype of the LLM.

    Args:
        adapter: folder that `soundwave-hf train` or `export` wrote, or a hub name.
        encoder, llm: hub name or folder of a backbone; by default what the adapters name.
        dtype: of all weights that are written; "auto" for that of the LLM's checkpoint.
        device: where the layers are merged; the CPU by default.
        allow_other_backbones: whether the backbones may be others than those of the training.

    Raises: `FileExistsError` if the destination is no new or empty folder; what `load_adapter` raises.
    """
    destination = Path(destination)
    refuse_used(destination)
    model, processor = load_adapter(adapter, encoder, llm, dtype, device, allow_other_backbones)
    # One dtype: a checkpoint is loaded in one, and a Whisper in float16 would make it that of an LLM in bfloat16.
    model = model.to(model.lm_head.weight.dtype)
    with atomic_folder(destination) as folder:
        model.save_pretrained(folder, max_shard_size=SHARD_SIZE)
        processor.save_pretrained(folder)
    print(f"{destination}: {sum(file.stat().st_size for file in destination.iterdir()) / 1e6:.0f} MB")
    return destination


__all__ = ["merge_adapter"]
