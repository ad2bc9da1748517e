"""Drafts of the CTC head: the ids of greedy decoding, in fewer passes of the LLM."""

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from soundwave_hf import SoundwaveForConditionalGeneration
from soundwave_hf.modeling.ctc_text_soundwave import CTCText
from soundwave_hf.modeling.decoding_soundwave import CTCDecoding
from soundwave_hf.modeling.drafts_soundwave import Draft, draft_of
from tests.modeling.test_decoding import SECONDS, ask
from tests.tiny import tiny_tokenizer
from tests.tiny_models import save_tiny_soundwave


GREEDY = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": 257}


@pytest.fixture(scope="module")
def bridge():
    return CTCText(tiny_tokenizer(), "lower")


def ids_of(bridge, text: str) -> list[int]:
    return bridge.tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize(
    "written, rest",
    [
        ("", "He was not a young man."),
        ("He", " was not a young man."),
        ("He wa", "s not a young man."),
        ("He was never", " a young man."),  # another word for "not": the next word in common is "a"
        ("He was not not", " a young man."),
        ("Was not", " a young man."),
        ("He was not a young man.", ""),
        ("He was not a young man. And", ""),
        ("He is not, ", "a young man."),
    ],
)
def test_a_draft_goes_on_at_the_next_word_in_common(bridge, written, rest):
    draft = draft_of(bridge, ids_of(bridge, " he was not a young man"), entropy=1.0)
    tokens = draft.tokens(bridge, ids_of(bridge, written))
    assert bridge.text_of(tokens) == rest


def test_words_of_a_long_draft_are_found_from_the_last_ones(bridge):
    words = [f"word{number}" for number in range(100)]
    draft = Draft(words, entropy=1.0)
    draft.tokens(bridge, ids_of(bridge, " ".join(words[:20])))
    tokens = draft.tokens(bridge, ids_of(bridge, " ".join([*words[:30], "other"])))
    assert bridge.text_of(tokens).split()[0] == "word31"


def passes(model):
    counts = []
    return counts, model.model.language_model.register_forward_hook(lambda *_: counts.append(1))


def answers(model, inputs, **options) -> tuple[list[list[int]], int]:
    counts, hook = passes(model)
    try:
        ids = model.generate(**inputs, **{**GREEDY, **options})[:, inputs["input_ids"].shape[1] :]
    finally:
        hook.remove()
    pad = model.generation_config.pad_token_id or 0
    rows = [row[: row.index(257) + 1] if 257 in row else row for row in ids.tolist()]
    return [[token for token in row if token != pad] for row in rows], len(counts)


@pytest.mark.parametrize("ends", [[257], (257,), torch.tensor(257), torch.tensor([257, 256])], ids=repr)
@pytest.mark.parametrize("options", [{"ctc_draft": "ctc"}, {"ctc_weight": 0.6}], ids=repr)
def test_end_tokens_come_in_any_form_that_generate_takes(model, processor, ends, options):
    inputs = ask(processor, 1.9)
    assert answers(model, inputs, eos_token_id=ends, **options) == answers(model, inputs, **options)


@pytest.mark.parametrize("weight", [None, 0.5, 0.95])
def test_lossless_drafts_give_the_ids_of_greedy_decoding(model, processor, weight):
    for seconds in ([1.9], SECONDS):
        inputs = ask(processor, *seconds)
        plain, plain_passes = answers(model, inputs, ctc_weight=weight)
        drafted, drafted_passes = answers(model, inputs, ctc_weight=weight, ctc_draft="lossless")
        assert drafted == plain
        assert drafted_passes <= plain_passes


class Known:
    """A draft that knows the answer but for some tokens."""

    entropy = 1.0

    def __init__(self, answer: list[int], wrong: tuple[int, ...] = ()):
        self.answer = [7 if place in wrong else token for place, token in enumerate(answer)]

    def tokens(self, bridge, answer):
        return self.answer[len(answer) :]


def give_drafts(monkeypatch, drafts: list):
    monkeypatch.setattr(CTCDecoding, "_draft", lambda self, audio, frames, clip: drafts[clip])


