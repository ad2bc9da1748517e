"""Joint decoding against its formula over every path, and as `generate` runs it."""

import json
import logging
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import DynamicCache, GenerationConfig, pipeline

from soundwave_hf import SoundwaveForConditionalGeneration, transcribe_clips
from soundwave_hf.evaluation.transcribe import model_system, run_rows
from soundwave_hf.modeling import decoding_soundwave
from soundwave_hf.modeling.ctc_text_soundwave import CTCText, ctc_form, find_tokenizer, vocabulary_bytes
from soundwave_hf.modeling.decoding_soundwave import MOST_MARKS, CTCLogitsProcessor, check_weight
from soundwave_hf.processing.text_soundwave import ctc_target
from tests.modeling.test_ctc_scores import BYTES, brute_force, frames_of
from tests.tiny import tiny_tokenizer


END = 6
SECONDS = [0.5, 1.9, 1.2]


class Bridge(CTCText):
    """A vocabulary of six labels, and the end token where the CTC has its blank."""

    def __init__(self, form: str = "as_written"):
        self.form, self.bytes_of = form, BYTES
        self.byte_labels = [1, 3, 4]
        self.token_of = {text: token for token, text in enumerate(BYTES) if text}


@pytest.mark.parametrize("text", ["Don’t! It's 9 o'clock, Ann-Marie.", "", "  two\n words ", "…", "straße ÉTÉ"])
@pytest.mark.parametrize("form", ["lower", "as_written"])
def test_labels_are_written_as_training_writes_them(form, text):
    assert ctc_form(text, form) == ctc_target(text, form)


def test_another_form_is_named():
    with pytest.raises(ValueError, match="is 'shouted'; expected one of"):
        CTCText(tiny_tokenizer(), "shouted")


@pytest.mark.parametrize(
    "answer, begun, finished",
    [
        ("", [b""], []),
        ("He was", [b" he was"], []),  # or " he wash"
        ("He was ", [b" he was "], [b" he was"]),
        ("He was,", [b" he was "], [b" he was"]),
        ('"', [b" "], [b""]),
        ("It don'", [b" it don ", b" it don'"], [b" it don"]),
        ("It don’t", [b" it don't"], []),
        ("Ann-", [b" ann "], [b" ann"]),
        ("Ann-Ma", [b" ann ma"], []),
    ],
)
def test_an_unfinished_answer_stands_for_what_it_may_become(answer, begun, finished):
    assert CTCText(tiny_tokenizer(), "lower").prefixes(answer) == (begun, finished)


def test_targets_as_written_keep_case_and_marks():
    bridge = CTCText(tiny_tokenizer(), "as_written")
    assert bridge.prefixes("He was, ") == ([b" He was, "], [])
    assert bridge.whole(" He was.\n") == b" He was."


def test_tokens_of_vocabularies_are_bytes_and_joined_they_are_the_text():
    tokenizer = tiny_tokenizer()
    text = "Ça va? 日本 it's 1 🎉."
    tokens = tokenizer(text, add_special_tokens=False).input_ids
    texts = vocabulary_bytes(tokenizer)
    assert b"".join(texts[token] for token in tokens) == text.encode()
    assert all(texts[token] == b"" for token in tokenizer.all_special_ids)
    bridge = CTCText(tokenizer, "lower")
    assert bridge.text_of(tokens[:1]) == ""  # half of a character
    assert bridge.text_of(tokens[:2]) == "Ç"


@pytest.mark.parametrize(
    "form, answer, added, has_label",
    [
        ("lower", "He was", ".", False),
        ("lower", "He was", "\n", False),
        ("lower", "He was.\n\n", "(", False),
        ("lower", "", ".", False),
        ("lower", "He was", "s", True),
        ("lower", "He was ", "4", True),
        ("lower", "He was", " ", True),  # " 42" is a space and two digits in many vocabularies
        ("lower", "He was,", " ", True),
        ("lower", "He was ", " ", False),
        ("lower", "", " ", True),
        ("lower", "don", "'", True),  # of "don't"
        ("lower", "don'", "'", False),
        ("lower", "He was ", "'", False),
        ("lower", "cafe", "\u0301", True),
        ("lower", "cafe ", "\u0301", False),
        ("lower", "你", "好", True),
        ("lower", "你", "。", False),
        ("lower", "la ", "♪", False),
        ("lower", "so ", "😀", False),
        ("lower_spelled", "It cost 42", "!", False),
        ("lower_spelled", "It cost 4", "2", True),
        ("lower_spelled", "It cost 1", ",", True),  # of "1,000"
        ("as_written", "He was", ".", True),
        ("as_written", "He was", " ", True),
        ("as_written", "He was ", "\n", False),
    ],
)
def test_marks_have_no_label_except_as_written(form, answer, added, has_label):
    tokenizer = tiny_tokenizer()
    bridge = CTCText(tokenizer, form)
    before = tokenizer(answer, add_special_tokens=False).input_ids
    parts = [bridge.token_of[bytes([byte])] for byte in added.encode()]
    found = [bridge.has_label(before + parts[:place], token) for place, token in enumerate(parts)]
    assert found == [False] * (len(parts) - 1) + [has_label]


