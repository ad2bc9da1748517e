"""`from_pretrained` of trained adapters. Their config names the backbones."""

import difflib
import os

import torch
from torch import nn

from .backbones_soundwave import (
    FIXED_BY_WEIGHTS,
    adapter_fields,
    as_dtype,
    load_adapter,
    load_adapter_weights,
    load_lora,
    refuse_other_fields,
    settable_fields,
)
from .configuration_soundwave import SoundwaveConfig
from .folders_soundwave import (
    adapter_kind,
    choose_backbones,
    describe_folder,
    find_adapter,
    is_soundwave,
    peft_base,
)


HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "token")
OF_BACKBONES = ("cache_dir", "local_files_only", "token")  # of these, the options for backbones too
# Keywords of `from_pretrained` that have no effect here: from the Auto classes and pipelines, and old options.
WITHOUT_MEANING = {
    "_commit_hash",
    "_from_auto",
    "_from_pipeline",
    "code_revision",
    "low_cpu_mem_usage",
    "trust_remote_code",
    "weights_only",
}
OWN_OPTIONS = ("encoder", "llm", "allow_other_backbones", "merge_lora", "is_trainable")
SHARED_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")  # names of device maps over several devices


def take_adapter(name, options: dict) -> str | None:
    """The folder of trained adapters that `from_pretrained` was called with; None for a whole model.

    For a hub repository of adapters, the Auto classes replace the name by `base_model_name_or_path` and pass the
    original name in `adapter_kwargs`. The original name is loaded.

    Args: options: keywords of `from_pretrained`, also those for adapters.

    Raises: `ValueError` if a folder holds another model (the message gives the right call), or a keyword is only for
    adapters.
    """
    if name is None:
        return None
    name, subfolder, hub = _asked_folder(name, options)
    adapter = find_adapter(name, subfolder, **hub)
    if adapter is not None:
        return adapter
    folder = os.path.join(name, subfolder)
    if os.path.isdir(folder) and not is_soundwave(folder):
        raise ValueError(f"{describe_folder(folder)} A Soundwave model, or trained adapters of one, was expected.")
    if given := [option for option in OWN_OPTIONS if option in options]:
        raise ValueError(
            f"`{given[0]}` is for trained adapters, and none were found in `{name}`. "
            f"{describe_folder(folder) if os.path.isdir(folder) else 'Leave it out, or name a folder of adapters.'}"
        )
    return None


def _asked_folder(name, options: dict) -> tuple[str, str, dict]:
    """Folder or hub name that a caller named, its subfolder, and the options of the hub for it."""
    name, subfolder = os.path.expanduser(os.fspath(name)), options.get("subfolder") or ""
    hub = {key: options[key] for key in HUB_OPTIONS if options.get(key) is not None}
    from_auto = options.get("adapter_kwargs") or {}
    if (asked := from_auto.get("_adapter_model_path")) is not None and os.fspath(asked) != name:
        name = os.fspath(asked)
        hub.pop("revision", None)
        hub |= {key: from_auto[key] for key in ("revision", "token") if from_auto.get(key) is not None}
    return name, subfolder, hub


def refuse_changed_weights(name, options: dict):
    """Refuse config fields of `from_pretrained` that do not fit the weights of a whole model.

    Args: options: keywords of `from_pretrained`; the Auto classes give the changed fields in `config`.

    Raises: `ValueError` if a field of `FIXED_BY_WEIGHTS` differs from the saved one.
    """
    config = options.get("config")
    if isinstance(config, str | os.PathLike):
        config = SoundwaveConfig.from_pretrained(config)
    given = {field: getattr(config, field) for field in FIXED_BY_WEIGHTS if hasattr(config, field)}
    given |= {field: options[field] for field in FIXED_BY_WEIGHTS if field in options}
    if name is None or not given:
        return
    name, subfolder, hub = _asked_folder(name, options)
    saved = SoundwaveConfig.from_pretrained(name, **({"subfolder": subfolder} if subfolder else {}), **hub)
    refuse_other_fields(given, {field: getattr(saved, field) for field in FIXED_BY_WEIGHTS}, name)


