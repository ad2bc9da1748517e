"""The number of LLM positions of a clip is what the call, or the generation config, allows."""

import math

import numpy as np
import pytest
import torch
from transformers import DynamicCache, GenerationConfig, pipeline

from soundwave_hf import SoundwaveForConditionalGeneration, transcribe_clips
from soundwave_hf.evaluation.transcribe import model_system, run_rows
from soundwave_hf.modeling.positions_soundwave import (
    PositionLimits,
    added_frames,
    find_position_limits,
    shortest_blanks,
)
from tests.tiny_models import make_clips, tiny_model


FRAME = 0.04  # seconds


def limits(least=None, most=None, keep_blanks=None) -> PositionLimits:
    return PositionLimits(keep_blanks, least, most)


@pytest.mark.parametrize(
    ("given", "frames", "expected"),
    [
        ((None, None), 50, (1, 50)),
        ((2, 5), 50, (4, 10)),  # 2 s
        ((2.1, 5.4), 50, (5, 10)),  # rounded inwards
        ((5, 5), 30, (6, 6)),  # 1.2 s
        ((5, 5), 28, (5, 5)),  # 5.6 is both: the highest number is valid
        ((0, 0), 50, (1, 50)),
        ((None, 0.1), 50, (1, 1)),  # a clip keeps a position
        ((25, None), 50, (50, 50)),
    ],
)
def test_limits_count_whole_positions_of_a_clip(given, frames, expected):
    assert limits(*given).bounds(frames, FRAME) == expected


def test_more_frames_halve_the_longest_gaps():
    assert added_frames([0], 9, 1) == [4]
    assert sorted(added_frames([0], 9, 3)) == [2, 4, 6]
    assert sorted(added_frames([3], 5, 4)) == [0, 1, 2, 4]  # every frame


def test_the_shortest_runs_of_blanks_go_first():
    # Runs: blank 0-3, word 4, blank 5, word 6-7, blank 8-9.
    kept, is_blank = [0, 4, 5, 6, 8], [True] * 4 + [False, True, False, False, True, True]
    assert shortest_blanks(kept, is_blank, 10, 1) == [5]
    assert shortest_blanks(kept, is_blank, 10, 2) == [5, 8]
    assert shortest_blanks(kept, is_blank, 10, 9) == [5, 8, 0]


def test_a_clip_with_too_many_positions_loses_blanks_and_one_with_too_few_gains_frames():
    keep = torch.tensor([[1, 1, 1, 0, 1], [1, 0, 0, 0, 0]]).bool()
    is_blank = torch.tensor([[0, 1, 0, 0, 0], [1, 1, 1, 1, 1]]).bool()
    chosen = limits(least=10, most=15).choose(keep, is_blank, torch.tensor([5, 5]), FRAME)  # 2 and 3 of 0.2 s
    assert chosen.int().tolist() == [[1, 0, 1, 0, 1], [1, 0, 1, 0, 0]]
    assert keep[0].sum() == 4  # the given mask did not change


def test_positions_that_are_most_like_the_one_before_them_are_left_out():
    first, second = torch.tensor([[1.0, 0.0], [3.0, 0.1], [0.0, 2.0]]), torch.tensor([[1.0, 1.0], [0.0, 4.0]])
    both, frames = torch.cat([first, second]), torch.tensor([5, 5])
    kept, number = limits(most=10).leave_out(both, torch.tensor([3, 2]), frames, FRAME)  # 2 positions of 0.2 s
    assert kept.tolist() == [[1.0, 0.0], [0.0, 2.0], [1.0, 1.0], [0.0, 4.0]] and number.tolist() == [2, 2]
    kept, number = limits(most=5).leave_out(first, torch.tensor([3]), frames[:1], FRAME)
    assert number.tolist() == [1] and kept.tolist() == [[1.0, 0.0]]


def test_the_first_position_of_a_clip_is_not_compared_with_the_last_of_the_clip_before():
    same = torch.ones(4, 2)
    kept, number = limits(most=5).leave_out(same, torch.tensor([1, 3]), torch.tensor([5, 10]), FRAME)
    assert number.tolist() == [1, 2] and len(kept) == 3


