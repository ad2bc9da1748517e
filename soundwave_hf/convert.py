"""Convert a checkpoint in the layout that the Soundwave authors published into one that transformers loads.

    soundwave-hf convert SRC DST

SRC is a folder or a hub name. It holds a `config.json` with model type "Soundwave" and weights in safetensors or
PyTorch files, in shards or in one.
(In version 0.1.0 this file was `soundwave_hf/modeling/convert_published.py`.)
"""

import os
import shutil
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from huggingface_hub import ModelCardData, metadata_load, split_torch_state_dict_into_shards
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, LlamaConfig, WhisperFeatureExtractor
from yaml import YAMLError

from . import __version__
from .atomic import atomic_files, refuse_used
from .json_files import read_json_object
from .modeling.backbones_soundwave import bars_in_terminals
from .modeling.configuration_soundwave import PUBLISHED_MODEL_TYPE, SoundwaveConfig
from .modeling.folders_soundwave import is_hub_name
from .modeling.modeling_soundwave import SoundwaveForConditionalGeneration
from .processing.processing_soundwave import SoundwaveProcessor
from .published_files import (
    LICENCES,
    StoredTensor,
    check_sha256,
    find_published,
    list_weights,
    read_tensors,
    refuse_full_disk,
)
from .secret_values import first_line
from .shards import unfinished_shards, verify_shards, write_shards


PUBLISHED_AUDIO_TOKEN = "<audio_patch>"
SHARD_SIZE = "2GB"  # of a written file; one is in memory at a time. The largest tensor has 1.05 GB
KEPT_OF_CARD = ("license", "license_name", "license_link", "language", "datasets")
DESCRIPTION_BYTES = 50_000_000  # room for the tokenizer, the code and the card

CARD = """---
{header}
---

# Soundwave, converted for transformers

A speech LLM, from "Soundwave: Less is More for Speech-Text Alignment in LLMs" (arXiv 2502.12900). The weights are
those of {source}. `soundwave-hf convert` renamed them and compared each tensor with its source.

- {parameters}M parameters, {dtype}
- Licence: {licence}

```python
from transformers import AutoModelForMultimodalLM, AutoProcessor

model = AutoModelForMultimodalLM.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
inputs = processor.apply_transcription_request("speech.wav")
ids = model.generate(**inputs, max_new_tokens=100)
print(processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0])
```
"""

# Fields of the published config.json without which it cannot be read.
REQUIRED_FIELDS = ("adapter_size", "audio_tower", "audio_patch_token", "hidden_size", "vocab_size")
# Fields of the published config.json that describe the LLM. `LlamaConfig` makes `rope_parameters` of the last two.
LLM_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "use_cache",
    "attention_bias",
    "attention_dropout",
    "mlp_bias",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "rope_theta",
    "rope_scaling",
)

# Prefix of a native name -> prefix of the published name, and which third of a fused `in_proj` it is.
_LAYER = "model.asr_transformer_encoder.layers.0"
_ALIGNMENT = "model.alignment_adapter"
_SHRINKING = "model.shrinking_adapter"
PUBLISHED_NAMES = {
    "lm_head.": ("lm_head.", None),
    "model.language_model.": ("model.", None),
    "model.audio_tower.": ("model.audio_tower.", None),
    "model.ctc_head.": ("model.audio_feature_head.", None),
    f"{_ALIGNMENT}.linear.": ("model.mm_projector1.", None),
    f"{_ALIGNMENT}.norm.": ("model.out_norm.", None),
    f"{_ALIGNMENT}.layers.0.self_attn_layer_norm.": (f"{_LAYER}.norm1.", None),
    # Each frame attends to itself only, so the query and key thirds have no effect and no native name.
    f"{_ALIGNMENT}.layers.0.self_attn.v_proj.": (f"{_LAYER}.self_attn.in_proj_", 2),
    f"{_ALIGNMENT}.layers.0.self_attn.out_proj.": (f"{_LAYER}.self_attn.out_proj.", None),
    f"{_ALIGNMENT}.layers.0.final_layer_norm.": (f"{_LAYER}.norm2.", None),
    f"{_ALIGNMENT}.layers.0.fc1.": (f"{_LAYER}.linear1.", None),
    f"{_ALIGNMENT}.layers.0.fc2.": (f"{_LAYER}.linear2.", None),
    f"{_SHRINKING}.attention.q_proj.": ("model.lbm.encoder_attn.in_proj_", 0),
    f"{_SHRINKING}.attention.k_proj.": ("model.lbm.encoder_attn.in_proj_", 1),
    f"{_SHRINKING}.attention.v_proj.": ("model.lbm.encoder_attn.in_proj_", 2),
    f"{_SHRINKING}.attention.out_proj.": ("model.lbm.encoder_attn.out_proj.", None),
    f"{_SHRINKING}.norm.": ("model.lbm.atten_layer_norm.", None),
}