def test_a_draft_that_is_right_takes_one_pass(model, processor, monkeypatch):
    inputs = ask(processor, *SECONDS)
    plain, num_passes = answers(model, inputs)
    assert num_passes == 12
    give_drafts(monkeypatch, [Known(row) for row in plain])
    assert answers(model, inputs, ctc_draft="lossless") == (plain, 1)


@pytest.mark.parametrize("wrong", [[(0,), (), (3,)], [(11,), (2, 5), (1, 2, 3)], [(), (0, 1, 2, 3, 4, 5, 6), (8,)]])
def test_refused_tokens_leave_nothing_behind_for_later_ones(model, processor, monkeypatch, wrong):
    for seconds in (SECONDS, SECONDS[1:2]):
        inputs = ask(processor, *seconds)
        plain, _ = answers(model, inputs)
        places = [wrong[SECONDS.index(length)] for length in seconds]
        give_drafts(monkeypatch, [Known(row, own) for row, own in zip(plain, places, strict=True)])
        drafted, num_passes = answers(model, inputs, ctc_draft="lossless")
        assert drafted == plain
        # The first pass, and one more behind each wrong token, but the last.
        assert num_passes == max(1 + sum(place < 11 for place in own) for own in places)


# Layers with a recurrent state, and layers with a convolution.
WITH_STATE = {
    "qwen3_5_text": {
        **{"linear_num_key_heads": 1, "linear_num_value_heads": 2},
        **{
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"],
        },
    },
    "lfm2": {"block_ff_dim": 32, "block_multiple_of": 8, "layer_types": ["conv", "full_attention"]},
}


def model_with(folder, llm: str, **fields):
    return SoundwaveForConditionalGeneration.from_pretrained(save_tiny_soundwave(folder, llm=llm, **fields))


@pytest.mark.parametrize("llm", WITH_STATE)
def test_drafts_are_refused_for_an_llm_whose_state_refused_tokens_would_change(tmp_path, processor, llm):
    model, inputs = model_with(tmp_path, llm, **WITH_STATE[llm]), ask(processor, 1.9)
    for mode in ("lossless", "fast"):
        with pytest.raises(ValueError, match=rf"{llm}\) has layers that do not keep every position.* `ctc_draft` out"):
            answers(model, inputs, ctc_draft=mode)
    assert answers(model, inputs, ctc_draft="ctc")[1] == 0  # passes of the LLM


def test_prompt_lookup_is_refused_for_an_llm_with_a_recurrent_state(tmp_path, processor):
    model = model_with(tmp_path, "qwen3_5_text", **WITH_STATE["qwen3_5_text"])
    with pytest.raises(ValueError, match="not supported with stateful models"):
        answers(model, ask(processor, 1.9), prompt_lookup_num_tokens=4)


def test_drafts_are_lossless_while_prompt_and_answer_fit_a_sliding_window(tmp_path, processor, monkeypatch):
    inputs = ask(processor, *SECONDS)
    model = model_with(tmp_path / "wide", "mistral", sliding_window=1000)
    prompt = model.generate(**inputs, max_new_tokens=1, return_dict_in_generate=True).past_key_values.get_seq_length()
    for spare in range(0, 24, 3):  # positions for refused tokens
        model = model_with(tmp_path / str(spare), "mistral", sliding_window=prompt + 12 + spare)
        plain, _ = answers(model, inputs)
        give_drafts(monkeypatch, [Known(row, (0, 2, 3, 7)) for row in plain])
        assert answers(model, inputs, ctc_draft="lossless")[0] == plain
    message = f"window of {prompt + 33} positions. The prompt has {prompt} and the answer may have 34, .* `max_new_tok"
    with pytest.raises(ValueError, match=message):
        answers(model, inputs, ctc_draft="lossless", max_new_tokens=34)


def test_the_ctc_transcript_alone_needs_no_pass_of_the_llm(model, processor):
    inputs = ask(processor, *SECONDS)
    found, num_passes = answers(model, inputs, ctc_draft="ctc", max_new_tokens=200)
    assert num_passes == 0
    audio = model.get_audio_features(inputs["input_features"], inputs["input_features_mask"])
    bridge = CTCText(processor.tokenizer, "lower")
    for row, (best, length) in enumerate(zip(audio.ctc_best, audio.num_frames.tolist(), strict=True)):
        labels = torch.unique_consecutive(best[:length]).tolist()
        heard = bridge.text_of([label for label in labels if label != processor.audio_token_id]).strip()
        written = bridge.text_of(found[row])
        assert written.rstrip(".").lower() == heard and written[:1].isupper() == heard[:1].isalpha()


