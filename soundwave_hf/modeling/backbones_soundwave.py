"""Read backbones and trained adapters from their files: encoder, LLM, embedding table, audio token, adapters, LoRA."""

import copy
import difflib
import json
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.whisper.modeling_whisper import WhisperDecoder, WhisperEncoder, WhisperPreTrainedModel
from transformers.quantizers.auto import AutoQuantizationConfig
from transformers.utils import GENERATION_CONFIG_NAME, cached_file
from transformers.utils.logging import set_tqdm_hook

from .configuration_soundwave import SoundwaveConfig
from .encoder_lora_soundwave import merge_encoder_lora
from .folders_soundwave import (
    LORA_FILES,
    LORA_WEIGHTS,
    TRAINED_FILE,
    adapter_kind,
    describe_folder,
    has_whole_weights,
    is_soundwave,
    refuse_other_backbones,
    shards_of,
)
from .trained_fields_soundwave import OWN_WAYS, checked_by_caller, differing_fields, trained_fields


AUDIO_TOKEN = "<|audio|>"
# Fields that determine which weights exist or what they mean.
FIXED_BY_WEIGHTS = (
    "compat",
    "stack_factor",
    "alignment_layers",
    "alignment_attention",
    "tie_ctc_head",
    "adapter_heads",
    "ctc_text",
    "audio_token_id",
    "tie_word_embeddings",
)


class WhisperEncoderAlone(WhisperPreTrainedModel):
    """The encoder of a Whisper checkpoint. Its decoder is not read."""

    _keys_to_ignore_on_load_unexpected = [r"\bdecoder\.", r"\bproj_out\."]

    def __init__(self, config):
        super().__init__(config)
        self.encoder = WhisperEncoder(config)
        self.post_init()


class WhisperDecoderAlone(WhisperPreTrainedModel):
    """The decoder of a Whisper checkpoint. Its encoder is not read."""

    _keys_to_ignore_on_load_unexpected = [r"\bencoder\.", r"\bproj_out\."]

    def __init__(self, config):
        super().__init__(config)
        self.decoder = WhisperDecoder(config)
        self.post_init()


def read_encoder(encoder: str, dtype=None) -> nn.Module:
    """The encoder of a Whisper, by hub name or folder, in `dtype` (by default its own).

    Raises: `ValueError` if a weight of the encoder is missing; the errors of `reading_weights`.
    """
    with reading_weights(encoder):
        whisper, report = WhisperEncoderAlone.from_pretrained(encoder, dtype=dtype, output_loading_info=True)
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"`{encoder}` lacks {len(missing)} weights of a Whisper encoder: {missing[:8]}. Name a Whisper model, or "
            "download this one again."
        )
    return whisper.encoder


def read_language_model(llm: str, dtype=None, quantization_config=None, device=None) -> nn.Module:
    """A causal LM, by hub name or folder, in `dtype` (by default its own), on `device` (by default the library's).

    Raises: `ValueError` if a weight is missing, which transformers would fill with random values; the errors of
    `reading_weights`.
    """
    placed = {} if device is None else {"device_map": {"": device}}
    with reading_weights(llm):
        language, report = AutoModelForCausalLM.from_pretrained(
            llm, dtype=dtype, quantization_config=quantization_config, output_loading_info=True, **placed
        )
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"`{llm}` lacks {len(missing)} weights of {type(language).__name__}: {missing[:8]}. Name a causal LM with "
            "its head, or download this one again."
        )
    return language


def read_decoder(encoder: str) -> nn.Module | None:
    """The decoder of a Whisper, by hub name or folder; None if the checkpoint has only the encoder."""
    with reading_weights(encoder):
        whisper, report = WhisperDecoderAlone.from_pretrained(encoder, output_loading_info=True)
    return None if report["missing_keys"] else whisper.decoder


def settable_fields() -> set[str]:
    """`SoundwaveConfig` fields that callers of `from_backbones` may set. The backbones determine the others."""
    fixed = {"audio_config", "text_config", "audio_token_id", "tie_word_embeddings", "encoder_lora"}
    return SoundwaveConfig.own_fields() - fixed


