"""Folders of trained adapters: found by name, and loaded with their backbones."""

import os

from .paths import find_weights


def resolve_adapter(name_or_folder: str | os.PathLike, revision: str | None = None, **hub) -> str:
    """The local folder of trained adapters, downloaded first if the name is a hub name.

    Args:
        name_or_folder: folder that `soundwave-hf train` or `export` wrote, of any stage, or a hub name.
        revision: branch, tag or commit of a hub repository.
        hub: `token`, `cache_dir`, `local_files_only`, as in `from_pretrained`.

    Raises: FileNotFoundError if there is no such folder or repository; ValueError if it holds no trained adapters.
    """
    from .modeling.folders_soundwave import describe_folder, find_adapter, is_hub_name

    name = find_weights(os.path.expanduser(os.fspath(name_or_folder)))
    if revision is not None and not os.path.isdir(name):
        hub["revision"] = revision
    if (folder := find_adapter(name, **hub)) is not None:
        return folder
    if os.path.isdir(name):
        raise ValueError(f"Trained adapters were expected. {describe_folder(name)}")
    hub_words = ", and no adapters of that name could be downloaded from the hub" if is_hub_name(name) else ""
    raise FileNotFoundError(
        f"There is no folder `{name}` with trained adapters{hub_words}. Give a folder that `soundwave-hf train` or "
        "`export` wrote; the shipped ones are `weights/soundwave-small`."
    )


def load_adapter(
    folder: str | os.PathLike,
    encoder: str | None = None,
    llm: str | None = None,
    dtype="float32",
    device: str | None = None,
    allow_other_backbones: bool = False,
    revision: str | None = None,
    ctc_only: bool = False,
):
    """Load trained adapters and merge them into their backbones. Returns the model in eval mode and the processor.

    Args:
        folder: folder of adapters of stage `shrink` or `instruct`, or a hub name.
        encoder, llm: hub name or folder of a backbone; by default those that the adapters' config names.
        dtype: of all weights; with "auto" the backbones keep their own and the adapters are float32.
        device: where the model is put; the CPU by default.
        allow_other_backbones: whether to accept backbones that the adapters were not trained with.
        ctc_only: accept adapters of stage `align` too. Only the CTC head of such a model is usable.

    Raises: what `resolve_adapter` and `SoundwaveForConditionalGeneration.from_pretrained` raise.
    """
    from .modeling.folders_soundwave import adapter_kind
    from .modeling.loading_soundwave import as_device
    from .modeling.modeling_soundwave import SoundwaveForConditionalGeneration as Model

    adapter = resolve_adapter(folder, revision)
    chosen = {"encoder": encoder, "llm": llm, "allow_other_backbones": allow_other_backbones, "dtype": dtype}
    if ctc_only and adapter_kind(adapter) == "align":
        model = Model.from_backbones(adapter=adapter, device=as_device(device or "cpu"), **chosen)
    else:
        model = Model.from_pretrained(adapter, device_map=device, **chosen)
    return model, load_processor(adapter, llm)


def load_processor(folder: str | os.PathLike, llm: str | None = None):
    """The processor of trained adapters, with the tokenizer of `llm`, by default the LLM that their config names."""
    from .processing.processing_soundwave import SoundwaveProcessor

    return SoundwaveProcessor.from_pretrained(resolve_adapter(folder), llm=llm)


__all__ = ["load_adapter", "load_processor", "resolve_adapter"]
