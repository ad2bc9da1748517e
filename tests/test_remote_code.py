"""A saved folder loads with `trust_remote_code=True` in a process that cannot import the package."""

import ast
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor, pipeline

from soundwave_hf import SoundwaveForConditionalGeneration, SoundwaveProcessor
from soundwave_hf.modeling.configuration_soundwave import AUTO_MAP
from tests.tiny_models import save_tiny_soundwave


MODEL_CLASSES = sorted(AUTO_MAP.keys() - {"AutoConfig", "AutoProcessor"})
# What a user runs: no package, no connection; both are refused, so that a use of either fails.
STRANGER = """
import socket, sys

for name in ("soundwave_hf", "peft", "soundfile", "soxr", "trl", "datasets", "accelerate"):
    sys.modules[name] = None  # not installed

def refused(*args, **kwargs):
    raise AssertionError("a connection was opened")

socket.socket.connect = refused
folders = sys.argv[1:]

import numpy as np, torch, transformers
from safetensors.torch import save_file

for folder, again in zip(folders, folders[1:]):
    trusted = {"trust_remote_code": True}
    config = transformers.AutoConfig.from_pretrained(folder, **trusted)
    processor = transformers.AutoProcessor.from_pretrained(folder, **trusted)
    clips = [np.sin(np.arange(length) / 9).astype(np.float32) for length in (9600, 6400)]
    asked = [[{"role": "user", "content": [{"type": "audio", "audio": clip}, "What is it?"]}] for clip in clips]
    inputs = processor.apply_chat_template(
        asked, tokenize=True, return_dict=True, add_generation_prompt=True, sampling_rate=16000
    )
    found = {"inputs." + name: tensor.contiguous() for name, tensor in inputs.items()}
    for name in config.auto_map.keys() - {"AutoConfig", "AutoProcessor"}:
        model = getattr(transformers, name).from_pretrained(folder, **trusted)
        assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
        found["logits." + name] = model(**inputs).logits.detach()
        found["ids." + name] = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    request = processor.apply_transcription_request(clips[0], sampling_rate=16000)
    # Joint decoding looks for the tokenizer in the folder.
    found["ids.joint"] = model.generate(**request, ctc_weight=0.5, max_new_tokens=4, do_sample=False)
    transcribe = transformers.pipeline("automatic-speech-recognition", model=folder, **trusted)
    rows = [{"array": np.tile(clip, 5), "sampling_rate": 16000} for clip in clips]  # of several windows
    texts = [output["text"] for output in transcribe(rows, batch_size=2, max_new_tokens=3)]
    answers = transformers.pipeline("any-to-any", model=folder, **trusted)(
        text=asked,
        max_new_tokens=3,
        do_sample=False,
        return_full_text=False,
        processor_kwargs={"sampling_rate": 16000},
    )
    texts += [answer[0]["generated_text"] for answer in answers]
    for place, text in enumerate(texts):
        found[f"text.{place}"] = torch.tensor(list(text.encode()), dtype=torch.uint8)
    model.save_pretrained(again)
    processor.save_pretrained(again)
    save_file(found, again + "/found.safetensors")
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    return save_tiny_soundwave(tmp_path_factory.mktemp("saved"))


def load_as_a_stranger(folder: Path, *copies: Path) -> list[dict[str, torch.Tensor]]:
    """What a process without the package finds in each folder; it saves each as the next copy."""
    for copy in copies:
        copy.mkdir()
    environment = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(copies[0] / "modules"), "PATH": "/usr/bin"}
    result = subprocess.run(
        [sys.executable, "-c", STRANGER, *map(str, (folder, *copies))],
        capture_output=True,
        text=True,
        cwd=copies[0],
        env=environment,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return [load_file(copy / "found.safetensors") for copy in copies]


@pytest.mark.slow
def test_a_stranger_gets_the_same_logits_and_ids_and_can_save_and_load_again(saved, tmp_path):
    found, once_more = load_as_a_stranger(saved, tmp_path / "again", tmp_path / "once more")
    inputs = {name.removeprefix("inputs."): value for name, value in found.items() if name.startswith("inputs.")}
    model = AutoModel.from_pretrained(saved)
    assert type(model) is SoundwaveForConditionalGeneration
    logits = model(**inputs).logits
    ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    assert model(**inputs).num_positions.min() > 2
    for name in MODEL_CLASSES:
        assert torch.equal(found[f"logits.{name}"], logits)
        assert torch.equal(found[f"ids.{name}"], ids)
    transcribe = pipeline("soundwave-asr", model=str(saved))
    clips = [np.sin(np.arange(length) / 9).astype(np.float32) for length in (9600, 6400)]
    request = transcribe.processor.apply_transcription_request(clips[0], sampling_rate=16000)
    joint = model.generate(**request, ctc_weight=0.5, max_new_tokens=4, do_sample=False)
    assert torch.equal(found["ids.joint"], joint)
    for place, clip in enumerate(clips):
        text = transcribe({"array": np.tile(clip, 5), "sampling_rate": 16000}, max_new_tokens=3)["text"]
        assert bytes(found[f"text.{place}"].tolist()).decode() == text
        assert found[f"text.{place + 2}"].numel() > 0
    assert once_more.keys() == found.keys()
    assert all(torch.equal(once_more[name], value) for name, value in found.items())


def test_with_the_package_its_own_classes_come_back_without_a_flag(saved):
    assert type(AutoProcessor.from_pretrained(saved)) is SoundwaveProcessor
    config = json.loads((saved / "config.json").read_text())
    assert config["auto_map"] == AUTO_MAP
    assert json.loads((saved / "processor_config.json").read_text())["auto_map"]["AutoProcessor"]


def test_the_saved_code_does_nothing_when_imported(saved):
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    files = sorted(saved.glob("*.py"))
    assert {path.name for path in files} >= {f"{name.split('.')[0]}.py" for name in AUTO_MAP.values()}
    for path in files:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            assert docstring or isinstance(node, allowed), f"{path.name}:{node.lineno}"


def test_what_is_pushed_is_what_is_saved(saved, monkeypatch):
    from transformers.utils import hub

    pushed: list[str] = []
    api = SimpleNamespace(create_repo=lambda repo_id, **options: SimpleNamespace(repo_id=repo_id))
    api.file_exists = lambda repo_id, name, **options: False
    monkeypatch.setattr(hub, "hf_api", lambda: api)
    monkeypatch.setattr("soundwave_hf.modeling.audio_model_soundwave.HfApi", lambda **options: api)
    card = SimpleNamespace(save=lambda path: None)
    monkeypatch.setattr(hub, "create_and_tag_model_card", lambda *names, **options: card)

    def upload(self, folder, repo_id, **options):
        pushed.extend(path.name for path in Path(folder).iterdir())

    for part in (AutoModel.from_pretrained(saved), AutoProcessor.from_pretrained(saved)):
        monkeypatch.setattr(type(part), "_upload_modified_files", upload)
        part.push_to_hub("someone/soundwave")
    assert set(pushed) >= {path.name for path in saved.iterdir()}