@pytest.mark.parametrize(
    ("compat", "given"),
    [
        ("paper", {"most": 4}),
        ("published", {"most": 4}),
        ("paper", {"least": 24}),
        ("published", {"least": 24}),
        ("paper", {"keep_blanks": False}),
        ("paper", {"keep_blanks": False, "least": 9, "most": 10}),
    ],
)
def test_a_model_gives_each_clip_of_a_batch_what_it_gets_alone(compat, given):
    model, frames = tiny_model(compat=compat), [80, 51, 3]
    features, mask = make_clips(frames)
    chosen = limits(**given)
    with torch.no_grad():
        plain = model.get_audio_features(features, mask)
        together = model.get_audio_features(features, mask, position_limits=chosen)
        alone = [
            model.get_audio_features(features[[clip], :, :length], mask[[clip], :length], position_limits=chosen)
            for clip, length in enumerate(frames)
        ]
    assert together.num_positions.tolist() == [one.num_positions.item() for one in alone]
    found = torch.cat([one.pooler_output for one in alone])
    torch.testing.assert_close(together.pooler_output, found, rtol=1e-4, atol=1e-5)
    for number, length in zip(together.num_positions, plain.num_frames, strict=True):
        least, most = chosen.bounds(int(length), FRAME)
        assert least <= number <= most
    assert together.num_positions.tolist() != plain.num_positions.tolist()
    assert torch.equal(together.ctc_best, plain.ctc_best)  # the CTC head still scores all frames


def test_without_limits_nothing_changes():
    model, clips = tiny_model(), make_clips([80, 51])
    with torch.no_grad():
        plain, same = (model.get_audio_features(*clips, position_limits=one) for one in (None, limits(1, 25)))
    assert torch.equal(plain.pooler_output, same.pooler_output)


def test_blanks_that_a_model_leaves_out_can_be_kept():
    model, clips = tiny_model(keep_blanks=False), make_clips([80])
    kept = tiny_model(keep_blanks=True).get_audio_features(*clips).num_positions
    assert model.get_audio_features(*clips, position_limits=limits(keep_blanks=True)).num_positions == kept
    assert model.get_audio_features(*clips).num_positions < kept


def test_forward_takes_them_with_gradients():
    model = tiny_model()
    features, mask = make_clips([80])
    ids = torch.tensor([[3, model.config.audio_token_id, 4]])
    output = model(ids, features, mask, labels=ids, position_limits=limits(most=4))
    output.loss.backward()
    assert output.num_positions.tolist() == [3] and model.model.shrinking_adapter.norm.weight.grad.abs().sum() > 0


# ---- generate ----


FRAMES = 50  # the clip of 1.9 s and 0.1 s of silence


@pytest.fixture(scope="module")
def clip():
    """Tones of 0.1 s, so that the tiny CTC head finds many runs."""
    random, times = np.random.default_rng(0), np.arange(1600) / 16_000
    tones = zip(random.uniform(100, 4000, 19), random.uniform(0.01, 1, 19), strict=True)
    return np.concatenate([loud * np.sin(2 * np.pi * hertz * times) for hertz, loud in tones]).astype("float32")


@pytest.fixture
def inputs(processor, clip):
    return processor.apply_transcription_request([(clip, 16_000)])


def answer(model, inputs, **options) -> tuple[list[int], int]:
    """The ids of the answer, and how many positions the LLM got for the clip."""
    output = model.generate(
        **inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True, pad_token_id=0, **options
    )
    answer = output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    return answer, output.past_key_values.prompt.num_added + 1


def test_generate_gives_the_llm_so_many_positions(model, inputs):
    plain, number = answer(model, inputs)
    capped, few = answer(model, inputs, max_positions_per_second=3)
    assert number > 8 and few == math.floor(3 * FRAMES * FRAME) == 6
    assert answer(model, inputs, min_positions_per_second=25)[1] == FRAMES
    assert answer(model, inputs, max_positions_per_second=25) == (plain, number)
    assert answer(model, inputs, keep_blanks=False)[1] < number


def test_the_generation_config_has_the_default_and_a_call_comes_first(model, inputs, tmp_path):
    plain, explicit = answer(model, inputs), answer(model, inputs, max_positions_per_second=3)
    given = GenerationConfig(max_positions_per_second=3)
    assert answer(model, inputs, generation_config=given)[1] == explicit[1]
    model.generation_config.max_positions_per_second = 3
    try:
        assert answer(model, inputs) == explicit
        assert answer(model, inputs, max_positions_per_second=0) == plain
        text = {"input_ids": torch.tensor([[5, 6]])}
        assert model.generate(**text, max_new_tokens=1).shape == (1, 3)  # no clips: nothing to limit
        model.save_pretrained(tmp_path)
    finally:
        del model.generation_config.max_positions_per_second
    assert answer(SoundwaveForConditionalGeneration.from_pretrained(tmp_path), inputs) == explicit


