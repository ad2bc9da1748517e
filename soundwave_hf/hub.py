"""`soundwave-hf merge ADAPTER DST`: backbones, adapters and LoRA as one checkpoint that `from_pretrained` loads."""

import os
from pathlib import Path

from .adapters import load_adapter, resolve_adapter
from .atomic import atomic_folder, refuse_file_name, refuse_used
from .publish.files import SHARD_SIZE
from .publish.runs import RECORD, describe_runs
from .training.export import WEIGHT_FILES, refuse_infinite


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

    The folder appears in one step. `pipeline`, servers and `push_to_hub` can use it. Layers are merged one by one, in
    place, in float32, and each is rounded once to the dtype of the LLM. `training_runs.json` keeps the recipes, data
    and logs of the adapters' runs for the model card.

    Args:
        adapter: folder that `soundwave-hf train` or `export` wrote, or a hub name.
        encoder, llm: hub name or folder of a backbone; by default those that the adapters' config names.
        dtype: of all weights that are written; "auto" for that of the LLM's checkpoint.
        device: where the layers are merged; the CPU by default.
        allow_other_backbones: whether to accept backbones that the adapters were not trained with.

    Raises: `FileExistsError` if the destination exists and is not an empty folder; `ValueError` if a weight has no
        finite value in the dtype; what `load_adapter` raises; `BlockingIOError` if another process is writing the
        destination.
    """
    destination = Path(destination)
    refuse_file_name(destination, "DST", WEIGHT_FILES, "leave its ending out")
    refuse_used(destination)
    adapter = resolve_adapter(adapter)
    record = describe_runs(adapter)
    model, processor = load_adapter(adapter, encoder, llm, dtype, device, allow_other_backbones)
    # A checkpoint is loaded in one dtype. Without this, a float16 Whisper would turn a bfloat16 LLM to float16.
    model = model.to(model.lm_head.weight.dtype)
    refuse_infinite(model.named_parameters(), adapter, "needs the range of float32: `--dtype bfloat16` has it")
    with atomic_folder(destination) as folder:
        model.save_pretrained(folder, max_shard_size=SHARD_SIZE)
        processor.save_pretrained(folder)
        if record is not None:
            (folder / RECORD).write_text(record, encoding="utf-8")
    print(f"{destination}: {sum(file.stat().st_size for file in destination.iterdir()) / 1e6:.0f} MB")
    return destination


__all__ = ["merge_adapter"]