def refuse_unsettable(fields: dict):
    """Raises: `ValueError` if a keyword of `from_backbones` is not one of `settable_fields`."""
    known = settable_fields()
    for name in fields.keys() - known:
        others = {*known, "dtype", "adapter", "allow_other_backbones", "audio_token", "warm_start"} - {name}
        if near := difflib.get_close_matches(name, others, n=1):
            hint = f"Did you mean `{near[0]}`?"
        else:
            hint = (
                f"It accepts `dtype` and the fields {sorted(known)}. For other options (`device_map`), save the "
                "joined model and load it with `from_pretrained`, or use `set_attn_implementation`."
            )
        raise ValueError(f"`from_backbones` got an unknown argument `{name}`. {hint}")


WEIGHT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A dtype, given as in `from_pretrained`. None, for None or "auto", means that backbones keep their own.

    Raises: `ValueError` if it is not one of `WEIGHT_DTYPES`.
    """
    if dtype is None or dtype == "auto":
        return None
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if isinstance(found, torch.dtype) and found in WEIGHT_DTYPES:
        return found
    raise ValueError(
        f'`dtype` is {dtype!r}; expected a floating point `torch.dtype`, its name such as "bfloat16", or "auto" for '
        "the backbones' own. Weights of 8 bits or fewer need a `quantization_config`."
    )


def audio_token_place(llm: str, audio_token: str, num_rows: int) -> tuple[int, int]:
    """Id of the audio token in an LLM's vocabulary, and the number of rows that the embedding table needs.

    Args:
        llm (`str`): hub name or folder.
        num_rows (`int`): rows of the LLM's embedding table, which may have spare ones.
    """
    tokenizer = AutoTokenizer.from_pretrained(llm)
    known = tokenizer.get_vocab()
    audio_token_id = known.get(audio_token, len(tokenizer))
    return audio_token_id, max(num_rows, audio_token_id + 1)


@torch.no_grad()
def add_audio_token(language, audio_token_id: int, vocabulary: int) -> nn.Module:
    """Resize an LLM's embeddings to `vocabulary` rows. The audio token's row is the mean of the rows before it.

    Returns: the input embeddings.
    """
    if vocabulary > language.get_input_embeddings().weight.shape[0]:
        language.resize_token_embeddings(vocabulary, mean_resizing=False)
    for table in (language.get_input_embeddings(), language.get_output_embeddings()):
        table.weight[audio_token_id] = table.weight[:audio_token_id].float().mean(dim=0)
    return language.get_input_embeddings()


# Config fields by which causal LMs of transformers change their scores after the head, or the states right before it,
# and the value that has no effect. Softcaps: Gemma, VaultGemma, NanoChat, RecurrentGemma, xLSTM. Factors and
# divisors: Granite, MiniCPM3, Cohere, Falcon-H1, Muse, Inkling.
UNCHANGED_SCORES = {
    "final_logit_softcapping": None,
    "logits_soft_cap": None,
    "output_logit_soft_cap": None,
    "softcap": None,
    "logits_scaling": 1,
    "logits_mup_width_multiplier": 1,
    "logit_scale": 1,
    "lm_head_multiplier": 1,
    "output_multiplier": 1,
    "unpadded_vocab_size": None,
}


def refuse_other_heads(language, llm: str):
    """Check by config and parameters that an LLM's scores are its states times its head's rows, as in Soundwave.

    Raises: `ValueError` if the config changes the scores (`UNCHANGED_SCORES`), the head has a bias, or the LLM has
    parameters outside of its base model and its head.
    """
    head, config = language.get_output_embeddings(), language.config
    found = [
        f"`{name}` is {value}"
        for name, unchanged in UNCHANGED_SCORES.items()
        if (value := getattr(config, name, None)) not in (None, False, unchanged)
    ]
    if getattr(head, "bias", None) is not None:
        found.append("its head has a bias")
    known = {id(parameter) for part in (language.base_model, head) for parameter in part.parameters()}
    found += [f"it has `{name}`" for name, parameter in language.named_parameters() if id(parameter) not in known]
    if found:
        raise ValueError(
            f"`{llm}` ({type(language).__name__}) caps, scales or shifts its scores after its head ({found[0]}), "
            "which Soundwave cannot do: choose another LLM, such as a Llama, Qwen, Mistral or SmolLM."
        )


def read_input_embeddings(llm: str) -> torch.Tensor:
    """The token embeddings `(vocabulary, width)` of a causal LM. Only they are read from its safetensors files.

    Raises: `ValueError` if the files do not hold them.
    """
    config = AutoConfig.from_pretrained(llm)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    table = skeleton.get_input_embeddings().weight
    name = next(name for name, parameter in skeleton.named_parameters() if parameter is table)
    index = cached_file(llm, "model.safetensors.index.json", _raise_exceptions_for_missing_entries=False)
    shard = "model.safetensors"
    if index is not None:
        shard = shards_of(index).get(name, "")
    path = cached_file(llm, shard, _raise_exceptions_for_missing_entries=False) if shard else None
    if path is not None:
        with safe_open(path, "pt") as weights:
            if name in weights.keys():  # noqa: SIM118 (the file is not a container)
                return weights.get_tensor(name)
    raise ValueError(
        f"`{llm}` has no safetensors file with `{name}`: save the LLM again with `save_pretrained` and name that "
        "folder."
    )


def adapter_fields(adapter: str, encoder: str, llm: str, allow_other_backbones: bool = False) -> dict:
    """The `SoundwaveConfig` fields that trained adapters need. The backbones are checked first.

    Args:
        allow_other_backbones (`bool`): whether to accept other backbones of the same widths.

    Raises: `ValueError` if widths differ, the adapters were trained on other backbones (see
    `refuse_other_backbones`), or the LLM has fewer tokens than when they were saved; `FileNotFoundError` if the folder
    lacks a file.
    """
    check_adapter_files(adapter)
    config = SoundwaveConfig.from_pretrained(adapter)
    audio_config, text_config = (AutoConfig.from_pretrained(name) for name in (encoder, llm))
    expected = (config.audio_config.d_model, config.text_config.hidden_size)
    found = (getattr(audio_config, "d_model", None), getattr(text_config, "hidden_size", None))
    if found != expected:
        raise ValueError(
            f"The adapters in `{adapter}` join an encoder of width {expected[0]} to an LLM of width {expected[1]}, "
            f"and `{encoder}` has width {found[0]}, `{llm}` {found[1]}. Name the backbones they were trained with."
        )
    if not allow_other_backbones:
        refuse_other_backbones(adapter, encoder, llm)
        _refuse_fewer_tokens(adapter, config, llm, text_config)
    return {name: getattr(config, name) for name in sorted(settable_fields())}


def _refuse_fewer_tokens(adapter: str, config: SoundwaveConfig, llm: str, text_config):
    """Raises: `ValueError` if the LLM's embeddings had more rows when the adapters were saved: these are nowhere."""
    expected, found = config.text_config.vocab_size, max(text_config.vocab_size, config.audio_token_id + 1)
    if found < expected:
        raise ValueError(
            f"The adapters in `{adapter}` were saved with an LLM of {expected} tokens, and `{llm}` has {found}, with "
            "the audio token: embeddings that were added are not saved with adapters. Merge the LoRA before you "
            "resize, and save the whole model, or give `llm=`, a folder of the LLM with this size."
        )


