"""Convert a checkpoint in the layout that the Soundwave authors published into one that transformers loads.

    soundwave-hf convert SRC DST

SRC holds a `config.json` with model type "Soundwave" and weights in safetensors or PyTorch files, in shards or in one.
(In version 0.1.0 this file was `soundwave_hf/modeling/convert_published.py`.)
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, LlamaConfig, WhisperFeatureExtractor

from .atomic import atomic_folder, refuse_used
from .modeling.backbones_soundwave import read_shards
from .modeling.configuration_soundwave import PUBLISHED_MODEL_TYPE, SoundwaveConfig
from .modeling.modeling_soundwave import SoundwaveForConditionalGeneration


PUBLISHED_AUDIO_TOKEN = "<audio_patch>"

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
    published = json.loads(path.read_text(encoding="utf-8"))
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

    Raises: `FileNotFoundError` if it is neither a folder nor on the hub.
    """
    folder = src / audio_tower
    try:
        return AutoConfig.from_pretrained(folder if folder.is_dir() else audio_tower)
    except OSError as error:
        raise FileNotFoundError(
            f"The config of the audio encoder `{audio_tower}` was not found: `{folder}` holds no config.json, and "
            "none could be downloaded from the hub. Save that model's config.json in this folder."
        ) from error


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


def weight_files(src: Path) -> list[Path]:
    """The files that hold the weights. Raises: `FileNotFoundError` if there is none, or a shard is missing."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = src / f"{name}.index.json"
        if index.is_file():
            return [Path(shard) for shard in read_shards(index)]
        if (src / name).is_file():
            return [src / name]
    raise FileNotFoundError(
        f"`{src}` has no weights: model.safetensors or pytorch_model.bin was expected, or shards with an index."
    )


def read_weights(src: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, by their published names; mapped from disk, not copied."""
    weights = {}
    for path in weight_files(src):
        try:
            if path.suffix == ".safetensors":
                weights.update(load_file(path))
            else:
                weights.update(torch.load(path, map_location="cpu", mmap=True, weights_only=True))
        except (SafetensorError, RuntimeError, EOFError) as error:
            raise ValueError(f"`{path}` cannot be read ({error}): download it again.") from error
    return weights


def native_weights(weights: dict[str, torch.Tensor], model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Published tensors under the names of a model's parameters.

    Raises: `ValueError` if a tensor is missing, unknown or of the wrong shape.
    """
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    sources = {name: published_source(name) for name in shapes}
    expected = {published for published, _ in sources.values()}
    missing, unexpected = sorted(expected - weights.keys()), sorted(weights.keys() - expected)
    if missing or unexpected:
        raise ValueError(
            f"The checkpoint lacks {len(missing)} of {len(expected)} tensors: {missing[:8]}; {len(unexpected)} of its "
            f"tensors are unknown: {unexpected[:8]}. Its config.json must be the one that it was saved with."
        )
    native, wrong = {}, []
    for name, (published, third) in sources.items():
        # Cloned, because thirds of one tensor share its storage and are saved separately.
        value = weights[published] if third is None else weights[published].chunk(3)[third].clone()
        native[name] = value
        if value.shape != shapes[name]:
            wrong.append(f"{published} gives {name} the shape {tuple(value.shape)}, not {tuple(shapes[name])}")
    if wrong:
        raise ValueError(f"{len(wrong)} tensors do not fit config.json: {'; '.join(wrong[:8])}.")
    return native


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
    from .processing.processing_soundwave import SoundwaveProcessor

    window_seconds = config.audio_config.max_source_positions // 50  # encoder frames of 20 ms
    feature_extractor = WhisperFeatureExtractor(
        feature_size=config.audio_config.num_mel_bins, chunk_length=window_seconds
    )
    return SoundwaveProcessor(
        feature_extractor, tokenizer, audio_token=PUBLISHED_AUDIO_TOKEN, require_sampling_rate=True
    )


def convert_published(src: str, dst: str):
    """Write a native checkpoint `dst` of a published one `src`: config, weights, generation config, processor.

    Raises: `FileNotFoundError` if a file of `src` is missing, `FileExistsError` if `dst` holds something,
    `ValueError` if `src` is not a published checkpoint, or its tensors or widths do not fit its config.
    """
    src, dst = Path(src), Path(dst).resolve()
    refuse_used(dst)
    published = read_published_config(src)
    config = native_config(published, src)
    tokenizer = read_tokenizer(src, published)
    with torch.device("meta"):
        model = SoundwaveForConditionalGeneration(config)
    model.load_state_dict(native_weights(read_weights(src), model), assign=True)
    model.generation_config = generation_config(published)
    parts = [model]
    if tokenizer is None:
        print(f"`{src}` holds no tokenizer: only the model is written.")
    else:
        parts.append(make_processor(tokenizer, config))
    with atomic_folder(dst) as folder:
        for part in parts:
            part.save_pretrained(folder)
    print(f"Wrote `{dst}`: {sum(value.numel() for value in model.parameters()) / 1e6:.1f}M parameters, {model.dtype}.")


__all__ = ["convert_published"]