def take_peft_folder(name, options: dict) -> tuple[str, str] | None:
    """The model that `from_pretrained` must load first, and the folder of PEFT's adapter for it; None for other calls.

    See `peft_base`.
    """
    if name is None:
        return None
    name, subfolder, hub = _asked_folder(name, options)
    folder = os.path.join(name, subfolder)
    base = peft_base(folder, **hub) if os.path.isdir(folder) else None
    return None if base is None else (base, folder)


def from_peft_folder(model_class, base: str, folder: str, *args, **options):
    """The model `base` with PEFT's adapter in `folder`, as `from_pretrained` of transformers loads it."""
    if not _generates(model_class):
        raise ValueError(
            f"`{folder}` holds PEFT's adapter of the whole model `{base}`, and `{model_class.__name__}` is a part of "
            "it: load it by `SoundwaveForConditionalGeneration.from_pretrained(folder)`."
        )
    for name in ("subfolder", "adapter_kwargs"):  # of the folder
        options.pop(name, None)
    adapter_name = options.pop("adapter_name", "default")
    found = model_class.from_pretrained(base, *args, **options)
    (found[0] if isinstance(found, tuple) else found).load_adapter(folder, adapter_name=adapter_name)
    return found


def from_adapter(
    model_class,
    adapter: str,
    name: str,
    *args,
    encoder: str | None = None,
    llm: str | None = None,
    allow_other_backbones: bool = False,
    merge_lora: bool = True,
    is_trainable: bool = False,
    config: SoundwaveConfig | None = None,
    dtype=None,
    torch_dtype=None,
    device_map=None,
    quantization_config=None,
    attn_implementation=None,
    output_loading_info: bool = False,
    **options,
):
    """Load trained adapters on their backbones: `from_pretrained` for a folder of adapters.

    Args:
        model_class: `SoundwaveForConditionalGeneration`, or `SoundwaveForCTC`, which loads adapters of any stage.
        adapter (`str`): local folder.
        name (`str`): first argument of `from_pretrained`: the folder, or a hub name.
        encoder, llm (`str`, *optional*): hub name or folder of a backbone; by default those in the adapters' config.
        allow_other_backbones (`bool`): whether to accept other backbones of the same widths.
        merge_lora (`bool`): merge the LoRA into the LLM. Otherwise a `PeftModel` is returned, whose
            `get_base_model()` is of `model_class`. It can generate and continue training, and it saves only the
            adapters.
        is_trainable (`bool`): whether an attached LoRA, and the adapters, are set to train.
        dtype (`torch.dtype` or `str`, *optional*): dtype of all weights. By default, and with "auto", backbones keep
            that of their checkpoints and adapters are float32. Layers are merged in float32 and rounded once.
        device_map (`str`, `int`, `torch.device` or `dict`, *optional*): as in `from_pretrained`. The model is joined
            on the CPU first; a quantized LLM is loaded directly on one device.
        quantization_config (`dict` or config of a quantizer, *optional*): for the LLM's layers.
        attn_implementation (`str` or `dict`, *optional*): as in `from_pretrained`.
        options: `max_memory`, `offload_folder`, `offload_buffers`; fields of `SoundwaveConfig`; `cache_dir`, `token`
            and `local_files_only`, for adapters and backbones; `revision`, `subfolder` and `force_download`, for the
            adapters.

    Returns: the model in eval mode (in training mode with `is_trainable`); with `output_loading_info` also a report.

    Raises: `ValueError` if the folder does not fit the class, a keyword or value is not supported, or the adapters
    were trained on other backbones; `FileNotFoundError` if a backbone is not found.
    """
    _check_call(args, model_class, adapter, merge_lora, is_trainable, quantization_config)
    placing = {key: options.pop(key, None) for key in ("max_memory", "offload_folder", "offload_buffers")}
    device = _one_device(device_map, quantization_config is not None, merge_lora)
    hub = {key: options.pop(key) for key in HUB_OPTIONS if key in options}
    changed = _changed_fields(config, name, options.pop("subfolder", None), hub)
    attn_implementation = attn_implementation or _asked_attention(config)
    changed |= _take_fields(options)
    found = choose_backbones(adapter, encoder, llm, **{key: hub[key] for key in OF_BACKBONES if key in hub})
    fields = adapter_fields(adapter, *found, allow_other_backbones)
    refuse_other_fields(changed, fields, adapter)
    own = {} if quantization_config is None else {"quantization_config": quantization_config, "device": device}
    own |= {"dtype": as_dtype(dtype if dtype is not None else torch_dtype), "warm_start": False}
    model = model_class.from_backbones(*found, **own, **{**fields, **changed})
    if attn_implementation:
        model.set_attn_implementation(attn_implementation)
    model = _put_adapters(model, adapter, merge_lora, is_trainable, changed)
    if quantization_config is None:
        model = place(model, device_map, device, **placing)
    model.train(is_trainable)
    report = {key: set() for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    return (model, report | {"error_msgs": []}) if output_loading_info else model


def _is_a(model_class, name: str) -> bool:
    """Whether a class, which may be remote code or a user's subclass, is one of this library's classes."""
    return name in {base.__name__ for base in model_class.__mro__}


def _generates(model_class) -> bool:
    return _is_a(model_class, "SoundwaveForConditionalGeneration")


def _check_call(args, model_class, adapter: str, merge_lora: bool, is_trainable: bool, quantization_config):
    if args:
        raise ValueError(
            f"`from_pretrained` got {len(args)} positional arguments after the folder: pass them by keyword."
        )
    generates, kind = _generates(model_class), adapter_kind(adapter)
    if not generates and not _is_a(model_class, "SoundwaveForCTC"):
        raise ValueError(
            f"`{model_class.__name__}` cannot load a folder of adapters: load `{adapter}` with "
            "`SoundwaveForConditionalGeneration.from_pretrained(folder)`; its `.model` is the bare model."
        )
    if generates and kind == "align":
        raise ValueError(describe_folder(adapter))
    if not generates and (not merge_lora or is_trainable or quantization_config is not None):
        raise ValueError(
            "`merge_lora`, `is_trainable` and `quantization_config` need an LLM, and `SoundwaveForCTC` has none."
        )
    if merge_lora and is_trainable:
        raise ValueError("`is_trainable` needs a LoRA that is not merged: give `merge_lora=False` too.")


def _changed_fields(config: SoundwaveConfig | None, name: str, subfolder: str | None, hub: dict) -> dict:
    """Fields that a caller changed in a config. (The Auto classes read it from `name` and pass it on.)"""
    if config is None:
        return {}
    if getattr(config, "model_type", None) != SoundwaveConfig.model_type:  # remote code has its own class
        raise ValueError(f"`config` is a {type(config).__name__}; expected a SoundwaveConfig.")
    saved = SoundwaveConfig.from_pretrained(name, **({"subfolder": subfolder} if subfolder else {}), **hub)
    for part in ("audio_config", "text_config", "audio_token_id"):
        values = [getattr(one, part) for one in (config, saved)]
        if part != "audio_token_id":
            values = [{**one.to_dict(), "dtype": None, "torch_dtype": None} for one in values]
        if values[0] != values[1]:
            raise ValueError(f"`{part}` of the config is determined by the backbones of `{name}`: do not change it.")
    values = {field: (getattr(config, field), getattr(saved, field)) for field in settable_fields()}
    return {field: given for field, (given, before) in values.items() if given != before}


def _asked_attention(config: SoundwaveConfig | None) -> dict | None:
    """Attention implementations that a caller set in a config, for `set_attn_implementation`."""
    if config is None:
        return None
    parts = {"": config, "audio_config": config.audio_config, "text_config": config.text_config}
    return {name: value for name, part in parts.items() if (value := part._attn_implementation) is not None} or None


def _take_fields(options: dict) -> dict:
    """Fields of `SoundwaveConfig` among the keywords. Raises: `ValueError` for an unknown keyword."""
    options = {key: value for key, value in options.items() if key not in WITHOUT_MEANING | {"adapter_kwargs"}}
    fields = {key: options.pop(key) for key in settable_fields() & options.keys()}
    for key, value in options.items():
        if value is None or (key == "use_safetensors" and value):
            continue
        known = {*settable_fields(), *OWN_OPTIONS, *HUB_OPTIONS, "dtype", "device_map", "quantization_config"}
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"Did you mean `{near[0]}`?" if near else "Merge the adapters first: `soundwave-hf merge ADAPTER DST`."
        if key in ("load_in_4bit", "load_in_8bit"):
            hint = f"Give `quantization_config=BitsAndBytesConfig({key}={value})`, a class of transformers."
        raise ValueError(f"`from_pretrained` of trained adapters does not take `{key}`. {hint}")
    return fields


def _put_adapters(model, adapter: str, merge_lora: bool, is_trainable: bool, changed: dict):
    if not hasattr(model, "lm_head"):
        load_adapter_weights(model, adapter)
        return model
    return load_adapter(model, adapter, changed) if merge_lora else load_lora(model, adapter, is_trainable, changed)


def _one_device(device_map, quantized: bool, merge_lora: bool):
    """The device of a map with one device; None if it has several, or the library chooses.

    Raises: `ValueError` if a quantized LLM, or a model with an attached LoRA, would be split.
    """
    device = _device_of_map(device_map, quantized)
    if not merge_lora and device_map is not None and device is None:
        raise ValueError(f"`device_map` is {device_map!r}, but `merge_lora=False` needs one device: give one.")
    return device


def _device_of_map(device_map, quantized: bool):
    if isinstance(device_map, dict) and list(device_map) == [""]:
        device_map = device_map[""]
    if quantized and isinstance(device_map, str) and device_map in SHARED_MAPS:
        return as_device(torch.accelerator.current_accelerator() or "cpu")
    if device_map is None or isinstance(device_map, dict) or device_map in SHARED_MAPS:
        if quantized and device_map is not None:
            raise ValueError("`device_map` splits the model, but a quantized LLM needs one device: give one.")
        return None
    if device_map == "disk":
        return None
    return as_device(device_map)


def as_device(device) -> torch.device:
    """A device by name. Raises: `ValueError` if it is unknown or not on this machine."""
    found = torch.accelerator.current_accelerator()
    count = 0 if found is None else torch.accelerator.device_count()
    here = ["cpu", *(f"{found.type}:{number}" for number in range(count))]
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError, ValueError):
        wanted = None
    known = wanted is not None and (
        wanted.type in ("cpu", "meta") or (count and wanted.type == found.type and (wanted.index or 0) < count)
    )
    if not known:
        raise ValueError(f"The device is {device!r}; this machine has {', '.join(here)}: name one of them.")
    return wanted