def test_sure_transcripts_are_taken_unseen_and_others_are_checked(model, processor, monkeypatch):
    inputs = ask(processor, 1.9, 0.5)
    plain, _ = answers(model, inputs)
    drafts = [Known(plain[0], (4,)), Known(plain[1], (2, 3))]
    give_drafts(monkeypatch, drafts)
    fast = {"ctc_draft": "fast", "draft_entropy": 1.0}
    assert answers(model, inputs, **fast) == ([draft.answer for draft in drafts], 0)  # no pass at all
    drafts[0].entropy = 1.1
    unseen, num_passes = answers(model, inputs, **fast, draft_probability=1.0)
    assert unseen == [plain[0], drafts[1].answer] and num_passes == 2
    drafts[1].entropy = 1.1
    assert answers(model, inputs, **fast, draft_probability=1.0)[0] == plain
    lenient, num_passes = answers(model, inputs, **fast, draft_probability=0.0)
    assert [row[:11] for row in lenient] == [draft.answer[:11] for draft in drafts] and num_passes == 1


@pytest.mark.parametrize("options", [{"ctc_draft": "ctc"}, {"ctc_draft": "fast", "draft_entropy": 9.0}])
def test_a_transcript_that_the_limit_cuts_has_no_end_token(model, processor, monkeypatch, options):
    inputs = ask(processor, 1.9, 0.5)
    give_drafts(monkeypatch, [Known([3, 4, 5]), Known([3, 4, 5, 6, 8])])
    expected = {2: [[3, 4], [3, 4]], 3: [[3, 4, 5], [3, 4, 5]], 4: [[3, 4, 5, 257], [3, 4, 5, 6]]}
    for room, rows in expected.items():
        assert answers(model, inputs, **options, max_new_tokens=room) == (rows, 0)
    assert answers(model, inputs, **options, max_new_tokens=9)[0] == [[3, 4, 5, 257], [3, 4, 5, 6, 8, 257]]


def test_a_row_that_the_clock_cuts_before_the_others_has_no_end_token(model, processor, monkeypatch):
    inputs = ask(processor, 1.9, 0.5)
    plain, _ = answers(model, inputs)
    give_drafts(monkeypatch, [Known(plain[0], (6,)), Known(plain[1], (0,))])  # 7 tokens and 1 in the first pass
    ids = model.generate(**inputs, **GREEDY, pad_token_id=257, ctc_draft="lossless", max_time=1e-9)
    found = ids[:, inputs["input_ids"].shape[1] :]
    assert found.shape == (2, 7) and 257 not in found
    assert found[0].tolist() == plain[0][:7] and found[1, 0] == plain[1][0]


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.5},
        {"repetition_penalty": 1.2, "no_repeat_ngram_size": 2},
        {"bad_words_ids": [[5]], "min_new_tokens": 9},
        {"suppress_tokens": [4, 9], "begin_suppress_tokens": [3], "repetition_penalty": 1.3},
        {"sequence_bias": [[[7], 3.0]], "exponential_decay_length_penalty": (4, 1.2), "renormalize_logits": True},
    ],
)
def test_processors_of_the_library_see_each_row_as_in_greedy_decoding(model, processor, options):
    for seconds in (SECONDS, SECONDS[:1]):  # rows with padding, and one without
        inputs = ask(processor, *seconds)
        for weight in (None, 0.5):
            plain, _ = answers(model, inputs, ctc_weight=weight, **options)
            assert answers(model, inputs, ctc_weight=weight, ctc_draft="lossless", **options)[0] == plain