def check_adapter_files(adapter: str):
    """Raises: `FileNotFoundError` if a folder of adapters lacks a file, `ValueError` if it holds no adapters."""
    if adapter_kind(adapter) is not None:
        return
    present = {name for name in ("config.json", TRAINED_FILE, *LORA_FILES) if os.path.isfile(f"{adapter}/{name}")}
    if "config.json" not in present:
        raise FileNotFoundError(
            f"`{adapter}` has no config.json: give a folder that `soundwave-hf train` wrote. "
            f"{describe_folder(adapter)}"
        )
    if has_whole_weights(adapter) or not is_soundwave(adapter):
        raise ValueError(f"Trained adapters were expected. {describe_folder(adapter)}")
    lacks = " and ".join(sorted({*LORA_FILES} - present))
    raise FileNotFoundError(
        f"`{adapter}` has no {lacks}, and no {TRAINED_FILE} of stage `align` either: give a folder in which "
        "`soundwave-hf train` finished, or copy all of its files."
    )


def refuse_other_fields(given: dict, trained: dict, folder: str):
    """Refuse fields that do not fit the weights of trained adapters or of a whole model.

    Args:
        given (`dict`): `SoundwaveConfig` fields that a caller sets.
        trained (`dict`): fields of the adapters, see `adapter_fields`, or of the whole model.

    Raises: `ValueError` if one of `FIXED_BY_WEIGHTS` differs.
    """
    for name in FIXED_BY_WEIGHTS:
        if name in given and name in trained and given[name] != trained[name]:
            raise ValueError(
                f"`{name}` is set to {given[name]!r}, and `{folder}` was trained with {trained[name]!r}: leave it "
                "out, or name another folder."
            )