def published_source(native_name: str) -> tuple[str, int | None]:
    """The published tensor that holds a native parameter, and which third of its rows (None: all of them).

    Example: `model.shrinking_adapter.attention.k_proj.bias` -> (`model.lbm.encoder_attn.in_proj_bias`, 1).
    """
    for native, (published, third) in PUBLISHED_NAMES.items():
        if native_name.startswith(native):
            return published + native_name[len(native) :], third
    raise KeyError(native_name)


def read_published_config(src: Path) -> dict:
    """The fields of a published config.json. Raises: `ValueError` if it belongs to another model."""
    path = src / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"`{src}` has no config.json: give the folder of a published Soundwave checkpoint.")
    published = read_json_object(path)
    model_type = published.get("model_type")
    if model_type == SoundwaveConfig.model_type:
        raise ValueError(
            f'`{src}` has model type "{model_type}": it is a native checkpoint already. Load it with '
            "`AutoModelForMultimodalLM.from_pretrained`."
        )
    missing = [name for name in REQUIRED_FIELDS if name not in published]
    if model_type != PUBLISHED_MODEL_TYPE or missing:
        lacks = f" and lacks {missing}" if missing else ""
        raise ValueError(
            f'`{path}` has model type "{model_type}"{lacks}; a published Soundwave checkpoint has model type '
            f'"{PUBLISHED_MODEL_TYPE}" and the fields {list(REQUIRED_FIELDS)}.'
        )
    if published.get("audio_patch_size", 1) != 1:
        raise ValueError(
            f"`audio_patch_size` is {published['audio_patch_size']} in `{path}`; only 1 is supported: one audio "
            "token for each clip."
        )
    return published


def read_encoder_config(src: Path, audio_tower: str):
    """The Whisper config that `audio_tower` names: a folder relative to the checkpoint, or a hub name.

    A folder is not named in the converted config: the converted weights hold the encoder.

    Raises: `FileNotFoundError` if it is neither a folder nor on the hub.
    """
    folder = src / audio_tower
    try:
        config = AutoConfig.from_pretrained(folder if folder.is_dir() else audio_tower)
    except OSError as error:
        raise FileNotFoundError(
            f"The config of the audio encoder `{audio_tower}` was not found: `{folder}` holds no config.json, and "
            "none could be downloaded from the hub. Save that model's config.json in this folder."
        ) from error
    if folder.is_dir():
        config.name_or_path = ""
    return config


def native_config(published: dict, src: Path) -> SoundwaveConfig:
    """`SoundwaveConfig` of a published checkpoint. Raises: `ValueError` if the encoder's width differs."""
    audio_config = read_encoder_config(src, published["audio_tower"])
    width = getattr(audio_config, "d_model", None)
    if width != published["adapter_size"]:
        raise ValueError(
            f"`adapter_size` is {published['adapter_size']} in `{src / 'config.json'}` and the audio encoder "
            f"`{published['audio_tower']}` has width {width}: they must be equal. Name the encoder that the adapters "
            "were trained with."
        )
    return SoundwaveConfig(
        compat="published",
        audio_config=audio_config,
        text_config=LlamaConfig.from_dict({name: published[name] for name in LLM_FIELDS if name in published}),
        audio_token_id=published["audio_patch_token"],
    )


def plan_tensors(stored: dict[str, StoredTensor], model: torch.nn.Module) -> dict[str, tuple[str, int | None]]:
    """The published tensor of each parameter of a model, and which third of its rows. Only headers are compared.

    Raises: `ValueError` if a tensor is missing, unknown or of the wrong shape.
    """
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    sources = {name: published_source(name) for name in shapes}
    expected = {published for published, _ in sources.values()}
    missing, unexpected = sorted(expected - stored.keys()), sorted(stored.keys() - expected)
    if missing or unexpected:
        raise ValueError(
            f"The checkpoint lacks {len(missing)} of {len(expected)} tensors: {missing[:8]}; {len(unexpected)} of its "
            f"tensors are unknown: {unexpected[:8]}. Its config.json must be the one that it was saved with."
        )
    wrong = []
    for name, (published, third) in sources.items():
        rows, *others = stored[published].shape
        given = (rows, *others) if third is None else (rows / 3, *others)
        if given != shapes[name]:
            wrong.append(f"{published} gives {name} the shape {given}, not {shapes[name]}")
    if wrong:
        raise ValueError(f"{len(wrong)} tensors do not fit config.json: {'; '.join(wrong[:8])}.")
    return sources