class Clip:
    """CTC scores by hand: the head has heard "dead and", and takes the end for unlikely."""

    begun = {b" dead ": math.log(0.02), b" dead and": math.log(0.012), b" dead and ": math.log(0.012)}

    def prefix(self, text: bytes) -> float:
        return self.begun.get(text, -30.0)

    def whole(self, text: bytes) -> float:
        return math.log(0.0001) if text == b" dead" else -30.0

    def ended(self, text: bytes) -> float:
        return max(self.whole(text[:end]) for end in range(len(text) + 1))

    def continuations(self, text: bytes, count: int) -> list[bytes]:
        return [b" and"]


class WordBridge(Bridge):
    """A vocabulary of two words, two marks and the end."""

    def __init__(self):
        self.form, self.bytes_of = "lower", [b" dead", b" and", b".", b"\n", b""]
        self.token_of = {text: token for token, text in enumerate(self.bytes_of)}


def test_a_line_break_is_not_the_cheapest_token_where_the_llm_and_the_head_disagree():
    processor = CTCLogitsProcessor([Clip()], WordBridge(), 0.5, prompt_length=1, end_ids=[4])
    shares = torch.tensor([[1e-5, 0.01, 1e-5, 0.03, 0.87]])
    llm = (shares / shares.sum()).log()
    answer = torch.tensor([[9, 0, 2]])  # " dead."
    before = math.log(0.02 + 0.0001)
    end, word, line = (0.5 * value for value in (math.log(0.0001) - before, math.log(0.012) - before, 0.0))
    expected = {1: 0.5 * llm[0, 1].item() + word, 3: llm[0, 3].item() + line, 4: 0.5 * llm[0, 4].item() + end}
    found = processor(answer.repeat(2, 1), llm.repeat(2, 1))[0]  # two beams keep four tokens
    assert {token: found[token].item() for token in expected} == pytest.approx(expected, abs=1e-5)
    assert max(expected, key=expected.get) == int(processor(answer, llm).argmax()) == 1
    # At half of the price it would have won.
    assert 0.5 * llm[0, 3].item() + line > max(expected.values())


@pytest.mark.parametrize(
    "marks, chosen", [([3] * 7, 3), ([3] * 8, 1), ([2, 3] * 4, 1), ([3] * 7 + [1], 3), ([3] * 20, 1)]
)
def test_marks_in_a_row_are_limited(marks, chosen):
    processor = CTCLogitsProcessor([Clip()], WordBridge(), 0.5, prompt_length=1, end_ids=[4])
    llm = torch.tensor([[0.001, 0.003, 0.003, 0.99, 0.003]]).log()  # " dead", " and", ".", a line break, the end
    found = processor(torch.tensor([[9, 0, *marks]]), llm)[0]
    assert int(found.argmax()) == chosen
    assert MOST_MARKS == 8 and torch.isfinite(found).any()
    limited = chosen != 3
    assert all(math.isinf(value) for value in found[[2, 3]].tolist()) == limited


class Once(Clip):
    """A clip of "dead" alone: to say it twice is 12 nats less likely than to end, and each word more costs 1 nat."""

    def prefix(self, text: bytes) -> float:
        return -30.0 if b" and" in text else -(11.0 + text.count(b" dead")) if text.count(b" dead") > 1 else 0.0

    def whole(self, text: bytes) -> float:
        return -1.0 if text == b" dead" else -30.0


