"""`transcription_num_beams` of a generation config: the default number of beams of transcripts."""

import functools

import pytest
import torch
from transformers import DynamicCache, GenerationConfig, StoppingCriteriaList, TextStreamer, pipeline
from transformers.generation import GenerationMixin

from soundwave_hf import SoundwaveForConditionalGeneration, StreamingTranscriber, transcribe_clips
from soundwave_hf.evaluation.transcribe import model_system, run_rows
from tests.modeling.test_decoding import SECONDS, answers, ask, clips


@pytest.fixture
def beams(model, monkeypatch) -> int:
    monkeypatch.setattr(model.generation_config, "ctc_weight", 0.5, raising=False)
    monkeypatch.setattr(model.generation_config, "transcription_num_beams", 3, raising=False)
    return 3


@pytest.fixture
def used(model, monkeypatch) -> list[int | None]:
    """The `num_beams` of each call of the library's `generate`."""
    seen = []
    plain = GenerationMixin.generate

    @functools.wraps(plain)
    def generate(self, *args, **kwargs):
        seen.append(kwargs.get("num_beams"))
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(GenerationMixin, "generate", generate)
    return seen


def test_transcripts_are_those_of_as_many_beams(model, processor, beams):
    inputs = ask(processor, *SECONDS)
    assert answers(model, inputs) == answers(model, inputs, num_beams=beams)
    assert answers(model, inputs) != answers(model, inputs, num_beams=1)


