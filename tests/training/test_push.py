"""`push_to_hub` of a recipe, to a hub that answers, one that does not, and one that refuses."""

import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from soundwave_hf import SoundwaveForCTC, cli
from soundwave_hf.training import push
from soundwave_hf.training.arguments import SoundwaveTrainingArguments
from soundwave_hf.training.run_card import RunCard, last_measured
from tests.local_hub import Fault, local_hub
from tests.training.workspace import train


TOKEN = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789"
ROOT = Path(__file__).parents[2]


class Refusing(BaseHTTPRequestHandler):
    """A hub that knows nobody."""

    def answer(self):
        self.send_response(401)
        self.send_header("X-Error-Message", "Invalid username or password.")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST = answer

    def log_message(self, *words):
        pass


class Hub:
    """Stands in for the hub's client: keeps what is uploaded, or fails in the calls named."""

    endpoint = "https://hub.example"

    def __init__(self, fails=(), **options):
        self.fails, self.uploads, self.there = fails, [], set()

    def create_repo(self, name, private=None, exist_ok=False):
        if "create" in self.fails:
            raise ConnectionError("Connection refused")
        return type("Url", (), {"repo_id": f"me/{name.split('/')[-1]}"})

    def file_exists(self, repo_id, filename, revision=None):
        return filename in self.there

    def upload_folder(self, repo_id, folder_path, ignore_patterns, run_as_future, path_in_repo=None, **options):
        from concurrent.futures import Future

        from huggingface_hub.utils import filter_repo_objects

        names = [str(p.relative_to(folder_path)) for p in Path(folder_path).rglob("*") if p.is_file()]
        kept = set(filter_repo_objects(names, ignore_patterns=ignore_patterns))
        self.uploads.append((repo_id, Path(folder_path).name, path_in_repo, kept))
        future = Future()
        if "upload" in self.fails and run_as_future:
            future.set_exception(ConnectionError("Connection reset"))
        else:
            future.set_result(None)
        return future


@pytest.fixture
def hub(monkeypatch):
    """Makes the hub of a run."""

    def make(*fails):
        made = Hub(fails)
        monkeypatch.setattr(push, "HfApi", lambda **options: made)
        return made

    return make


def pushed(workspace, folder: Path, **changes) -> dict:
    return workspace.recipe("align", folder, **{"max_steps": 2, "save_steps": 1, "push_to_hub": True, **changes})


def test_a_run_is_pushed_at_each_save_and_at_its_end(workspace, hub, tmp_path, capsys):
    found = hub()
    train(pushed(workspace, tmp_path / "mine", license="mit"))
    assert [(repo, folder, place) for repo, folder, place, _ in found.uploads] == [
        ("me/mine", "checkpoint-1", None),
        ("me/mine", "checkpoint-2", None),
        ("me/mine", "mine", None),
    ]
    for _, _, _, files in found.uploads:
        assert {"README.md", "config.json", "recipe.yaml", "trained.safetensors"} <= files
        assert not [name for name in files if name.startswith(("optimizer", "rng", "checkpoint", "training_args"))]
    assert "Pushed to https://hub.example/me/mine." in capsys.readouterr().out
    card = ModelCard.load(tmp_path / "mine" / "README.md")
    assert (card.data.library_name, card.data.license) == ("transformers", "mit")


@pytest.mark.parametrize(
    ("strategy", "places"),
    [("end", [None]), ("checkpoint", [None, "last-checkpoint", None, "last-checkpoint", None])]
    + [("all_checkpoints", [None, "checkpoint-1", None, "checkpoint-2", None])],
)
def test_the_strategy_says_what_is_pushed_when(workspace, hub, tmp_path, strategy, places):
    found = hub()
    train(pushed(workspace, tmp_path / "mine", hub_strategy=strategy, hub_model_id="org/x"))
    assert [place for _, _, place, _ in found.uploads] == places
    for _, _, place, files in found.uploads:
        assert ("optimizer.pt" in files) == (place is not None)


def test_a_hub_that_fails_while_a_run_trains_does_not_end_it(workspace, hub, tmp_path, caplog):
    found = hub("upload")
    trained = train(pushed(workspace, tmp_path / "mine"))
    assert trained.trainer.state.global_step == 2
    assert found.uploads[-1][1] == "mine"
    assert "`mine` could not be pushed to the hub (Connection reset): the run goes on." in caplog.text


def test_adapters_are_not_pushed_onto_a_whole_model(workspace, hub, tmp_path):
    made = hub()
    made.there = {"model.safetensors"}
    with pytest.raises(ConnectionError, match="`me/mine` holds model.safetensors, and adapters would be saved beside"):
        train(pushed(workspace, tmp_path / "mine", max_steps=1))
    assert made.uploads == []


def test_what_was_not_pushed_is_pushed_by_the_same_command_without_training(workspace, hub, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(pushed(workspace, tmp_path / "mine")))
    hub("create")
    assert cli.main(["train", str(path)]) == 2
    printed = capsys.readouterr().err
    assert f"weights are safe in `{tmp_path / 'mine'}`, but `mine` could not be pushed to the hub: Conn" in printed
    before = (tmp_path / "mine" / "trained.safetensors").stat().st_mtime_ns
    found = hub()
    assert cli.main(["train", str(path)]) == 0
    assert "already finished" in capsys.readouterr().out
    assert [folder for _, folder, _, _ in found.uploads] == ["mine"]
    assert (tmp_path / "mine" / "trained.safetensors").stat().st_mtime_ns == before


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["closed", "refusing"])
def test_the_command_ends_in_one_sentence_with_the_weights_on_disk(workspace, tmp_path, kind):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    port = server.server_address[1]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    if kind == "closed":
        server.shutdown()
        server.server_close()
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(pushed(workspace, tmp_path / "mine", max_steps=1)))
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, "-m", "soundwave_hf.cli", "train", str(tmp_path / "recipe.yaml")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    server.server_close()
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("soundwave-hf train: The run is finished and its weights are safe in `")
    assert ("Connection refused" if kind == "closed" else "401") in last
    assert "Traceback" not in done.stderr
    assert TOKEN not in done.stdout + done.stderr
    assert (tmp_path / "mine" / "trained.safetensors").is_file()
    for path in (tmp_path / "mine").rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path


