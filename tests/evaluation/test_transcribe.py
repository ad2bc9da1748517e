import numpy as np
import pytest
import soundfile
import torch
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

from soundwave_hf.evaluation import evaluate
from soundwave_hf.evaluation.rows import Request
from soundwave_hf.evaluation.transcribe import (
    Transcripts,
    ask,
    batches_of_like_length,
    finished,
    longest_clip,
    model_system,
    run_rows,
    transcribe,
    whisper_options,
    windows_of,
)
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


def shout(requests) -> Transcripts:
    """A system that needs no model: the references, loud."""
    return Transcripts([request.reference.upper() for request in requests], 2.0)


def test_batches_hold_clips_of_like_length_and_results_keep_the_rows_order(rows):
    batches = []

    def system(requests):
        batches.append([request.row for request in requests])
        return shout(requests)

    named = [{**row, "text": name} for row, name in zip(rows, "abc", strict=True)]
    results, seconds = run_rows(system, named, batch_size=2, label="test")
    assert batches == [[1, 2], [0]]  # 0.5 and 1 s, then 1.5 s
    assert [result.text for result in results] == ["A", "B", "C"]
    assert seconds >= 4.0


def test_transcripts_and_questions_never_share_a_batch(rows):
    batches = []

    def system(requests):
        batches.append([request.row for request in requests])
        return shout(requests)

    mixed = [rows[0], {**rows[1], "question": "What?", "answer": "b"}, rows[2]]
    results, _ = run_rows(system, mixed, batch_size=3, label="test")
    assert batches == [[2, 0], [1]]
    assert [result.text for result in results] == ["HELLO", "B", "HELLO"]


def test_audio_is_given_back_after_its_group(rows):
    results, _ = run_rows(shout, rows, batch_size=1, label="test")
    assert [result.request.clips for result in results] == [(), (), ()]


def test_a_clip_that_cannot_be_read_stops_nothing(rows):
    broken = [rows[0], {"audio": "nowhere.wav", "text": "hello"}, rows[2]]
    results, _ = run_rows(shout, broken, batch_size=3, label="test")
    assert [result.text for result in results] == ["HELLO", None, "HELLO"]
    assert "nowhere.wav" in results[1].failure and results[1].request.audio_name == "nowhere.wav"


def test_a_clip_that_the_model_refuses_fails_alone(rows):
    def refuse_the_longest(requests):
        if any(request.seconds == 1.5 for request in requests):
            raise ValueError("The prompt is too long.")
        return shout(requests)

    results, _ = run_rows(refuse_the_longest, rows, batch_size=3, label="test")
    assert [result.text for result in results] == [None, "HELLO", "HELLO"]
    assert results[0].failure == "The prompt is too long."


def test_a_python_call_is_told_of_a_clip_that_cannot_be_read(model_and_processor, rows):
    with pytest.raises(ValueError, match="Row 1 could not be transcribed: .*nowhere.wav"):
        transcribe(*model_and_processor, [rows[0], {"audio": "nowhere.wav"}], ctc=True)


def test_a_set_without_rows_is_refused():
    with pytest.raises(ValueError, match="`calls` has no rows"):
        run_rows(shout, [], batch_size=2, label="calls")


def test_the_clips_of_a_batch_fill_the_same_number_of_windows():
    seconds = [31.0, 2.0, 30.0, 1.0, 90.0, 3.0, 59.0]
    assert batches_of_like_length(seconds, batch_size=3) == [[3, 1, 5], [2], [0, 6], [4]]
    assert batches_of_like_length([3.0, 6.0, 1.0], batch_size=3, window=2.0) == [[2], [0], [1]]
    assert batches_of_like_length(seconds[1:4], batch_size=2) == [[2, 0], [1]]
    assert batches_of_like_length(seconds[:1], batch_size=2) == [[0]]


def test_trailing_silence_makes_no_further_window(model_and_processor):
    processor = model_and_processor[1]
    for seconds, windows in ((1.0, 1), (30.0, 1), (30.1, 2), (59.9, 2), (60.0, 2), (60.1, 3)):
        features = torch.from_numpy(processor.log_mel([np.zeros(round(seconds * SAMPLING_RATE))])["input_features"])
        assert windows_of({"input_features": features}, processor) == windows