def read_native(
    stored: dict[str, StoredTensor], sources: dict[str, tuple[str, int | None]], names: list[str]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters by their native names, read one after another, file by file."""
    by_file = defaultdict(list)
    for name in names:
        by_file[stored[sources[name][0]].path].append(name)
    for path, members in by_file.items():
        tensors = read_tensors(path, [sources[name][0] for name in members])
        for name, (_, value) in zip(members, tensors, strict=True):
            third = sources[name][1]
            # Cloned, because thirds of one tensor share its storage and are saved separately.
            yield name, value if third is None else value.chunk(3)[third].clone()


def common_dtype(stored: dict[str, StoredTensor], published: dict) -> torch.dtype:
    """The dtype of all tensors. Raises: `ValueError` if they differ from each other or from config.json."""
    by_dtype = defaultdict(list)
    for name, tensor in stored.items():
        by_dtype[tensor.dtype].append(name)
    promised = published.get("torch_dtype") or published.get("dtype")
    expected = getattr(torch, str(promised).removeprefix("torch."), None) if promised else None
    found = {str(dtype): f"{len(names)} tensors, such as {names[0]}" for dtype, names in by_dtype.items()}
    if len(by_dtype) > 1 or (promised and expected not in by_dtype):
        said = f"config.json says {promised}" if promised else "all must have one"
        raise ValueError(f"The weights have the dtypes {found} and {said}: download the checkpoint again.")
    return next(iter(by_dtype))


def describe_unused(sources: dict[str, tuple[str, int | None]]) -> list[str]:
    """The parts of published tensors that no parameter uses, such as "query and key rows of NAME"."""
    thirds = defaultdict(set)
    for published, third in sources.values():
        thirds[published].add(third)
    unused = {name: sorted({0, 1, 2} - used) for name, used in thirds.items() if None not in used}
    rows = ("query", "key", "value")
    return [f"{' and '.join(rows[third] for third in left)} rows of {name}" for name, left in unused.items() if left]


def generation_config(published: dict) -> GenerationConfig:
    """Greedy decoding, with the ids of the published config.json that begin, end and pad a row."""
    return GenerationConfig(
        bos_token_id=published.get("bos_token_id"),
        eos_token_id=published.get("eos_token_id"),
        pad_token_id=published.get("llm_pad_token_id", published.get("pad_token_id")),
        suppress_tokens=[published["audio_patch_token"]],  # an answer must not contain an audio token
    )


def read_tokenizer(src: Path, published: dict):
    """The tokenizer of a checkpoint, with the audio token added if it lacks it; None if there is no tokenizer.

    Raises: `ValueError` if the audio token's id differs from that in config.json.
    """
    if not any((src / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")):
        return None
    tokenizer = AutoTokenizer.from_pretrained(src)
    tokenizer.add_tokens([PUBLISHED_AUDIO_TOKEN], special_tokens=True)
    found, expected = tokenizer.convert_tokens_to_ids(PUBLISHED_AUDIO_TOKEN), published["audio_patch_token"]
    if found != expected:
        raise ValueError(
            f"The tokenizer of `{src}` gives `{PUBLISHED_AUDIO_TOKEN}` the id {found} and config.json says {expected}"
            ": use the tokenizer that the checkpoint was trained with."
        )
    if tokenizer.pad_token is None and "llm_pad_token_id" in published:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(published["llm_pad_token_id"])
    return tokenizer


def make_processor(tokenizer, config: SoundwaveConfig):
    """The processor of a converted checkpoint: Whisper's features, over the window of its encoder."""
    window_seconds = config.audio_config.max_source_positions // 50  # encoder frames of 20 ms
    feature_extractor = WhisperFeatureExtractor(
        feature_size=config.audio_config.num_mel_bins, chunk_length=window_seconds
    )
    return SoundwaveProcessor(
        feature_extractor, tokenizer, audio_token=PUBLISHED_AUDIO_TOKEN, require_sampling_rate=True
    )


def describe_model(folder: Path) -> tuple[SoundwaveForConditionalGeneration, SoundwaveProcessor | None, dict]:
    """The model without weights, its processor (None without a tokenizer), and the published config of a folder."""
    published = read_published_config(folder)
    config = native_config(published, folder)
    tokenizer = read_tokenizer(folder, published)
    with torch.device("meta"):
        model = SoundwaveForConditionalGeneration(config)
    model.generation_config = generation_config(published)
    return model, None if tokenizer is None else make_processor(tokenizer, config), published


def write_description(folder: Path, model, processor, source: Path, card: str):
    """All files but the weights: config, code, generation config, processor, card, and the licences of the source."""
    with atomic_files(folder) as part, bars_in_terminals():
        model.save_pretrained(part, state_dict={})
        if processor is not None:
            processor.save_pretrained(part)
        for path in (path for pattern in LICENCES for path in source.glob(pattern)):
            shutil.copy(path, part)
        (part / "README.md").write_text(card, encoding="utf-8")


def write_card(src: Path, name: str, model) -> str:
    """The model card of a converted checkpoint. Licence, languages and data sets are those of the source's card."""
    told = read_card(src / "README.md")
    kept = {key: told[key] for key in KEPT_OF_CARD if key in told}
    base = name if is_hub_name(name) and not Path(name).is_dir() else None
    data = ModelCardData(
        library_name="transformers", pipeline_tag="audio-text-to-text", tags=["soundwave"], base_model=base, **kept
    )
    return CARD.format(
        header=data.to_yaml(),
        source=f"`{base}`" if base else f"the folder `{Path(name).resolve().name}`",
        parameters=f"{model.num_parameters() / 1e6:,.1f}",
        dtype=str(model.dtype).removeprefix("torch."),
        licence=kept.get("license_name") or kept.get("license") or "the source's card names none",
    )


def read_card(path: Path) -> dict:
    """The metadata of a model card, empty if there is none. Raises: `ValueError` if they are broken."""
    try:
        return (metadata_load(path) if path.is_file() else None) or {}
    except YAMLError as error:
        raise ValueError(f"The metadata of `{path}` cannot be read ({first_line(error)}): correct them.") from error


def fingerprint(files: list[Path], published: dict, max_shard_size: int | str) -> dict:
    """What the shards are made of. If it differs, a conversion that was stopped cannot continue."""
    return {
        "files": [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files],
        "config": published,
        "max_shard_size": max_shard_size,
        "version": __version__,
    }


def convert_published(src: str, dst: str, revision: str | None = None, max_shard_size: int | str = SHARD_SIZE):
    """Write a native checkpoint `dst` of a published one: config, code, weights, generation config, processor, card.

    At most one shard is in memory. If it is stopped, the same call continues after the last finished shard. At the
    end each tensor is read again and compared with its source.

    Args:
        src: folder, or hub name such as `FreedomIntelligence/Soundwave`.
        revision: branch, tag or commit of a hub repository.
        max_shard_size: of a written file, in bytes or as "2GB". A larger tensor has a file of its own.

    Raises: `FileNotFoundError` if a file of `src` is missing, `FileExistsError` if `dst` holds something,
    `ValueError` if `src` is not a published checkpoint, or its tensors, dtypes, checksums or widths do not fit;
    `OSError` if the disk is too small, or another process is writing `dst`.
    """
    dst = Path(dst).resolve()
    refuse_used(dst)
    folder = find_published(os.fspath(src), dst, revision)
    model, processor, published = describe_model(folder)
    stored = list_weights(folder)
    sources = plan_tensors(stored, model)
    model = model.to(common_dtype(stored, published))
    split = split_torch_state_dict_into_shards(model.state_dict(), max_shard_size=max_shard_size)
    files = sorted({tensor.path for tensor in stored.values()})
    read = partial(read_native, stored, sources)
    with unfinished_shards(dst, fingerprint(files, published, max_shard_size)) as shards:
        refuse_full_disk({dst: split.metadata["total_size"] - shards.num_bytes() + DESCRIPTION_BYTES})
        checked = check_sha256(files)
        write_description(shards.folder, model, processor, folder, write_card(folder, os.fspath(src), model))
        write_shards(shards, split, read, model.num_parameters())
        verify_shards(shards, split, read)
    if processor is None:
        print(f"`{src}` holds no tokenizer: only the model is written.")
    report(stored, files, checked, sources)
    print(
        f"Wrote `{dst}`: {model.num_parameters() / 1e6:.1f}M parameters, {model.dtype}. It was read again and equals "
        "the source."
    )


def report(stored: dict[str, StoredTensor], files: list[Path], checked: int, sources: dict):
    """Print what was read, how many files the hub's checksums cover, and what was not used."""
    total = sum(tensor.num_bytes for tensor in stored.values())
    print(
        f"Read {len(stored)} tensors ({total / 1e9:.3f} GB) of {len(files)} files; the hub's sha256 is known for "
        f"{checked} of them, and equal."
    )
    for unused in describe_unused(sources):
        print(f"Not used: the {unused}. Each frame attends to itself alone, so they have no effect.")


__all__ = ["convert_published"]