def test_word_times_joint_decoding_and_drafts_work_with_few_positions(model, inputs):
    few = {"max_positions_per_second": 3, "max_new_tokens": 4, "do_sample": False}
    ids = model.generate(**inputs, **few, ctc_weight=0.5)
    assert torch.equal(model.generate(**inputs, **few, ctc_weight=0.5, ctc_draft="lossless"), ids)
    timed = model.generate(**inputs, **few, ctc_weight=0.5, return_timestamps="word")
    assert torch.equal(timed.sequences, ids) and len(timed.clips[0].frames) == FRAMES


def test_a_next_turn_with_another_limit_reads_the_clip_again(model, inputs):
    cache = DynamicCache(config=model.config.text_config)
    first = model.generate(**inputs, max_new_tokens=2, do_sample=False, past_key_values=cache, pad_token_id=0)
    turn = {**inputs, "input_ids": torch.cat([first, torch.tensor([[5]])], dim=1)}
    turn["attention_mask"] = torch.ones_like(turn["input_ids"])
    expected = answer(model, turn, max_positions_per_second=3)
    assert answer(model, turn, max_positions_per_second=3, past_key_values=cache) == expected
    assert answer(model, turn, past_key_values=cache) == answer(model, turn)


def test_a_next_turn_without_its_clips_keeps_their_positions(model, inputs):
    cache = DynamicCache(config=model.config.text_config)
    few = {"max_positions_per_second": 3}
    first = model.generate(**inputs, **few, max_new_tokens=2, do_sample=False, past_key_values=cache, pad_token_id=0)
    turn = {"input_ids": torch.cat([first, torch.tensor([[5]])], dim=1)}
    assert answer(model, turn, past_key_values=cache)[1] == 6
    with pytest.raises(ValueError, match="`max_positions_per_second` is 3, but no clips were given"):
        answer(model, turn, past_key_values=cache, **few)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_positions_per_second": -1}, "`max_positions_per_second` is -1; expected a number above 0, or 0"),
        ({"max_positions_per_second": "6"}, "`max_positions_per_second` is '6'; expected"),
        ({"max_positions_per_second": math.nan}, "`max_positions_per_second` is nan; expected"),
        ({"min_positions_per_second": True}, "`min_positions_per_second` is True; expected"),
        ({"min_positions_per_second": math.inf}, "`min_positions_per_second` is inf; expected"),
        ({"min_positions_per_second": 26}, "`min_positions_per_second` is 26, but a second has only 25 frames"),
        (
            {"min_positions_per_second": 5, "max_positions_per_second": 4},
            "`min_positions_per_second` is 5 and `max_positions_per_second` is 4: the lowest",
        ),
        ({"keep_blanks": "no"}, "`keep_blanks` is 'no'; expected True, False or None"),
        ({"keep_blanks": 0}, "`keep_blanks` is 0; expected True, False or None"),
        (
            {"keep_blanks": False, "ctc_draft": "ctc"},
            '`keep_blanks` is False, but `ctc_draft="ctc"` runs without the LLM',
        ),
        ({"max_position_per_second": 4}, "max_position_per_second"),
    ],
)
def test_limits_that_cannot_be_are_refused(model, inputs, options, message):
    with pytest.raises(ValueError, match=message):
        answer(model, inputs, **options)


def test_pipeline_transcripts_and_evaluation_take_them(model, processor, clip, inputs):
    few = {"max_positions_per_second": 3}
    ids = answer(model, inputs, **few)[0]
    (text,) = processor.batch_decode([ids], skip_special_tokens=True)
    parts = {"tokenizer": processor.tokenizer, "feature_extractor": processor.feature_extractor}
    transcribe = pipeline("soundwave-asr", model=model, processor=processor, **parts)
    audio = {"array": clip, "sampling_rate": 16_000}
    assert transcribe(dict(audio), max_new_tokens=4, **few)["text"] == text.strip()
    (transcript,) = transcribe_clips(model, processor, [audio], max_new_tokens=4, generate=few)
    assert transcript.text == text.strip()
    system = model_system(model, processor, max_new_tokens=4, generate=few)
    (found,), _ = run_rows(system, [{"audio": audio, "text": "x"}], 1, "tiny")
    assert (found.text, found.num_positions) == (text.strip(), 6)
    with pytest.raises(ValueError, match="Did you mean `max_positions_per_second`"):
        list(transcribe_clips(model, processor, [audio], generate={"max_position_per_second": 3}))


def test_nothing_set_is_no_limit(model):
    assert find_position_limits(model, {"max_positions_per_second": 0}) is None