def load_adapter(model, adapter: str, changed: Collection[str] = ()):
    """Load trained adapters into a joined model. Their LoRA, if any, is merged into its LLM and encoder.

    Args: changed: see `load_lora`.
    """
    stage_one = os.path.join(adapter, TRAINED_FILE)
    if os.path.isfile(stage_one):
        merge_encoder_lora(model, adapter)
        load_trained(model, stage_one)
        take_generation_config(model, adapter)
        return model
    return load_lora(model, adapter, changed=changed).merge_and_unload()


def take_generation_config(model, adapter: str):
    """Update the model's generation config with the one in the adapters' folder (for example `ctc_weight`)."""
    path = os.path.join(adapter, GENERATION_CONFIG_NAME)
    if not os.path.isfile(path):
        return
    with open(path, encoding="utf-8") as file:
        values = json.load(file)
    for name, value in values.items():
        if not name.startswith("_") and name != "transformers_version":
            setattr(model.generation_config, name, value)


def refuse_other_training(config: SoundwaveConfig, adapter: str, changed: Collection[str] = ()):
    """Raises: `ValueError` if adapters were trained with other fields than those of a model's config.

    Args: changed: fields that differ on purpose.
    """
    expected = trained_fields(SoundwaveConfig.from_pretrained(adapter))
    found = {name: value for name, value in trained_fields(config).items() if name not in changed}
    if differing := differing_fields(found, expected):
        raise ValueError(
            f"The adapters in `{adapter}` were trained with another config: the model's {differing}. {OWN_WAYS} Or "
            "build the model with `from_backbones(encoder, llm, **adapter_fields(adapter, encoder, llm))`."
        )


def load_lora(model, adapter: str, is_trainable: bool = False, changed: Collection[str] = ()):
    """Add the LoRA and the adapters of a PEFT folder to a joined model. Returns the `PeftModel`.

    A LoRA of the encoder, which only Stage I trains, is merged into the encoder.

    Args: changed: config fields in which the model differs from the adapters on purpose.

    Raises: `ValueError` if the folder lacks a weight of the LoRA or of an adapter, or the adapters were trained with
    other fields than those of the model's config.

    Example: continue training from a folder (of the Hub: `adapter = huggingface_hub.snapshot_download(name)`).

    ```python
    >>> from soundwave_hf import SoundwaveForConditionalGeneration
    >>> from soundwave_hf.modeling.backbones_soundwave import adapter_fields, load_lora
    >>> from soundwave_hf.training.stages import STAGES, check_trainable, freeze_all_but

    >>> fields = adapter_fields(adapter, encoder, llm)
    >>> model = SoundwaveForConditionalGeneration.from_backbones(encoder, llm, **fields)
    >>> model = load_lora(model, adapter, is_trainable=True)
    >>> freeze_all_but(model, STAGES["instruct"])  # only the LoRA trains

    >>> check_trainable(model, STAGES["instruct"])
    ```
    """
    try:
        from peft import PeftModel, get_peft_model_state_dict
    except ImportError as error:
        raise ImportError(f"`{adapter}` holds LoRA weights: install `peft` to load them.") from error
    path = os.path.join(adapter, LORA_WEIGHTS)
    with reading_weights(adapter), safe_open(path, "pt") as weights:
        found = set(weights.keys())
    _refuse_missing({f"base_model.model.{name}" for name in _adapter_names(model)} - found, path)
    merge_encoder_lora(model, adapter)
    refuse_other_training(model.config, adapter, changed)
    if model.config.tie_ctc_head and any("language_model" in name and "lora_embedding" in name for name in found):
        raise ValueError(
            f"`{path}` holds a LoRA of the LLM's embeddings, which the tied CTC head reads without it: merging it "
            "would change labels and positions. Train without the embeddings in `target_modules`."
        )
    with checked_by_caller():
        loaded = PeftModel.from_pretrained(model, adapter, is_trainable=is_trainable)
        _refuse_missing(get_peft_model_state_dict(loaded, save_embedding_layers=False).keys() - found, path)
    for module in loaded.modules():
        # PEFT copies the adapters with their config. They must read the model's own, where fields may be set later.
        if isinstance(getattr(module, "config", None), SoundwaveConfig):
            module.config = model.config
    take_generation_config(model, adapter)
    return loaded


