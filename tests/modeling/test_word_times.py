"""Word times, confidence and unsupported words, on scores made by hand and on tiny random models."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForMultimodalLM, AutoProcessor, pipeline

import soundwave_hf
from soundwave_hf.evaluation.transcribe import finished
from soundwave_hf.modeling import timed_generation_soundwave
from soundwave_hf.modeling.ctc_scores_soundwave import CTCFrames
from soundwave_hf.modeling.ctc_text_soundwave import CTCText, ctc_form
from soundwave_hf.modeling.support_soundwave import CTCClip, find_loops, score_words, segment_chunks
from soundwave_hf.modeling.word_times_soundwave import (
    count_letters,
    owners,
    sound_seconds,
    time_words,
    written_words,
)
from tests.tiny import tiny_tokenizer
from tests.tiny_models import WINDOW, make_clips, save_tiny_soundwave, tiny_model


RATE = 16_000
BRIDGE = CTCText(tiny_tokenizer())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(save_tiny_soundwave(tmp_path_factory.mktemp("times")))


@pytest.fixture(scope="module")
def model(folder):
    return AutoModelForMultimodalLM.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def processor(folder):
    return AutoProcessor.from_pretrained(folder)


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


def said_clip(said: str, step: int = 2, form: str = "lower") -> CTCClip:
    """A clip whose frames say the bytes of a text, one every few frames, with a probability of 0.9 each."""
    labels = BRIDGE.labels(said)
    frames = step * len(labels) + 4
    vocabulary = len(BRIDGE.bytes_of)
    probs = torch.full((frames, vocabulary + 1), 1e-7)
    probs[:, -1] = 0.99
    for place, label in enumerate(labels):
        probs[step * place + 1, label], probs[step * place + 1, -1] = 0.9, 0.05
    log_probs = probs.log()
    values, ids = log_probs[:, :-1].topk(4, dim=1)
    # States whose products with rows of ones and zeros are the scores.
    own = CTCFrames(
        log_probs[:, :-1],
        torch.eye(vocabulary),
        torch.zeros(frames),
        log_probs[:, -1],
        ids,
        values,
        torch.zeros(frames),
    )
    return CTCClip(own, 0.04, 0.04 * frames, 0.45, form)


# ---- texts ----


def test_marks_join_the_word_before_them_and_hold_no_label():
    words = written_words("- He was not — ill-disposed. …", BRIDGE)
    assert [word.text for word in words] == ["- He", "was", "not —", "ill-disposed. …"]
    said = [b"".join(BRIDGE.bytes_of[label] for label in word.labels) for word in words]
    assert said == [b" he", b" was", b" not", b" ill disposed"]
    assert [word.span for word in words] == [(0, 4), (5, 8), (9, 16), (17, 34)]  # a dash has three bytes
    assert written_words("", BRIDGE) == [] and written_words("...", BRIDGE)[0].labels == []


def test_each_character_of_a_script_without_spaces_is_a_word():
    words = written_words("我用Python写「代码」。 是的", BRIDGE)
    assert [word.text for word in words] == ["我", "用", "Python", "写", "「代", "码」。", "是", "的"]
    assert [word.is_apart for word in words] == [True, *[False] * 5, True, False]
    said = b"".join(BRIDGE.bytes_of[label] for word in words for label in word.labels)
    assert said.decode() == ctc_form("我用Python写「代码」。 是的", "lower") == " 我用python写 代码 是的"
    spans = [word.span for word in words]
    assert [(end - begin) for begin, end in spans] == [3, 3, 6, 3, 6, 9, 3, 3]


def test_a_thai_word_keeps_its_marks():
    assert [word.text for word in written_words("ที่นี่", BRIDGE)] == ["ที่", "นี่"]


@pytest.mark.parametrize("form", ["lower", "as_written"])
def test_characters_that_one_label_writes_are_one_word(form):
    class Words(CTCText):
        """Labels of two characters."""

        def __init__(self):
            self.form, self.bytes_of = form, [" 你".encode(), "好吗".encode(), "。".encode(), b""]

        def labels(self, text):
            assert text == {"lower": " 你好吗", "as_written": " 你好吗。"}[form]
            return [0, 1] if form == "lower" else [0, 1, 2]

    words = written_words("你好吗。", Words())
    assert [(word.text, word.labels[:1], word.span) for word in words] == [
        ("你", [0], (0, 3)),
        ("好吗。", [1], (3, 12)),
    ]


def test_segments_of_a_script_without_spaces_have_none():
    words = score_words(said_clip("他很好"), "他很好。", BRIDGE, -9.0)
    assert [word.text for word in words] == ["他", "很", "好。"] and all(word.supported for word in words)
    assert [segment["text"] for segment in segment_chunks(words)] == ["他很好。"]


def test_pieces_belong_to_the_word_of_their_last_byte():
    assert owners([b" he", b" w", b"as", b"."], [(0, 3), (3, 8)]) == [0, 1, 1, 1]
    assert owners([b" ", b" he", b" "], [(0, 3)]) == [None, 0, None]  # SentencePiece begins with a space
    assert owners([], []) == []


def test_letters_of_labels_are_counted_without_spaces():
    bridge = CTCText(tiny_tokenizer())
    assert count_letters(bridge.labels("a"), bridge).tolist() == [1, 1]  # " " and "a"


# ---- times ----


def test_the_time_between_two_peaks_is_divided_by_letters():
    # Peaks at 0.1 and 0.4 s of labels with 3 letters each, 0.45 of them before the peak: 1.65 : 1.35 of 0.3 s.
    first = np.array([0.1, 0.4])
    (start, middle), (second, end) = time_words(first, first, np.array([3, 3]), np.array([1, 1]), 0.45, 1.0)
    assert middle == second == pytest.approx(0.1 + 0.3 * 0.55)
    assert start == pytest.approx(0.1 - 0.45 * 3 * 0.065)
    assert end == pytest.approx(0.4 + 1.6 * 0.55 * 3 * 0.065)


def test_a_pause_belongs_to_no_word():
    first = np.array([0.1, 2.1])
    (_, end), (start, _) = time_words(first, first, np.array([3, 3]), np.array([1, 1]), 0.45, 3.0)
    assert end == pytest.approx(0.1 + 1.6 * 0.55 * 3 * 0.065) and start == pytest.approx(2.1 - 0.45 * 3 * 0.065)


def test_times_are_in_order_and_within_the_clip_wherever_the_peaks_are():
    rng = np.random.default_rng(0)
    for _ in range(200):
        words = int(rng.integers(1, 12))
        lengths = rng.integers(1, 4, size=words)
        first = 0.04 * np.cumsum(rng.integers(1, 4, size=lengths.sum())) - 0.02
        end = float(first[-1] * rng.uniform(0.5, 1.2))
        times = time_words(first, first, rng.integers(1, 9, size=len(first)), lengths, 0.45, end)
        flat = [time for pair in times for time in pair]
        assert flat == sorted(flat) and flat[0] >= 0 and flat[-1] <= end + 1e-9
        assert all(stop - start > 1e-6 for start, stop in times)


def test_silence_of_zeros_behind_a_clip_is_no_part_of_it(processor):
    samples = noise(1.0)
    (features,) = processor.log_mel([samples])["input_features"]
    assert features.shape[1] == 110  # 0.1 s of silence behind it
    assert 0.97 <= sound_seconds(torch.from_numpy(features), 110) <= 1.0


def test_frames_of_a_long_clip_are_at_their_place_in_the_recording():
    model = tiny_model()
    features, mask = make_clips([3 * WINDOW])
    audio = model.get_audio_features(features, mask)
    assert int(audio.num_frames) == 3 * WINDOW // 4
    _, aligned, _ = model.model.align(features, mask)
    alone = []
    energy = features[0].mean(dim=0)
    places = soundwave_hf.modeling.segments_soundwave.cut_at_quiet(energy, WINDOW, 4)
    for begin, end in places:
        assert begin % 4 == 0
        alone.append((begin // 4, model.model.align(features[:, :, begin:end], mask[:, begin:end])[1][0]))
    assert len(places) > 2
    for first, states in alone:
        torch.testing.assert_close(aligned[0, first : first + len(states)], states)


# ---- what is said and what is not ----


def test_every_word_that_is_said_is_supported_and_stands_at_its_frames():
    clip = said_clip("he was not")
    words = score_words(clip, "He was not.", BRIDGE, -9.0)
    assert [word.text for word in words] == ["He", "was", "not."]
    assert all(word.supported and word.aligned for word in words)
    assert all(word.ctc_log_prob == pytest.approx(np.log(0.9)) and word.support == pytest.approx(0) for word in words)
    # " was" are labels 3 to 6, at frames 7, 9, 11 and 13.
    assert words[1].start < 0.04 * 7.5 and 0.04 * 13.5 < words[1].end <= words[2].start


def test_invented_words_are_not_supported():
    clip = said_clip("he was not")
    found = {word.text: word.supported for word in score_words(clip, "He was quite not zigzag.", BRIDGE, -9.0)}
    assert found == {"He": True, "was": True, "quite": False, "not": True, "zigzag.": False}


def test_words_without_frames_have_no_times_and_the_others_keep_theirs():
    clip = said_clip("he was not", step=1)
    words = score_words(clip, "he was not " + "anything of the kind " * 20, BRIDGE, -9.0)
    assert [word.aligned for word in words[:3]] == [True] * 3 and not all(word.aligned for word in words)
    missing = next(word for word in words if not word.aligned)
    assert (missing.start, missing.end, missing.supported, missing.probability) == (None, None, False, 0.0)


def test_a_loop_is_supported_once():
    clip = said_clip("he was not")
    words = score_words(clip, "he was" + " he was" * 30 + " not", BRIDGE, -9.0)
    assert [word.text for word in words if word.supported] == ["he", "was", "not"]
    twice = score_words(said_clip("no no never"), "No, no, never!", BRIDGE, -9.0)
    assert all(word.supported for word in twice)


def test_loops_are_found_with_all_of_their_copies():
    assert find_loops(list("abab")) == [[[0, 1], [2, 3]]]
    assert find_loops(list("xaaa")) == [[[1], [2], [3]]]
    assert find_loops(list("abcd")) == []


def test_segments_end_with_sentences_and_long_pauses():
    words = score_words(said_clip("he was not she is"), 'He was "not." She is', BRIDGE, -9.0)
    segments = segment_chunks(words)
    assert [segment["text"] for segment in segments] == ['He was "not."', "She is"]
    assert segments[0]["timestamp"] == (words[0].start, words[2].end)
    words[1].start, words[1].end = 5.0, 5.2
    words[2].start, words[2].end = 5.2, 5.4
    assert [segment["text"] for segment in segment_chunks(words)][0] == "He"


def test_targets_as_written_are_aligned_as_written():
    clip = said_clip("He was", form="lower")  # says " he was"
    bridge = CTCText(tiny_tokenizer(), "as_written")
    assert not score_words(clip, "HE was", bridge, -9.0)[0].supported
    assert score_words(clip, "he was", bridge, -9.0)[0].supported


# ---- generate, the processor, the pipeline ----


def ask(processor, *seconds: float):
    return processor.apply_transcription_request([noise(length, 7) for length in seconds], sampling_rate=RATE)


def test_any_text_of_a_clip_can_be_aligned(model, processor):
    clips = model.get_ctc_clips(**ask(processor, 1.5, 0.7))
    found = processor.align_word_timestamps(["He was not.", "Yes"], clips)
    assert [chunk["text"] for chunk in found[0]["chunks"]] == ["He", "was", "not."]
    assert found[0]["text"] == "He was not." and 0 <= found[0]["probability"] <= 1
    ends = [chunk["timestamp"] for chunk in found[0]["chunks"] if chunk["aligned"]]
    assert ends and all(0 <= start < end <= 1.5 for start, end in ends)
    assert processor.align_word_timestamps("Yes", clips[1:]) == found[1]
    assert processor.align_word_timestamps("", clips[1:])["chunks"] == []
    with pytest.raises(ValueError, match="1 transcripts arrived and 2 clips; expected one clip for each text"):
        processor.align_word_timestamps("Yes", clips)
    with pytest.raises(ValueError, match='`return_timestamps` is \'char\'; expected "word" or "segment"'):
        processor.align_word_timestamps("Yes", clips[1:], "char")


def test_generate_gives_words_in_order_and_within_the_clip(model, processor):
    inputs = ask(processor, 1.5, 0.7, 2.0)
    output = model.generate(**inputs, return_timestamps="word", max_new_tokens=20)
    ids = model.generate(**inputs, max_new_tokens=20)
    assert torch.equal(output.sequences, ids)
    assert output["chunks"] is output.chunks and output.probabilities.shape == (3,)
    for text, chunks, seconds in zip(output.texts, output.chunks, (1.5, 0.7, 2.0), strict=True):
        assert " ".join(chunk["text"] for chunk in chunks).split() == text.split()
        flat = [time for chunk in chunks if chunk["aligned"] for time in chunk["timestamp"]]
        assert flat == sorted(flat) and all(0 <= time <= seconds for time in flat)
    assert any(chunk["aligned"] for chunks in output.chunks for chunk in chunks)


def test_a_batch_gives_the_times_of_each_clip_alone(model, processor):
    together = model.generate(**ask(processor, 1.5, 0.7), return_timestamps="word", max_new_tokens=12)
    for row, seconds in enumerate((1.5, 0.7)):
        alone = model.generate(**ask(processor, seconds), return_timestamps="word", max_new_tokens=12)
        assert alone.texts[0] == together.texts[row]
        for one, other in zip(alone.chunks[0], together.chunks[row], strict=True):
            assert one["timestamp"] == other["timestamp"]
            assert one["probability"] == pytest.approx(other["probability"], abs=1e-4)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3, "num_return_sequences": 2}])
def test_the_probability_of_the_llm_is_that_of_its_tokens(model, processor, options):
    inputs = ask(processor, 1.0, 0.6)
    output = model.generate(
        **inputs, return_timestamps="word", max_new_tokens=10, output_scores=True, output_logits=True, **options
    )
    copies = options.get("num_return_sequences", 1)
    assert len(output.texts) == 2 * copies
    begin = inputs["input_ids"].shape[1]
    for row, chunks in enumerate(output.chunks):
        expected = 0.0
        for step, token in enumerate(output.sequences[row, begin:].tolist()):
            source = row if output.beam_indices is None else int(output.beam_indices[row, step])
            piece = BRIDGE.bytes_of[token] if token < len(BRIDGE.bytes_of) else b""
            if piece.strip():
                expected += float(output.logits[step][source].log_softmax(dim=-1)[token])
        known = [chunk["llm_probability"] for chunk in chunks]
        assert np.log(known).sum() == pytest.approx(expected, abs=0.02)


def test_words_without_support_can_be_left_out(model, processor, monkeypatch):
    inputs = ask(processor, 1.0, 0.6)
    begin = inputs["input_ids"].shape[1]
    plain = model.generate(**inputs, max_new_tokens=12)
    monkeypatch.setattr(timed_generation_soundwave, "LEAST_SUPPORT", -1e9)
    aligned = model.generate(**inputs, max_new_tokens=12, return_timestamps="word")
    if all(chunk["aligned"] for chunks in aligned.chunks for chunk in chunks):
        assert torch.equal(model.generate(**inputs, max_new_tokens=12, drop_unsupported=True), plain)
    monkeypatch.setattr(timed_generation_soundwave, "LEAST_SUPPORT", 1.0)
    empty = model.generate(**inputs, max_new_tokens=12, drop_unsupported=True)
    assert torch.is_tensor(empty) and empty.shape[1] == begin
    output = model.generate(**inputs, max_new_tokens=12, drop_unsupported=True, return_timestamps="word")
    assert output.texts == ["", ""] and output.chunks == [[], []]


def support_no_word_of_the_first_row(monkeypatch):
    real, rows = timed_generation_soundwave.score_words, []

    def without_first_row(*arguments):
        words = real(*arguments)
        rows.append(words)
        for word in words:
            word.supported = len(rows) > 1
        return words

    monkeypatch.setattr(timed_generation_soundwave, "score_words", without_first_row)


def test_answers_without_their_words_are_padded_with_the_padding_id_of_the_call(model, processor, monkeypatch):
    support_no_word_of_the_first_row(monkeypatch)
    inputs = ask(processor, 1.0, 0.6)
    ids = model.generate(**inputs, max_new_tokens=12, drop_unsupported=True, pad_token_id=9)
    first, second = ids[:, inputs["input_ids"].shape[1] :].tolist()
    assert first == [9] * 12 and 9 not in second


def test_a_text_that_was_cut_off_has_no_end_token_where_its_words_were_left_out(model, processor, monkeypatch):
    support_no_word_of_the_first_row(monkeypatch)
    end = processor.tokenizer.eos_token_id
    inputs = ask(processor, 1.0, 0.6)
    options = {"max_new_tokens": 12, "eos_token_id": end, "pad_token_id": end, "suppress_tokens": [end]}
    ids = model.generate(**inputs, drop_unsupported=True, **options)[:, inputs["input_ids"].shape[1] :]
    assert end not in ids and ids.shape[1] == 12
    assert processor.batch_decode(ids, skip_special_tokens=True)[0] == ""
    assert finished(model, processor, ids, options) == [False, False]


def test_only_the_tokens_of_unsupported_words_are_taken_out(model, processor, monkeypatch):
    real = timed_generation_soundwave.score_words

    def without_second(*arguments):
        words = real(*arguments)
        for number, word in enumerate(words):
            word.supported = number != 1
        return words

    monkeypatch.setattr(timed_generation_soundwave, "score_words", without_second)
    inputs = ask(processor, 1.0)
    output = model.generate(**inputs, max_new_tokens=40, drop_unsupported=True, return_timestamps="word")
    whole = model.generate(**inputs, max_new_tokens=40, return_timestamps="word")
    words = [chunk["text"] for chunk in whole.chunks[0]]
    assert len(words) >= 2
    assert output.texts[0].split() == [piece for n, word in enumerate(words) if n != 1 for piece in word.split()]
    (kept,) = processor.batch_decode(output.sequences[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert kept.split() == output.texts[0].split()
    beams = model.generate(
        **inputs, max_new_tokens=40, drop_unsupported=True, num_beams=2, return_dict_in_generate=True
    )
    assert beams.beam_indices is None  # those of the library count the tokens that were taken out


def test_what_cannot_be_aligned_is_refused(model, processor):
    inputs = ask(processor, 1.0, 0.6)
    questions = {name: value for name, value in inputs.items() if name != "is_transcription"}
    with pytest.raises(ValueError, match="`return_timestamps` was given and row 0 is not a transcription request"):
        model.generate(**questions, return_timestamps="word")
    mixed = {**questions, "is_transcription": torch.tensor([True, False])}
    with pytest.raises(ValueError, match="`drop_unsupported` was given and row 1 is not a transcription request"):
        model.generate(**mixed, drop_unsupported=True)
    with pytest.raises(ValueError, match='`return_timestamps` is \'char\'; expected "word" or "segment"'):
        model.generate(**inputs, return_timestamps="char")
    for name in ("output_scores", "output_logits", "output_attentions", "output_hidden_states"):
        with pytest.raises(ValueError, match=f"`drop_unsupported` and `{name}` were given"):
            model.generate(**inputs, drop_unsupported=True, return_dict_in_generate=True, **{name: True})
    text = {"input_ids": torch.tensor([[5, 6]])}
    with pytest.raises(ValueError, match="`return_timestamps` was given without clips"):
        model.generate(**text, return_timestamps="word")
    two = processor(text=f"{processor.audio_token}{processor.audio_token}", audio=[noise(0.5)] * 2, sampling_rate=RATE)
    with pytest.raises(ValueError, match="row 0 holds 2 clips, but words are aligned with one"):
        model.generate(**two, is_transcription=[True], return_timestamps="word")


def test_defaults_leave_calls_without_a_transcription_request_alone(model, processor, monkeypatch):
    inputs = ask(processor, 1.0, 0.6)
    questions = {name: value for name, value in inputs.items() if name != "is_transcription"}
    text = {"input_ids": torch.tensor([[5, 6]])}
    plain = [model.generate(**given, max_new_tokens=4) for given in (questions, text)]
    for name, value in (("drop_unsupported", True), ("return_timestamps", "word")):
        with monkeypatch.context() as patch:
            patch.setattr(model.generation_config, name, value, raising=False)
            for given, ids in zip((questions, text), plain, strict=True):
                assert torch.equal(model.generate(**given, max_new_tokens=4), ids)
            found = model.generate(**inputs, max_new_tokens=4)
            asked = model.generate(**inputs, max_new_tokens=4, **{name: value})
            assert type(found) is type(asked)
            assert torch.equal(*(getattr(each, "sequences", each) for each in (found, asked)))
            with pytest.raises(ValueError, match=f"`{name}` was given and row 1 is not a transcription request"):
                model.generate(**questions, is_transcription=torch.tensor([True, False]), max_new_tokens=4)


@pytest.mark.parametrize("kind", ["word", "segment", True])
def test_the_pipeline_gives_chunks_of_the_whole_recording(folder, kind):
    transcribe = pipeline("soundwave-asr", model=folder)
    samples = noise(5.0, 3)
    plain = transcribe(samples, max_new_tokens=12)
    found = transcribe(samples, max_new_tokens=12, return_timestamps=kind)
    assert found["text"] == plain["text"] and sorted(found) == ["chunks", "text"]
    assert " ".join(chunk["text"] for chunk in found["chunks"]).split() == found["text"].split()
    flat = [time for chunk in found["chunks"] for time in chunk["timestamp"] if time is not None]
    assert flat == sorted(flat) and flat[-1] <= 5.0 and flat[-1] > 2.0  # of the last of three pieces
    again = transcribe([samples, noise(0.5)], max_new_tokens=12, return_timestamps=kind, batch_size=4)
    assert again[0]["text"] == found["text"]
    assert [chunk["timestamp"] for chunk in again[0]["chunks"]] == [chunk["timestamp"] for chunk in found["chunks"]]


def test_the_pipeline_refuses_other_times(folder):
    with pytest.raises(ValueError, match='`return_timestamps` is \'char\'; expected "word" or "segment"'):
        pipeline("soundwave-asr", model=folder)(noise(0.5), return_timestamps="char")