def next_scores(weight: float, answer: list[int], beams: int = 2, end: float = 1e-6) -> torch.Tensor:
    """Joint scores after an answer to `Once`, with an LLM that repeats itself."""
    processor = CTCLogitsProcessor([Once()], WordBridge(), weight, prompt_length=1, end_ids=[4])
    llm = torch.tensor([[0.9, 0.001, 0.001, 0.001, end]]).log()  # " dead", " and", ".", a line break, the end
    return processor(torch.tensor([[9, *answer]] * beams), llm.repeat(beams, 1))[-1]


@pytest.mark.parametrize(
    "weight, answer, goes_on",
    [
        (0.5, [], True),
        (0.3, [0], True),  # 12 nats times the weight: 3.6; the limit is 5
        (0.4, [0], True),
        (0.5, [0], False),
        (0.9, [0], False),
        (0.4, [0, 3], True),
        (0.5, [0, 3], False),  # a line break changes nothing
        (0.4, [0, 0], False),  # 13 nats: 5.2
        (0.3, [0, 0, 0, 0, 0], True),
        (0.3, [0, 0, 0, 0, 0, 0], False),
    ],
)
def test_an_answer_does_not_go_on_far_behind_the_same_answer_ended_earlier(weight, answer, goes_on):
    found = next_scores(weight, answer)
    assert (found[0] > -100) == goes_on
    assert torch.isfinite(found[[0, 4]]).all()  # beams beyond the best still have tokens to go on with
    greedy = next_scores(weight, answer, beams=1, end=0.01)
    assert goes_on or int(greedy.argmax()) not in (0, 1)  # but a mark, or the end


@pytest.mark.parametrize("weight", [0.3, 0.5, 0.9])
@pytest.mark.parametrize("answer", [[0], [0, 0], [0, 3, 0]])
def test_where_the_end_is_forbidden_scores_are_those_without_the_limit(weight, answer, monkeypatch):
    found = next_scores(weight, answer, end=0.0)  # as `min_new_tokens` leaves it
    monkeypatch.setattr(decoding_soundwave, "MOST_BEHIND", math.inf)
    assert found.tolist() == next_scores(weight, answer, end=0.0).tolist() and found[0] > -100


def test_a_character_of_several_tokens_is_finished():
    class Letters(WordBridge):
        def __init__(self):
            self.form, self.bytes_of = "lower", [b" dead", b" \xe5\xa5", b"\xbd", b"\n", b""]
            self.token_of = {text: token for token, text in enumerate(self.bytes_of)}

    bridge = Letters()
    assert [bridge.ends_inside_character(answer) for answer in ([], [0], [0, 1], [0, 1, 2])] == [
        False,
        False,
        True,
        False,
    ]
    processor = CTCLogitsProcessor([Once()], bridge, 0.9, prompt_length=1, end_ids=[4])
    llm = torch.tensor([[0.001, 0.001, 0.99, 0.001, 0.007]]).log()
    after_piece = processor(torch.tensor([[9, 0, 1]] * 2), llm.repeat(2, 1))[0]
    assert after_piece[2] > -100  # otherwise the answer would end in half of a character
    after_character = processor(torch.tensor([[9, 0, 1, 2]] * 2), llm.repeat(2, 1))[0]
    assert after_character[0] < -1000 and after_character[4] > -100


@pytest.mark.parametrize("answer", [[0], [2], [0, 3], [2, 2], [0, 3, 1]])
def test_the_limit_is_taken_from_the_sum_over_all_paths(answer, monkeypatch):
    monkeypatch.setattr(decoding_soundwave, "MOST_BEHIND", 0.5)
    frames, log_probs = frames_of(5)
    paths, bridge, weight = brute_force(log_probs.double()), Bridge(), 0.9

    def log_of(chosen) -> float:
        return math.log(sum(p for text, found in paths.items() if chosen(text) for _, p in found) or 1e-300)

    processor = CTCLogitsProcessor([bridge.texts(frames)], bridge, weight, prompt_length=0, end_ids=[END])
    written = b"".join(BYTES[token] for token in answer)
    text = ctc_form(written.decode(), "as_written").encode()
    least = max(log_of(text[:end].__eq__) for end in range(len(text) + 1)) - 0.5 / weight
    found = processor(torch.tensor([answer] * 4), torch.zeros(4, 7))[0]  # four beams keep every token
    for token in (0, 1, 2, 3):
        begun = ctc_form((written + BYTES[token]).decode(), "as_written").encode()
        assert (found[token] > -8000) == (log_of(lambda text, begun=begun: text.startswith(begun)) >= least)
    assert found[END] > -8000