def load_adapter_weights(model, adapter: str):
    """Load the alignment adapter, the CTC head and the encoder's LoRA, if any, from a folder of any stage into a model
    without an LLM.

    Raises: `ValueError` if a weight is missing, or the folder changes the encoder, or the embeddings of the head.
    """
    merge_encoder_lora(model, adapter)
    if adapter_kind(adapter) == "align":
        load_trained(model, os.path.join(adapter, TRAINED_FILE))
        return
    path = os.path.join(adapter, LORA_WEIGHTS)
    with reading_weights(adapter):
        found = load_file(path)
    if embedded := [name for name in found if "lora_embedding" in name or "embed_tokens" in name]:
        raise ValueError(
            f"`{path}` changes the LLM's embeddings ({embedded[0]}), which the CTC head uses. With a head of "
            "its own (`tie_ctc_head=False`), `SoundwaveForConditionalGeneration.from_pretrained` loads it."
        )
    if of_encoder := [name for name in found if ".audio_tower." in name]:
        raise ValueError(
            f"`{path}` changes the encoder too ({of_encoder[0]}), which `SoundwaveForCTC` cannot load: use "
            "`SoundwaveForConditionalGeneration.from_pretrained`."
        )
    expected = _adapter_names(model, ("alignment_adapter", "ctc_head"))
    weights = {name: found[stored] for name in expected if (stored := f"base_model.model.model.{name}") in found}
    _refuse_missing(expected - weights.keys(), path)
    model.load_state_dict(weights, strict=False)


def load_trained(model, path: str):
    """Load the parameters that Stage I trained. Those outside its adapter and head are noted as `trained_besides`, for
    the trainers.

    Raises: `ValueError` if one is missing, or does not exist in the model.
    """
    with reading_weights(os.path.dirname(path)):
        weights = load_file(path)
    audio_model = model if hasattr(model, "alignment_adapter") else model.base_model
    expected = _adapter_names(audio_model, ("alignment_adapter", "ctc_head"))
    unexpected = sorted(weights.keys() - audio_model.state_dict().keys())
    if unexpected:
        raise ValueError(
            f"`{path}` holds weights that the model does not have: {unexpected}. Use the config.json saved with it."
        )
    _refuse_missing(expected - weights.keys(), path)
    audio_model.load_state_dict(weights, strict=False)
    audio_model.trained_besides = sorted(weights.keys() - expected)


def _adapter_names(model, parts=("alignment_adapter", "ctc_head", "shrinking_adapter")) -> set[str]:
    return {name for name, _ in model.named_parameters() if set(parts) & set(name.split("."))}


def _refuse_missing(missing: set[str], path: str):
    if missing:
        raise ValueError(
            f"`{path}` lacks {len(missing)} weights that belong to the adapters or their LoRA: {sorted(missing)[:8]}. "
            "Copy the file again from the run that wrote it, or name another folder."
        )