def place(model: nn.Module, device_map, device, max_memory=None, offload_folder=None, offload_buffers=None):
    """Put a joined model on the devices of a map. Returns the model."""
    if device_map is None:
        if given := [key for key, value in (("max_memory", max_memory), ("offload_folder", offload_folder)) if value]:
            raise ValueError(f"`{given[0]}` needs a `device_map`: give one, such as 'auto', or leave it out.")
        return model
    if device is not None:
        return model.to(device)
    try:
        from accelerate import dispatch_model, infer_auto_device_map
        from accelerate.utils import get_balanced_memory
    except ImportError as error:
        raise ImportError("`device_map` needs `accelerate`: install it.") from error
    whole = list(model._no_split_modules)
    if isinstance(device_map, str) and device_map in SHARED_MAPS:
        if device_map != "sequential":
            max_memory = get_balanced_memory(
                model, max_memory, no_split_module_classes=whole, low_zero=device_map == "balanced_low_0"
            )
        device_map = infer_auto_device_map(model, max_memory, no_split_module_classes=whole)
    elif isinstance(device_map, str):
        device_map = {"": device_map}
    return dispatch_model(model, device_map, offload_dir=offload_folder, offload_buffers=bool(offload_buffers))


__all__ = ["as_device", "from_adapter", "place", "refuse_changed_weights", "take_adapter"]