def test_a_conversation_is_batched_by_its_longest_clip():
    short, long = ({"array": np.zeros(round(seconds * SAMPLING_RATE))} for seconds in (20.0, 40.0))
    assert longest_clip(Request(0, None, "", clips=(short, long, short))) == 40.0
    assert longest_clip(Request(0, None, "")) == 0.0


def test_a_batch_of_no_clips_is_refused(rows):
    with pytest.raises(ValueError, match="The batch size is 0"):
        run_rows(shout, rows, batch_size=0, label="test")


def test_the_transcript_is_asked_for_as_the_processor_does_it(model_and_processor, rows, monkeypatch):
    model, processor = model_and_processor
    asked = []
    request = processor.apply_transcription_request

    def spy(clips, language=None):
        asked.append((len(clips), language))
        return request(clips, language=language)

    monkeypatch.setattr(processor, "apply_transcription_request", spy)
    ask(model, processor, [rows[0]["audio"]], max_new_tokens=1)
    transcribe(model, processor, rows, max_new_tokens=1, language="de")
    ask(model, processor, [rows[0]["audio"]], "How many bells?", max_new_tokens=1)  # a question is not such a request
    assert asked == [(1, None), (3, "de")]


def test_messages_with_two_clips_and_with_none_share_a_batch(model_and_processor, rows):
    clips = [{"role": "user", "content": [{"type": "audio", "path": row["audio"]} for row in rows[:2]]}]
    text = [{"role": "user", "content": "One and one?"}]
    turns = [{"messages": [*turn, {"role": "assistant", "content": "Two"}]} for turn in (clips, text)]
    system = model_system(*model_and_processor, max_new_tokens=3)
    together, _ = run_rows(system, turns, batch_size=2, label="test")
    alone, _ = run_rows(system, turns, batch_size=1, label="test")
    assert [result.failure for result in together] == [None, None]
    for result, other in zip(together, alone, strict=True):
        assert (result.text, result.ctc_text, result.num_positions) == (
            other.text,
            other.ctc_text,
            other.num_positions,
        )
    assert together[0].num_positions > 0 and together[1].num_positions == 0 and together[1].ctc_text is None


def test_a_text_that_does_not_end_is_told_from_one_that_does(model_and_processor):
    model = model_and_processor[0]
    end = model.generation_config.eos_token_id
    (end,) = end if isinstance(end, list) else [end]
    processor = model_and_processor[1]
    ids = torch.tensor([[5, 6, end], [5, 6, 7]])
    assert finished(model, processor, ids, {}) == [True, False]
    for ends in ([7, 8], (7, 8), torch.tensor([7, 8]), torch.tensor(7)):
        assert finished(model, processor, ids, {"eos_token_id": ends}) == [False, True]
    assert finished(model, processor, ids[:, :0], {}) == [False, False]  # all of its words were left out
    stop = processor.batch_decode(ids)[1][-1]
    assert finished(model, processor, ids, {"stop_strings": [stop]}) == [True, True]
    assert finished(model, processor, ids, {"stop_strings": "§"}) == [True, False]


def test_questions_are_asked_without_the_options_of_transcripts(model_and_processor, rows):
    options = {"drop_unsupported": True, "ctc_weight": 0.3}
    mixed = [rows[0], {**rows[1], "question": "What?", "answer": "b"}]
    system = model_system(*model_and_processor, max_new_tokens=2, generate=options)
    assert [result.failure for result in run_rows(system, mixed, 2, "test")[0]] == [None, None]


def test_the_earlier_name_of_the_ctc_transcript_is_kept():
    assert evaluate.hear is evaluate.ctc_transcribe


class FakeWhisper:
    """As much of Whisper as its options need."""

    def __init__(self, is_multilingual: bool):
        self.generation_config = GenerationConfig()
        self.generation_config.is_multilingual = is_multilingual


def test_whisper_is_told_the_language():
    assert whisper_options(FakeWhisper(True), None) == {"task": "transcribe", "language": "en"}
    assert whisper_options(FakeWhisper(True), "German") == {"task": "transcribe", "language": "de"}
    assert whisper_options(FakeWhisper(True), "auto") == {"task": "transcribe"}
    assert whisper_options(FakeWhisper(False), "en") == {}


def test_an_english_whisper_is_no_baseline_for_german():
    with pytest.raises(ValueError, match="language is `de`, and this Whisper transcribes only English"):
        whisper_options(FakeWhisper(False), "de")