@contextmanager
def bars_in_terminals() -> Iterator[None]:
    """A context in which the library draws progress bars only in a terminal, not in a log."""
    before = set_tqdm_hook(lambda make, args, options: make(*args, **{"disable": None, **options}))
    try:
        yield
    finally:
        set_tqdm_hook(before)


@contextmanager
def reading_weights(folder: str) -> Iterator[None]:
    """A context for reading the weights of a local checkpoint. (For a hub name, the library checks the files.)

    Raises: `FileNotFoundError` that names a missing shard, `ValueError` that names a truncated file; `OSError` that
        names the current folder, if there is no such folder and the hub does not give the files.
    """
    index = os.path.join(folder, "model.safetensors.index.json")
    if os.path.isfile(index) and not os.path.isfile(os.path.join(folder, "model.safetensors")):
        read_shards(index)
    try:
        with bars_in_terminals():
            yield
    except SafetensorError as error:
        raise ValueError(f"{_broken_file(folder)} cannot be read ({error}): download or copy it again.") from error
    except OSError as error:
        if os.path.isdir(folder):
            raise
        raise OSError(
            f"`{folder.rstrip(os.sep)}` is no folder here (current folder: {os.getcwd()}), and its files did not come "
            f"from the hub. {error}"
        ) from error


def _broken_file(folder: str) -> str:
    for name in sorted(os.listdir(folder) if os.path.isdir(folder) else ()):
        if name.endswith(".safetensors"):
            path = os.path.join(folder, name)
            try:
                safe_open(path, "pt")
            except SafetensorError:
                return f"`{path}`"
    return f"A safetensors file of `{folder}`"


def read_shards(index: str | os.PathLike) -> list[str]:
    """Paths of the shards in an index. Raises: `FileNotFoundError` if one is missing."""
    folder, name = os.path.split(index)
    shards = sorted(set(shards_of(index).values()))
    missing = [shard for shard in shards if not os.path.isfile(os.path.join(folder, shard))]
    if missing:
        raise FileNotFoundError(
            f"`{folder}` lacks {len(missing)} of the {len(shards)} shards that {name} names: {missing}. "
            "Download them into that folder."
        )
    return [os.path.join(folder, shard) for shard in shards]


_NOT_LLM = ("audio_tower", "alignment_adapter", "ctc_head", "shrinking_adapter")
# Quantizers compare name prefixes; these fit models with and without a head.
HIGH_PRECISION_PARTS = (*_NOT_LLM, *(f"model.{name}" for name in _NOT_LLM), "lm_head")


def quantize_llm_alone(quantization_config):
    """A quantizer's config, also from a dict. By default it leaves out encoder, adapters and heads."""
    if isinstance(quantization_config, dict):
        config = AutoQuantizationConfig.from_dict(quantization_config)
    else:
        config = copy.deepcopy(quantization_config)
    for name in ("llm_int8_skip_modules", "modules_to_not_convert"):  # the field of bitsandbytes, and that of others
        if getattr(config, name, ()) is None:
            setattr(config, name, list(HIGH_PRECISION_PARTS))
    return config


def take_quantizer(model: nn.Module, language: nn.Module):
    """Copy to a joined model the attributes of its quantized LLM that transformers, PEFT and trainers read."""
    for name in ("hf_quantizer", "is_quantized", "quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit"):
        if hasattr(language, name):
            setattr(model, name, getattr(language, name))
    model.config.quantization_config = model.config.text_config.quantization_config
    del model.config.text_config.quantization_config


__all__ = [
    "add_audio_token",
    "HIGH_PRECISION_PARTS",
    "quantize_llm_alone",
    "take_quantizer",
    "AUDIO_TOKEN",
    "FIXED_BY_WEIGHTS",
    "LORA_FILES",
    "TRAINED_FILE",
    "adapter_fields",
    "as_dtype",
    "audio_token_place",
    "check_adapter_files",
    "load_adapter",
    "load_adapter_weights",
    "load_lora",
    "load_trained",
    "read_decoder",
    "read_encoder",
    "read_input_embeddings",
    "read_language_model",
    "read_shards",
    "reading_weights",
    "refuse_other_fields",
    "refuse_other_heads",
    "refuse_unsettable",
    "settable_fields",
]
