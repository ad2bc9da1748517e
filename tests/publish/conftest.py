"""Folders to push, and a hub to push them to."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from soundwave_hf.data.card import DataSource
from soundwave_hf.data.tiny import write_tiny_llm, write_tiny_whisper
from soundwave_hf.data.used import DataUsed
from soundwave_hf.publish import look, push, reload
from tests.local_hub import local_hub
from tests.modeling.test_load_adapters import write_adapters, write_stage_one
from tests.tiny_models import save_tiny_soundwave


HISTORY = [
    {"step": 1, "loss": 9.5, "ce_loss": 8.0, "ctc_loss": 5.0, "learning_rate": 2e-4},
    {"step": 2, "loss": 7.25, "ce_loss": 6.0, "ctc_loss": 4.5, "learning_rate": 1e-4, "blank_share": 0.5},
    {"step": 2, "train_runtime": 120.0},
]
USED = DataUsed(
    (DataSource("books", "cc-by-4.0", rows=12, hours=1.5), DataSource("calls", "cc-by-nc-4.0", rows=8, hours=0.5)),
    datasets=("openslr/librispeech_asr",),
    languages=("en",),
)
RECIPE = {
    "stage": "shrink",
    "data": ["/secret/place/train.jsonl", {"path": "openslr/librispeech_asr", "split": "train"}],
    "output_dir": "/secret/place/runs",
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "learning_rate": 2e-4,
}
SCORES = {
    "weights": "runs/mine",
    "metric": "wer",
    "language": "en",
    "sets": {
        "books": {
            "clips": 20,
            "audio_seconds": 60.0,
            "wer": 0.145,
            "wer_interval": [0.11, 0.187],
            "ctc_wer": 0.12,
            "positions_per_second": 2.5,
            "positions_per_second_interval": [2.25, 2.75],
            "word_errors": {"substitutions": 20, "deletions": 5, "insertions": 4, "words": 200},
            "answers": 0,
        }
    },
}


def write_run_records(folder: Path):
    """What a trainer writes beside weights, and what only the machine needs."""
    state = {"log_history": HISTORY, "global_step": 2}
    files = {
        "recipe.yaml": yaml.safe_dump(RECIPE, sort_keys=False),
        "trainer_state.json": json.dumps(state),
        "versions.json": json.dumps({"python": "3.11", "torch": "2.13.0", "soundwave-hf": "0.1.0"}),
        "data_card.md": f"# Data of this run\n\n{USED.comment()}\n",
        "optimizer.pt": "states",
        "scheduler.pt": "states",
        "rng_state.pth": "states",
        ".env": "HF_TOKEN=hf_AbCdEfGhIjKlMnOpQrStUvWx",
        "runs/events.out.tfevents.1": "log",
        "checkpoint-2/optimizer.pt": "states",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """`home` with backbones, and the folders `run` (adapters of a run), `align` and `whole`. No test changes them."""
    place = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOUNDWAVE_HOME", str(place / "home"))
        backbones = [str(place / "home" / "backbones" / name) for name in ("me--whisper", "me--llm")]
        write_tiny_whisper(Path(backbones[0]))
        write_tiny_llm(Path(backbones[1]))
        write_adapters(*backbones, place / "run")
        write_run_records(place / "run")
        write_stage_one(*backbones, place / "align")
        save_tiny_soundwave(place / "whole")
    return place


@pytest.fixture
def folder(made, tmp_path):
    """Copies one of the folders, to be changed."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(made / name, tmp_path / name))

    return copy


@pytest.fixture
def hub(made, tmp_path, monkeypatch):
    """An empty hub, whose user is logged in."""
    # `monkeypatch` ends after `local_hub`, and has to know the values from before it.
    monkeypatch.setenv("SOUNDWAVE_HOME", str(made / "home"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with local_hub(tmp_path / "cache", made / "home", {}) as server:
        server.writable = tmp_path / "hub"
        monkeypatch.setenv("HF_TOKEN", server.token)
        yield server


@pytest.fixture
def same_process(made, monkeypatch):
    """The check loads folders in this process: a new one imports torch for many seconds."""
    monkeypatch.setenv("SOUNDWAVE_HOME", str(made / "home"))

    def hear(folder, place, how, offline):
        threads = torch.get_num_threads()
        try:
            return look.hear(str(folder), how)
        finally:
            torch.set_num_threads(threads)

    monkeypatch.setattr(reload, "run_fresh", hear)


@pytest.fixture
def quick_plot(monkeypatch):
    """A file in place of the curves, which take a second to draw."""
    monkeypatch.setattr(push, "plot_histories", lambda histories, path: path.write_bytes(b"png"))


@pytest.fixture
def scores(tmp_path) -> Path:
    path = tmp_path / "scores.json"
    path.write_text(json.dumps(SCORES))
    return path