def test_processors_that_may_need_the_whole_batch_are_refused_there(model, processor):
    class Own(LogitsProcessor):
        def __call__(self, input_ids, scores):
            return scores

    allowed = [[50, 253], [101, 102], [7, 8], [9, 10]]
    for options in (
        {"prefix_allowed_tokens_fn": lambda row, ids: allowed[row]},
        {"logits_processor": LogitsProcessorList([Own()])},
    ):
        with pytest.raises(ValueError, match="may need the whole batch"):
            answers(model, ask(processor, *SECONDS), ctc_draft="lossless", **options)
        inputs = ask(processor, SECONDS[0])
        assert answers(model, inputs, ctc_draft="lossless", **options)[0] == answers(model, inputs, **options)[0]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"ctc_draft": "lossless", "cache_implementation": "static"}, "`cache_implementation` is 'static'"),
        ({"ctc_draft": "lossles"}, "'lossles'; expected one of"),
        ({"ctc_draft": "lossless", "num_beams": 2}, "`num_beams` is 2"),
        ({"ctc_draft": "lossless", "do_sample": True}, "`do_sample` is True"),
        ({"ctc_draft": "lossless", "return_dict_in_generate": True}, "`return_dict_in_generate` is True"),
        ({"ctc_draft": "lossless", "draft_entropy": 0.5}, "`draft_entropy` is 0.5"),
        ({"ctc_draft": "fast", "draft_probability": -1}, "`draft_probability` is -1"),
        ({"draft_entropy": 0.5}, 'ctc_draft="fast"'),
        ({"ctc_draft": "fast", "prompt_lookup_num_tokens": 2}, "leave one of them out"),
    ],
)
def test_drafts_that_cannot_be_used_are_refused(model, processor, options, message):
    with pytest.raises(ValueError, match=message):
        answers(model, ask(processor, 0.5), **options)


@pytest.mark.parametrize("weight", [0, 0.5])
def test_words_of_lossless_drafts_have_the_times_and_scores_of_greedy_ones(model, processor, weight):
    inputs = ask(processor, *SECONDS)
    options = {**GREEDY, "ctc_weight": weight, "return_timestamps": "word"}
    plain = model.generate(**inputs, **options)
    drafted = model.generate(**inputs, ctc_draft="lossless", **options)
    assert torch.equal(drafted.sequences, plain.sequences) and drafted.texts == plain.texts
    torch.testing.assert_close(drafted.probabilities, plain.probabilities, rtol=1e-3, atol=1e-6)
    for found, expected in zip(drafted.chunks, plain.chunks, strict=True):
        assert [chunk["timestamp"] for chunk in found] == [chunk["timestamp"] for chunk in expected]
        known = [chunk["llm_probability"] for chunk in found]
        assert known == pytest.approx([chunk["llm_probability"] for chunk in expected], rel=1e-3, abs=1e-6)


def test_words_of_a_draft_that_the_llm_did_not_check_have_no_probability_by_it(model, processor, monkeypatch):
    monkeypatch.setattr(CTCDecoding, "_draft", lambda *given: Draft(["He", "was."], entropy=1.0))
    inputs = ask(processor, *SECONDS)
    ids = model.generate(**inputs, **GREEDY, ctc_draft="ctc")
    output = model.generate(**inputs, **GREEDY, ctc_draft="ctc", return_timestamps="word")
    assert torch.equal(output.sequences, ids)
    assert output.texts == ["He was."] * 3 and all(len(chunks) == 2 for chunks in output.chunks)
    assert all(chunk["llm_probability"] is None for chunks in output.chunks for chunk in chunks)
    unsure = model.generate(**inputs, **GREEDY, ctc_draft="fast", draft_entropy=0, return_timestamps="word")
    assert all(chunk["llm_probability"] > 0 for chunks in unsure.chunks for chunk in chunks)


def test_unsupported_words_of_drafts_can_be_left_out(model, processor):
    inputs = ask(processor, *SECONDS)
    plain = model.generate(**inputs, **GREEDY, drop_unsupported=True)
    assert torch.equal(model.generate(**inputs, **GREEDY, ctc_draft="lossless", drop_unsupported=True), plain)


@pytest.mark.parametrize("name", ["output_scores", "output_logits", "output_attentions", "output_hidden_states"])
def test_outputs_that_drafts_do_not_have_are_refused_with_word_times_too(model, processor, name):
    with pytest.raises(ValueError, match=f"`{name}` is True"):
        answers(model, ask(processor, 0.5), ctc_draft="lossless", return_timestamps="word", **{name: True})