def test_rows_of_a_batch_get_what_each_gets_alone(model, processor, beams):
    together = answers(model, ask(processor, *SECONDS))
    assert together == [row for length in SECONDS for row in answers(model, ask(processor, length))]


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 1},
        {"ctc_draft": "lossless", "ctc_weight": None},
        {"prompt_lookup_num_tokens": 3},
        {"guidance_scale": 1.5, "negative_prompt_ids": torch.tensor([[5, 7]])},
        {"generation_config": GenerationConfig(num_beams=1, max_new_tokens=6)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_another_search_stays_as_it_is(model, processor, monkeypatch, options):
    inputs = ask(processor, 1.9)
    before = answers(model, inputs, **options)
    monkeypatch.setattr(model.generation_config, "transcription_num_beams", 3, raising=False)
    assert answers(model, inputs, **options) == before


def test_sampling_and_streams_take_no_beams(model, processor, beams, used, capsys):
    inputs = ask(processor, 1.9)
    model.generate(**inputs, do_sample=True, max_new_tokens=2)
    model.generate(**inputs, streamer=TextStreamer(processor.tokenizer, skip_prompt=True), max_new_tokens=2)
    assert used == [None, None] and capsys.readouterr().out


def test_options_given_by_position_count_as_those_by_name(model, processor, beams, used, capsys):
    inputs = ask(processor, 1.9)
    streamer = TextStreamer(processor.tokenizer, skip_prompt=True)
    own = GenerationConfig(max_new_tokens=2)
    # inputs, generation_config, logits_processor, stopping_criteria, prefix_allowed_tokens_fn, synced_gpus,
    # assistant_model, streamer
    model.generate(None, own, None, None, None, None, None, streamer, **inputs)
    assert used == [None] and capsys.readouterr().out
    never = StoppingCriteriaList([lambda ids, scores: torch.ones(len(ids), dtype=torch.bool)])
    stopped = model.generate(None, own, None, never, **inputs)
    assert stopped.shape[1] < model.generate(None, own, **inputs).shape[1]
    with pytest.raises(TypeError, match="multiple values for argument 'stopping_criteria'"):
        model.generate(None, None, None, never, **inputs, stopping_criteria=never)
    with pytest.raises(TypeError, match="too many positional arguments"):
        model.generate(*[None] * 12, **inputs)


def test_a_kept_cache_takes_no_beams(model, processor, beams, used):
    cache = DynamicCache()
    model.generate(**ask(processor, 1.9), past_key_values=cache, max_new_tokens=2, do_sample=False)
    assert used == [None] and cache.layers[0].keys.shape[0] == 1


def test_questions_and_mixed_calls_are_greedy(model, processor, beams, used):
    inputs = ask(processor, 1.9, 0.5)
    for marks in (None, torch.tensor([False, False]), torch.tensor([True, False])):
        model.generate(**{**inputs, "is_transcription": marks}, max_new_tokens=2, do_sample=False)
    model.generate(**{**inputs, "is_transcription": torch.tensor([True, True])}, max_new_tokens=2, do_sample=False)
    assert used == [None, None, None, beams]


@pytest.mark.parametrize("options", [{"ctc_weight": 0}, {"generation_config": GenerationConfig(ctc_weight=0.0)}])
def test_the_llm_alone_is_greedy(model, processor, beams, used, options):
    model.generate(**ask(processor, 1.9), max_new_tokens=2, do_sample=False, **options)
    assert used == [None]


def test_the_number_in_the_generation_config_of_a_call_comes_first(model, processor, beams, used):
    own = GenerationConfig(transcription_num_beams=2, max_new_tokens=2)
    model.generate(**ask(processor, 1.9), generation_config=own, do_sample=False)
    assert used == [2]


def test_num_beams_of_the_model_comes_first(model, processor, beams, used, monkeypatch):
    monkeypatch.setattr(model.generation_config, "num_beams", 2)
    model.generate(**ask(processor, 1.9), max_new_tokens=2, do_sample=False)
    assert used == [None]


def test_a_call_is_asked_for_num_beams(model, processor):
    with pytest.raises(ValueError, match="`transcription_num_beams` is 2, but it is a default .* give `num_beams`"):
        answers(model, ask(processor, 1.9), transcription_num_beams=2)
    clip = {"array": clips(1.9)[0], "sampling_rate": 16_000}
    with pytest.raises(ValueError, match="It is a default of generation configs: give `num_beams`"):
        list(transcribe_clips(model, processor, [clip], generate={"transcription_num_beams": 2}))


def test_the_cache_of_beams_says_that_it_cannot_be_continued(model, processor, beams):
    inputs = ask(processor, 1.9)
    options = {"return_dict_in_generate": True, "max_new_tokens": 2, "do_sample": False}
    for more, is_kept in (({"num_beams": 1}, True), ({}, False)):
        found = model.generate(**inputs, **options, **more)
        longer = torch.cat([found.sequences, torch.tensor([[5]])], dim=1)
        turn = {"input_ids": longer, "past_key_values": found.past_key_values, "max_new_tokens": 2, "do_sample": False}
        if is_kept:
            assert model.generate(**turn).shape[1] > longer.shape[1]
        else:
            with pytest.raises(ValueError, match="A cache of beam search has a row for each beam"):
                model.generate(**turn)


@pytest.mark.parametrize("wrong", [0, -1, 2.0, True, "4"])
def test_a_wrong_number_is_named_where_it_is_read(model, processor, monkeypatch, wrong):
    monkeypatch.setattr(model.generation_config, "transcription_num_beams", wrong, raising=False)
    with pytest.raises(ValueError, match=f"`transcription_num_beams` of the generation config is {wrong!r}; expected"):
        answers(model, ask(processor, 1.9))
    chat = {**ask(processor, 1.9), "is_transcription": None}
    model.generate(**chat, max_new_tokens=2, do_sample=False)  # other calls do not read it


def test_the_number_is_saved_and_loaded(model, processor, beams, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = SoundwaveForConditionalGeneration.from_pretrained(tmp_path)
    inputs = ask(processor, 1.9)
    assert answers(loaded, inputs, tokenizer=processor.tokenizer) == answers(model, inputs, num_beams=beams)


def test_word_times_of_the_default_are_those_of_as_many_beams(model, processor, beams):
    options = {"return_timestamps": "word", "max_new_tokens": 6, "do_sample": False, "eos_token_id": 257}
    inputs = ask(processor, *SECONDS)
    own, asked = (model.generate(**inputs, **options, **more) for more in ({}, {"num_beams": beams}))
    assert own.texts == asked.texts and own.chunks == asked.chunks
    assert own.probabilities.tolist() == asked.probabilities.tolist()


def test_transcripts_evaluation_and_the_pipeline_use_it(model, processor, beams, used):
    clip = {"array": clips(1.9)[0], "sampling_rate": 16_000}
    list(transcribe_clips(model, processor, [clip], max_new_tokens=2))
    run_rows(model_system(model, processor, max_new_tokens=2), [{"audio": clip, "text": "a"}], 1, "clips")
    transcribe = pipeline(
        "soundwave-asr", model=model, tokenizer=processor.tokenizer, feature_extractor=processor.feature_extractor,
        processor=processor,
    )  # fmt: skip
    transcribe({"raw": clip["array"], "sampling_rate": 16_000}, max_new_tokens=2)
    assert used == [beams] * 3


def test_live_text_is_greedy_unless_beams_are_given(model, processor, beams, used):
    for options in ({}, {"generate": {"ctc_weight": 0.5}}, {"generate": {"num_beams": 2}}):
        used.clear()
        live = StreamingTranscriber(model, processor, sampling_rate=16_000, max_new_tokens=2, **options)
        live.feed(clips(1.9)[0])
        live.finish()
        assert used and set(used) == {options.get("generate", {}).get("num_beams", 1)}