def test_word_pieces_are_refused():
    from tests.tiny_models import tiny_tokenizer as words

    with pytest.raises(ValueError, match="do not mark where words begin"):
        vocabulary_bytes(words())


@pytest.mark.parametrize("weight", [0.3, 0.9])
@pytest.mark.parametrize("answer", [[], [2], [0, 3]])
def test_scores_of_tokens_are_the_formula_over_all_paths(weight, answer):
    frames, log_probs = frames_of(5)
    paths = brute_force(log_probs.double())
    bridge = Bridge()

    def begins(text: bytes) -> float:  # texts begin with a space, as the bridge writes them
        return math.log(sum(p for written, found in paths.items() if written.startswith(text) for _, p in found))

    processor = CTCLogitsProcessor([bridge.texts(frames)], bridge, weight, prompt_length=2, end_ids=[END])
    scores = torch.randn(1, 7, generator=torch.Generator().manual_seed(1))
    found = processor(torch.tensor([[9, 9, *answer]]), scores)[0]
    written = b"".join(BYTES[token] for token in answer)
    expected = {}
    for token, log_prob in enumerate(scores.log_softmax(dim=-1)[0].tolist()):
        text = ctc_form((written + BYTES[token]).decode(), "as_written").encode()
        text += b" " if token == 4 and text else b""
        after = math.log(sum(p for _, p in paths[written])) if token == END else begins(text)
        expected[token] = (1 - weight) * log_prob + weight * (after - begins(written))
    best = max(expected, key=expected.get)
    assert int(found.argmax()) == best
    for token, value in enumerate(found.tolist()):
        assert value == -math.inf or value == pytest.approx(expected[token], abs=1e-4)
    # For beams no token is left out that may be among twice as many.
    both = processor(torch.tensor([[9, 9, *answer]] * 2), scores.repeat(2, 1))[1]
    order = sorted(expected, key=expected.get, reverse=True)[:4]
    assert both[order].tolist() == pytest.approx([expected[token] for token in order], abs=1e-4)


@pytest.mark.parametrize("weight", [-0.1, 1, "0.3", True, math.nan])
def test_a_weight_that_is_none_is_named(weight):
    with pytest.raises(ValueError, match=f"`ctc_weight` is {weight!r}; expected"):
        CTCLogitsProcessor([None], Bridge(), weight, 0, [])


# ---- generate ----


def clips(*seconds: float) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    every = [random.normal(size=int(16_000 * length)).astype("float32") for length in SECONDS]
    return [every[SECONDS.index(length)] for length in seconds]


def ask(processor, *seconds: float):
    return processor.apply_transcription_request([(clip, 16_000) for clip in clips(*seconds)])


def answers(model, inputs, **options) -> list[list[int]]:
    options = {"max_new_tokens": 6, "do_sample": False, "ctc_weight": 0.6, "eos_token_id": 257} | options
    ids = model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
    return [[token for token in row if token != model.generation_config.pad_token_id] for row in ids.tolist()]


def test_the_ctc_head_changes_the_answer_and_weight_zero_does_not(model, processor):
    inputs = ask(processor, 1.9)
    plain = answers(model, inputs, ctc_weight=None)
    assert answers(model, inputs, ctc_weight=0) == plain
    assert answers(model, inputs, ctc_weight=0.9) != plain