def test_a_name_that_can_be_no_repository_is_refused_before_the_first_step(workspace, hub, tmp_path):
    hub()
    with pytest.raises(ValueError, match="`hub_model_id` is 'a/b/c': "):
        train(pushed(workspace, tmp_path / "mine", hub_model_id="a/b/c"))
    assert not (tmp_path / "mine").exists()


# ---- a server that speaks the hub's protocol ----


@pytest.mark.parametrize("strategy", ["every_save", "checkpoint", "end"])
def test_a_run_reaches_a_hub_over_http_and_loads_by_its_name(workspace, tmp_path, monkeypatch, capsys, strategy):
    with local_hub(tmp_path / "cache", tmp_path / "home", {}) as server:
        monkeypatch.setenv("HF_TOKEN", server.token)
        changes = {"hub_model_id": "me/mine", "hub_strategy": strategy, "hub_private_repo": True}
        trained = train(pushed(workspace, tmp_path / "mine", **changes))
        assert server.private_made == {"me/mine"}
        assert f"Pushed to {server.address}/me/mine." in capsys.readouterr().out
        there = server.repositories["me/mine"]
        names = {path.relative_to(there).as_posix() for path in there.rglob("*") if path.is_file()}
        assert {"README.md", "trained.safetensors", "config.json"} <= names and "optimizer.pt" not in names
        assert ("last-checkpoint/optimizer.pt" in names) == (strategy == "checkpoint")
        server.private.clear()
        found = SoundwaveForCTC.from_pretrained("me/mine", encoder=workspace.encoder, llm=workspace.llm)
        for name, value in found.named_parameters():
            if value.requires_grad:
                assert torch.equal(value, dict(trained.model.named_parameters())[name])


def test_an_upload_that_a_hub_refuses_while_a_run_trains_does_not_end_it(workspace, tmp_path, monkeypatch):
    with local_hub(tmp_path / "cache", tmp_path / "home", {}) as server:
        monkeypatch.setenv("HF_TOKEN", server.token)
        server.faults.append(Fault("POST", "/commit/", 403))
        trained = train(pushed(workspace, tmp_path / "mine", hub_model_id="me/mine"))
        assert trained.trainer.state.global_step == 2
        assert server.faults[0].times == 0  # the first commit was refused
        assert (server.repositories["me/mine"] / "trained.safetensors").is_file()


# ---- the card ----


@pytest.mark.parametrize("stage", ["align", "shrink", "instruct"])
def test_each_folder_has_a_card_of_this_package(chain, stage):
    for folder in (chain[stage].folder, chain[stage].folder / "checkpoint-3"):
        card = ModelCard.load(folder / "README.md")
        assert card.data.library_name == "transformers" and "soundwave" in card.data.tags
        assert card.data.license is None and "base_model" not in card.data.to_dict()  # local folders
        assert "whisper" in card.text and f"in stage `{stage}`" in card.text
        assert "| s0 | 6 | 0.00" in card.text or "| s1 | 6 | 0.00" in card.text  # seconds of speech
        assert "peft" not in card.text.lower()


def test_a_card_names_backbones_of_the_hub_and_the_last_scores(chain):
    config = chain["align"].model.config
    config = type(config).from_dict(config.to_dict())
    config.audio_config._name_or_path, config.text_config._name_or_path = "openai/whisper-base", "org/llm"
    history = [{"step": 1, "eval_wer": 0.9, "eval_ctc_wer": 1.0}, {"step": 2, "eval_wer": 0.5, "eval_a_cer": 0.25}]
    card = ModelCard(RunCard("shrink").text(config, history, kind="lora"))
    assert card.data.base_model == ["openai/whisper-base", "org/llm"]
    assert "| evaluation data | word error rate | 0.5 |" in card.text
    assert last_measured(history) == [("", "wer", 0.5), ("", "ctc_wer", 1.0), ("a", "cer", 0.25)]


@pytest.mark.parametrize("stage", ["align", "shrink", "instruct"])
def test_what_a_card_says_loads_its_folder(chain, stage):
    card = (chain[stage].folder / "README.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    names = {}
    exec(re.sub(r"= \.\.\. .*", f"= {str(chain[stage].folder)!r}", block), names)
    expected = "SoundwaveForCTC" if stage == "align" else "SoundwaveForConditionalGeneration"
    assert type(names["model"]).__name__ == expected
    assert type(names["processor"]).__name__ == "SoundwaveProcessor"


def test_a_trainer_without_a_recipe_writes_that_card_too(chain, tmp_path):
    trainer = chain["instruct"].trainer
    trainer.save_model(str(tmp_path / "saved"))
    assert "library_name: transformers" in (tmp_path / "saved" / "README.md").read_text()
    assert json.loads((tmp_path / "saved" / "run.json").read_text())["learning"]["stage"] == "instruct"


def test_arguments_may_push(tmp_path):
    assert push.repository_of(SoundwaveTrainingArguments(str(tmp_path / "x"))) == "x"
