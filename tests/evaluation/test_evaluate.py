import json

import numpy as np
import pytest
import soundfile
import torch
from transformers import LlamaConfig, LlamaForCausalLM, WhisperConfig, WhisperFeatureExtractor, WhisperModel

from soundwave_hf.evaluation import evaluate
from soundwave_hf.evaluation.evaluate import (
    Scores,
    Transcripts,
    ask,
    batches_of_like_length,
    in_batches,
    score,
    score_table,
    transcribe,
)
from soundwave_hf.evaluation.shipped import load_adapter
from soundwave_hf.modeling.modeling_soundwave import SoundwaveForConditionalGeneration
from soundwave_hf.processing.processing_soundwave import SoundwaveProcessor
from tests.tiny import tiny_tokenizer


SAMPLING_RATE = 16_000


@pytest.fixture(scope="module")
def model_and_processor(tmp_path_factory):
    """Random backbones of width 16 as folders, joined."""
    torch.manual_seed(0)
    encoder, llm = (str(tmp_path_factory.mktemp(name)) for name in ("encoder", "llm"))
    sizes = {f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in WHISPER_SIZES.items()}
    WhisperModel(WhisperConfig(d_model=16, vocab_size=60, pad_token_id=0, **sizes)).save_pretrained(encoder)
    WhisperFeatureExtractor().save_pretrained(encoder)
    tokenizer = tiny_tokenizer(audio_token=None)
    tokenizer.save_pretrained(llm)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(llm)
    return SoundwaveForConditionalGeneration.from_backbones(encoder, llm), SoundwaveProcessor.from_backbones(
        encoder, llm
    )


WHISPER_SIZES = {"layers": 1, "attention_heads": 2, "ffn_dim": 32}


@pytest.fixture
def rows(tmp_path) -> list[dict]:
    """Three clips of noise, the longest first."""
    lengths = [1.5, 0.5, 1.0]
    found = []
    for number, seconds in enumerate(lengths):
        path = tmp_path / f"{number}.flac"
        samples = np.random.default_rng(number).normal(scale=0.1, size=int(seconds * SAMPLING_RATE))
        soundfile.write(path, samples, SAMPLING_RATE)
        found.append({"audio": str(path), "seconds": seconds, "text": "hello"})
    return found


def test_a_batch_of_clips_is_transcribed_as_each_clip_alone(model_and_processor, rows):
    together = transcribe(*model_and_processor, rows, batch_size=3, max_new_tokens=5)
    alone = transcribe(*model_and_processor, rows, batch_size=1, max_new_tokens=5)
    for name in ("texts", "ctc_texts", "num_positions"):
        assert getattr(together, name) == getattr(alone, name)
    # 40 ms a frame, and no more positions than frames.
    assert all(
        1 <= positions <= 25 * row["seconds"] + 1 for positions, row in zip(alone.num_positions, rows, strict=True)
    )


def test_a_clip_of_two_windows_may_have_twice_the_tokens(model_and_processor, tmp_path, monkeypatch):
    model, processor = model_and_processor
    limits = []

    def generate(max_new_tokens, input_ids, **inputs):
        limits.append(max_new_tokens)
        return input_ids

    monkeypatch.setattr(model, "generate", generate)
    for seconds in (29.9, 30.1):
        soundfile.write(tmp_path / "clip.flac", np.zeros(int(seconds * SAMPLING_RATE)), SAMPLING_RATE)
        ask(model, processor, [tmp_path / "clip.flac"], "?", max_new_tokens=7)
    assert limits == [7, 14]


def test_a_clip_can_be_the_whole_question():
    (turn,) = evaluate.conversation("clip.flac", "")
    assert turn["content"] == [{"type": "audio", "path": "clip.flac"}]


def test_batches_hold_clips_of_like_length_and_results_keep_the_rows_order():
    rows = [{"audio": name, "seconds": seconds} for name, seconds in [("a", 9.0), ("b", 1.0), ("c", 5.0)]]
    batches = []

    def run(clips):
        batches.append(clips)
        return Transcripts(texts=[clip.upper() for clip in clips], seconds_taken=2.0)

    found = in_batches(run, rows, batch_size=2, label="test")
    assert batches == [["b", "c"], ["a"]]
    assert found == Transcripts(texts=["A", "B", "C"], seconds_taken=4.0, ctc_texts=None, num_positions=None)


def test_clips_beyond_the_encoders_window_have_batches_of_their_own():
    seconds = [31.0, 2.0, 30.0, 1.0, 90.0, 3.0]
    assert batches_of_like_length(seconds, batch_size=3) == [[3, 1, 5], [2], [0, 4]]
    assert batches_of_like_length(seconds[1:4], batch_size=2) == [[2, 0], [1]]
    assert batches_of_like_length(seconds[:1], batch_size=2) == [[0]]


def test_a_batch_of_no_clips_is_refused(rows):
    with pytest.raises(ValueError, match="The batch size is 0"):
        in_batches(lambda clips: None, rows, batch_size=0, label="test")


def test_scores_are_taken_over_the_set():
    rows = [{"text": "good morning", "seconds": 1.0}, {"text": "dear friends", "seconds": 3.0}]
    found = Transcripts(["Good morning.", "Dear fiends."], 6.0, ["morning", "deer friends"], [4, 8])
    whisper = Transcripts(["Good morning.", "Dear friends."], 1.0)
    scores = score(rows, found, whisper)
    assert scores == Scores(
        clips=2,
        audio_seconds=4.0,
        wer=0.25,
        ctc_wer=0.5,
        positions_per_second=3.0,
        seconds_taken=6.0,
        whisper_wer=0.0,
    )
    assert score_table({"mine": scores}).splitlines()[-1] == "| mine | 2 | 4 | 25.0 | 50.0 | 3.00 | 0.0 | 6 |"


def test_the_human_set_leaves_the_audiobook_out(monkeypatch, tmp_path):
    lines = [{"audio": "a.flac", "source": "human-prompt"}, {"audio": "b.flac", "source": "librivox"}]
    folder = tmp_path / "data" / "demo"
    folder.mkdir(parents=True)
    (folder / "valid_human.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setenv("SOUNDWAVE_HOME", str(tmp_path))
    assert [row["audio"] for row in evaluate.read_set("human")] == [str(folder / "a.flac")]


def test_a_set_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="no set `humen`: choose from human, librivox, synthetic"):
        evaluate.read_set("humen")


def test_missing_adapters_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder `.*nowhere` with trained adapters"):
        load_adapter(tmp_path / "nowhere")


def test_adapters_are_merged_in_float32_whatever_the_llm_is_stored_in(tmp_path, monkeypatch):
    given = {}

    def from_pretrained(folder, **options):
        given.update(options)
        return torch.nn.Identity()

    (tmp_path / "config.json").write_text('{"model_type": "soundwave"}')
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_text("{}")
    monkeypatch.setattr(SoundwaveForConditionalGeneration, "from_pretrained", from_pretrained)
    monkeypatch.setattr(SoundwaveProcessor, "from_pretrained", lambda folder, llm: "processor")
    load_adapter(tmp_path)
    assert given["dtype"] == "float32"