@pytest.mark.parametrize("beams", [{}, {"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}])
def test_rows_of_a_padded_batch_get_what_each_gets_alone(model, processor, beams):
    together = answers(model, ask(processor, *SECONDS), **beams)
    alone = [row for length in SECONDS for row in answers(model, ask(processor, length), **beams)]
    assert [row[:6] for row in together] == [row[:6] for row in alone]


def test_a_beam_is_no_worse_than_greedy_by_the_joint_score(model, processor):
    inputs = ask(processor, 1.9)
    scored = {"return_dict_in_generate": True, "output_scores": True}
    greedy = model.generate(**inputs, **scored, max_new_tokens=4, min_new_tokens=4, do_sample=False, ctc_weight=0.5)
    beam = model.generate(
        **(inputs | scored), max_new_tokens=4, min_new_tokens=4, do_sample=False, ctc_weight=0.5, num_beams=4
    )
    total = sum(float(step[0].max()) for step in greedy.scores)
    assert float(beam.sequences_scores[0]) >= total / 4 - 1e-4


@torch.no_grad()
def test_beams_are_those_of_a_search_over_every_token(model, processor):
    inputs, bridge, weight = ask(processor, 1.9), CTCText(processor.tokenizer, "lower"), 0.5
    audio = model.get_audio_features(inputs["input_features"], inputs["input_features_mask"])
    texts = bridge.texts(model.model.ctc_frames(audio)[0])

    def ctc_score(answer: tuple) -> float:
        begun, finished = bridge.prefixes(bridge.text_of(list(answer)))
        return np.logaddexp.reduce([*map(texts.prefix, begun), *map(texts.whole, finished)])

    beams = [((), 0.0)]
    for _ in range(3):
        found = []
        for answer, score in beams:
            ids = torch.cat([inputs["input_ids"], torch.tensor([answer], dtype=torch.long)], dim=1)
            mask = torch.ones_like(ids)
            log_probs = model(**{**inputs, "input_ids": ids, "attention_mask": mask}).logits[0, -1].log_softmax(dim=-1)
            before = ctc_score(answer)
            for token in filter(bridge.writes, range(len(bridge.bytes_of))):
                change = min(ctc_score((*answer, token)) - before, 0.0)
                share = 1 - weight if bridge.has_label(list(answer), token) else 1
                own = share * log_probs[token].item() + weight * max(change, -1e4)
                found.append(((*answer, token), score + own))
        beams = sorted(found, key=lambda beam: -beam[1])[:3]
    options = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 3, "do_sample": False}
    ids = model.generate(**inputs, **options, ctc_weight=weight)[:, inputs["input_ids"].shape[1] :]
    assert ids.tolist() == [list(answer) for answer, _ in beams]


def test_the_weight_of_the_generation_config_is_the_default_and_is_saved(model, processor, tmp_path):
    inputs = ask(processor, 1.9)
    explicit = answers(model, inputs, ctc_weight=0.6)
    before = model.generation_config
    model.generation_config = GenerationConfig(ctc_weight=0.6, pad_token_id=before.pad_token_id)
    try:
        assert answers(model, inputs, ctc_weight=None) == explicit
        model.save_pretrained(tmp_path)
        loaded = SoundwaveForConditionalGeneration.from_pretrained(tmp_path)
        assert loaded.generation_config.ctc_weight == 0.6
        assert answers(loaded, inputs, ctc_weight=None, tokenizer=processor.tokenizer) == explicit
    finally:
        model.generation_config = before


def test_a_generation_config_of_the_call_keeps_the_defaults_it_does_not_set(model, processor, monkeypatch):
    inputs = ask(processor, 1.9)
    plain, joint = (answers(model, inputs, ctc_weight=weight) for weight in (None, 0.9))
    assert plain != joint
    monkeypatch.setattr(model.generation_config, "ctc_weight", 0.9, raising=False)
    own = GenerationConfig(max_new_tokens=6)
    assert answers(model, inputs, ctc_weight=None, generation_config=own) == joint
    assert answers(model, inputs, ctc_weight=0, generation_config=own) == plain
    own.ctc_weight = 0.0
    assert answers(model, inputs, ctc_weight=None, generation_config=own) == plain
    monkeypatch.setattr(model.generation_config, "do_sample", True)
    with pytest.raises(ValueError, match="`do_sample` is True"):
        model.generate(**inputs, ctc_weight=0.5, generation_config=GenerationConfig(max_new_tokens=6))


def test_a_default_weight_without_a_tokenizer_leaves_the_llm_alone_and_says_so(model, processor, monkeypatch, caplog):
    inputs = ask(processor, 1.9)
    plain = answers(model, inputs, ctc_weight=None)
    monkeypatch.setattr(model, "name_or_path", "")
    monkeypatch.setattr(model.generation_config, "ctc_weight", 0.9, raising=False)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    assert answers(model, inputs, ctc_weight=None) == plain
    assert "The LLM transcribes alone, without `ctc_weight` 0.9" in caplog.text


def test_looking_for_the_tokenizer_asks_nobody_to_run_code(tmp_path, monkeypatch):
    tiny_tokenizer().save_pretrained(tmp_path)
    # As in a process that has the model's code from its folder, and not this package.
    config = {"model_type": "unknown_here", "auto_map": {"AutoConfig": "configuration.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    questions = []
    monkeypatch.setattr("builtins.input", lambda question: questions.append(question) or "n")
    stranger = SimpleNamespace(config=SimpleNamespace(text_config=None), name_or_path=str(tmp_path))
    assert find_tokenizer(stranger).get_vocab() == tiny_tokenizer().get_vocab()
    assert questions == []


@pytest.mark.parametrize("options", [{"ctc_weight": 0.6}, {"hotwords": ["abc"]}, {"ctc_draft": "lossless"}])
@torch.no_grad()
def test_spare_rows_of_the_embedding_table_get_into_no_answer(folder, processor, options):
    model, vocabulary = SoundwaveForConditionalGeneration.from_pretrained(folder), len(processor.tokenizer)
    rows = model.resize_token_embeddings(vocabulary + 20, mean_resizing=False).weight
    rows[vocabulary:] = rows[180:200]
    inputs = ask(processor, 1.9)
    (frames,) = model.model.ctc_frames(model.get_audio_features(**inputs))
    assert frames.top_ids.max() >= vocabulary  # the CTC head knows no better
    (answer,) = answers(model, inputs, **options)
    assert answer and max(answer) < vocabulary


def test_a_kept_cache_that_holds_the_clip_changes_no_answer(model, processor):
    inputs = ask(processor, 1.9)
    cache = DynamicCache()
    first, second = (
        model.generate(**inputs, ctc_weight=0.9, max_new_tokens=6, do_sample=False, past_key_values=cache).tolist()
        for _ in range(2)
    )
    assert first == second
    options = {"return_timestamps": "word", "past_key_values": DynamicCache(), "max_new_tokens": 6, "do_sample": False}
    first, second = (model.generate(**inputs, **options) for _ in range(2))
    assert first.texts == second.texts
    for once, again in zip(first.chunks[0], second.chunks[0], strict=True):
        for name in once:  # rounding differs, because the passes have other lengths
            same = pytest.approx(again[name], rel=1e-4) if "probability" in name else again[name]
            assert once[name] == same


def test_where_only_control_tokens_are_allowed_they_are_taken(model, processor):
    inputs = ask(processor, 1.9)
    allowed = {"prefix_allowed_tokens_fn": lambda row, ids: [processor.tokenizer.eos_token_id]}
    found = answers(model, inputs, **allowed, eos_token_id=processor.tokenizer.eos_token_id)
    assert found == [[processor.tokenizer.eos_token_id]]


def test_numbers_of_numpy_are_weights():
    assert check_weight(np.float32(0.5)) == 0.5


def test_rows_that_ask_for_something_else_are_left_alone_by_a_default_weight(model, processor):
    inputs = ask(processor, 1.9, 0.5)
    plain, joint = (answers(model, inputs, ctc_weight=weight) for weight in (None, 0.9))
    model.generation_config.ctc_weight = 0.9
    try:
        unmarked = replace_marks(inputs, [False, True])
        assert answers(model, unmarked, ctc_weight=None) == [plain[0], joint[1]]
        assert answers(model, inputs, ctc_weight=None) == joint
    finally:
        del model.generation_config.ctc_weight


def replace_marks(inputs, marks: list[bool]):
    return {**inputs, "is_transcription": torch.tensor(marks)}


@pytest.mark.parametrize(
    "change, options, message",
    [
        ({"is_transcription": torch.tensor([True, False])}, {}, "row 1 is not a transcription of one clip"),
        ({"is_transcription": None}, {}, "no row is marked as a transcription"),
        ({}, {"do_sample": True}, "`do_sample` is True"),
        ({}, {"ctc_weight": -1}, "`ctc_weight` is -1; expected"),
        ({}, {"ctc_weight": 1.0}, "`ctc_weight` is 1.0; expected"),
    ],
)
def test_a_weight_that_cannot_be_used_is_refused(model, processor, change, options, message):
    inputs = {**ask(processor, 1.9, 0.5), **change}
    with pytest.raises(ValueError, match=message):
        answers(model, inputs, **options)


def test_text_alone_with_a_weight_is_refused(model, processor):
    inputs = {name: ask(processor, 1.9)[name] for name in ("input_ids", "attention_mask", "is_transcription")}
    inputs["input_ids"] = inputs["input_ids"].clone().masked_fill_(inputs["input_ids"] == processor.audio_token_id, 5)
    with pytest.raises(ValueError, match="the clips are missing"):
        answers(model, inputs)


@pytest.mark.parametrize("options", [{}, {"ctc_weight": None, "hotwords": ["one"]}])
def test_embeddings_in_place_of_clips_with_options_of_the_head_are_refused(model, processor, options):
    inputs = ask(processor, 1.9)
    kept = {name: inputs[name] for name in ("attention_mask", "is_transcription")}
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    with pytest.raises(ValueError, match="the clips are missing or already in `past_key_values` or `inputs_embeds`"):
        answers(model, {"inputs_embeds": embeds, **kept}, **options)


def test_a_model_that_cannot_find_its_tokenizer_asks_for_it(model, processor, monkeypatch):
    monkeypatch.setattr(model, "name_or_path", "")
    with pytest.raises(ValueError, match="tokenizer=processor.tokenizer"):
        answers(model, ask(processor, 1.9))
    assert answers(model, ask(processor, 1.9), tokenizer=processor.tokenizer)
    assert answers(model, ask(processor, 1.9), tokenizer=processor)


def test_prompt_lookup_drafts_give_the_tokens_of_joint_greedy(model, processor):
    inputs = ask(processor, 1.9)
    assert answers(model, inputs, prompt_lookup_num_tokens=3) == answers(model, inputs)


def test_the_pipeline_takes_the_options_of_the_ctc_head(model, processor):
    transcribe = pipeline(
        "soundwave-asr", model=model, tokenizer=processor.tokenizer, feature_extractor=processor.feature_extractor,
        processor=processor,
    )  # fmt: skip
    clip = {"raw": clips(1.9)[0], "sampling_rate": 16_000}
    joint = transcribe(clip, max_new_tokens=6, ctc_weight=0.9)
    assert joint == transcribe(clip, max_new_tokens=6, generate_kwargs={"ctc_weight": 0.9})
    assert joint != transcribe(clip, max_new_tokens=6)
    with pytest.raises(ValueError, match="`ctc_weight` is 2; expected"):
        transcribe(clip, ctc_weight=2)


def test_evaluation_and_transcripts_take_options_of_generate(model, processor):
    (clip,) = clips(1.9)
    inputs = ask(processor, 1.9)
    ids = model.generate(**inputs, max_new_tokens=6, do_sample=False, ctc_weight=0.9)
    (expected,) = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    options = {"max_new_tokens": 6, "generate": {"ctc_weight": 0.9}}
    rows = [{"audio": {"array": clip, "sampling_rate": 16_000}, "text": "x"}]
    found, _ = run_rows(model_system(model, processor, **options), rows, 1, "tiny")
    assert found[0].text == expected.strip()
    (transcript,) = transcribe_clips(model, processor, [(clip, 16_000)], **options)
    assert transcript.text == expected.strip()
    for name, message in (("ctc_wight", "Did you mean `ctc_weight`"), ("max_new_tokens", "not taken here")):
        with pytest.raises(ValueError, match=message):
            list(transcribe_clips(model, processor, [(clip, 16_000)], generate={name: 1}))


def test_joint_decoding_with_word_times_scores_the_vocabulary_once(model, processor, monkeypatch):
    inputs, calls, real = ask(processor, 1.9), [], model.model.ctc_frames
    monkeypatch.setattr(model.model, "ctc_frames", lambda audio: calls.append(1) or real(audio))
    output = model.generate(
        **inputs, max_new_tokens=6, do_sample=False, ctc_weight=0.6, return_timestamps="word", eos_token_id=257
    )
    assert len(calls) == 1
    new = output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    assert new[: len(answers(model, inputs)[0])] == answers(model, inputs)[0]


def test_options_without_a_default_come_from_the_generation_config_of_the_call_alone(model, processor, monkeypatch):
    inputs = ask(processor, 1.9)
    given = {"ctc_draft": "ctc", "ctc_weight": None}
    own = GenerationConfig(max_new_tokens=6, eos_token_id=257, ctc_draft="ctc")
    assert answers(model, inputs, ctc_weight=None, generation_config=own) == answers(model, inputs, **given)
    for name, value in {"ctc_draft": "nonsense", "hotwords": [""], "draft_entropy": -1}.items():
        with pytest.raises(ValueError, match=name):
            answers(model, inputs, generation_config=GenerationConfig(max_new_tokens=6, **{name: value}))
        with monkeypatch.context() as patch:
            patch.setattr(model.generation_config, name, value, raising=False)
            with pytest.raises(ValueError, match=f"The model's generation config holds `{name}`"):
                answers(model, inputs)
