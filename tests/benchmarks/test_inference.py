"""The inference benchmark counts passes, compares answers, and its modes run on a tiny model."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from soundwave_hf import SoundwaveForConditionalGeneration, SoundwaveProcessor
from tests.tiny_models import save_tiny_soundwave


ROOT = Path(__file__).parents[2]
RATE = 16_000
NAMES = ["published", "plain", "lossless", "fast", "ctc", "plain_joint", "lossless_joint", "qwen2_audio"]


@pytest.fixture(scope="module")
def inference():
    """The benchmark as a module; it imports its neighbour."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import inference

        patch.setattr(inference, "MAX_NEW_TOKENS", 6)
        yield inference


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Model of a 2 s window, and processor."""
    folder = save_tiny_soundwave(tmp_path_factory.mktemp("inference"))
    model = SoundwaveForConditionalGeneration.from_pretrained(folder).eval()
    model.generation_config.eos_token_id = 257
    return model, SoundwaveProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def modes(inference, loaded):
    return inference.make_modes(*loaded, NAMES, ctc_weight=0.5)


@pytest.fixture(scope="module")
def clips(inference):
    rng = np.random.default_rng(0)
    return [
        inference.Clip(rng.normal(size=round(seconds * RATE)).astype(np.float32), text)
        for seconds, text in ((0.5, "one"), (1.9, "two three"), (1.2, "four"))
    ]


@pytest.fixture(scope="module")
def measured(inference, modes, clips):
    """Rows of the table by mode and batch."""
    found = {}
    for batch in (1, 2):
        for name, turns in inference.run_modes(modes, clips, batch).items():
            found[name, batch] = inference.figures(name, modes[name], turns, clips, batch, RATE)
    return found


def test_rows_are_joined_to_the_length_asked_for(inference):
    rows = [{"seconds": seconds} for seconds in (1.0, 2.0, 1.6, 0.4, 3.5)]
    # 1.0 and 1.6 leave 3 - 2.9 - 0.3 s; 2.0 and 0.4 leave 3 - 2.7 - 0.3 s, and 3.5 is too long.
    groups = inference.rows_of_length(rows, 3.0, 2)
    assert [[row["seconds"] for row in group] for group in groups] == [[1.0, 1.6], [2.0, 0.4]]
    with pytest.raises(ValueError, match="give 2 clips of 3 s, and 3 are needed: lower `--clips`"):
        inference.rows_of_length(rows, 3.0, 3)
    # 0.5 s leave too much room alone and are left out.
    groups = inference.rows_of_length([{"seconds": 0.5}, {"seconds": 2.9}], 3.0, 1)
    assert groups == [[{"seconds": 2.9}]]


def test_joined_clips_have_a_silence_between_them_and_none_behind(inference):
    clip = inference.join([inference.Clip(np.ones(4, np.float32), text) for text in ("one", "two")], rate=10)
    assert clip.samples.tolist() == [1, 1, 1, 1, 0, 0, 0, 1, 1, 1, 1]
    assert clip.text == "one two"


def test_answers_end_with_their_first_end_token(inference):
    rows = torch.tensor([[5, 2, 2, 2], [5, 6, 7, 2], [5, 6, 7, 8]])
    assert inference.up_to_end(rows, 2) == [[5, 2], [5, 6, 7, 2], [5, 6, 7, 8]]
    assert inference.up_to_end(rows, [6, 7]) == [[5, 2, 2, 2], [5, 6], [5, 6]]
    assert inference.up_to_end(rows, None) == rows.tolist()


def test_each_mode_runs_at_each_batch_but_the_published_way(measured):
    assert {name for name, batch in measured if batch == 1} == set(NAMES)
    assert {name for name, batch in measured if batch == 2} == set(NAMES) - {"published"}
    for row in measured.values():
        assert row.clips == 3 and row.clips_per_second > 0
        assert 0 < row.first_token_seconds <= 3 / row.clips_per_second
        assert row.real_time_factor == pytest.approx(3 / row.clips_per_second / 3.6)


def test_passes_are_those_of_the_llm(measured):
    for name in ("published", "plain", "plain_joint", "qwen2_audio"):
        assert measured[name, 1].passes_per_token == 1
    assert measured["lossless", 1].passes_per_token <= 1
    assert measured["ctc", 1].passes_per_token == measured["ctc", 1].llm_seconds_per_clip == 0
    # Two rows of a batch share their passes: the clips take as many as the longest answers of both batches.
    answers = [len(ids) for ids in measured["plain", 2].ids]
    passes = max(answers[:2]) + answers[2]
    assert measured["plain", 2].passes_per_token == pytest.approx(passes / sum(answers))


def test_random_weights_write_as_many_tokens_as_the_references_and_have_no_error_rate(measured):
    row = measured["qwen2_audio", 2]
    assert [len(ids) for ids in row.ids] == [4, 10, 5]  # bytes, and the end
    assert row.wer is None


def test_lossless_answers_are_those_of_plain_greedy_decoding(inference, modes, clips, measured):
    rows = list(measured.values())
    assert inference.compare(rows, modes, clips) == []
    for name in ("plain", "lossless", "plain_joint", "lossless_joint"):
        assert measured[name, 1].same_answers == measured[name, 2].same_answers == 3
    assert measured["qwen2_audio", 1].same_answers is None


def test_an_answer_that_differs_is_described_with_the_two_best_scores(inference, modes, clips, measured):
    greedy = measured["plain", 1]
    wrong = [list(ids) for ids in greedy.ids]
    wrong[1][2] += 1
    row = inference.Figures(**{**vars(greedy), "mode": "lossless", "ids": wrong})
    (sentence,) = inference.compare([greedy, row], modes, clips)
    assert row.same_answers == 2
    found = re.fullmatch(r"lossless, batch 1, clip 1: token 2 differs; the two best scores differ by (.+)", sentence)
    best, second = modes["plain"].answer([clips[1]], scores=True)[2][0].topk(2).values.tolist()
    assert float(found[1]) == pytest.approx(best - second, rel=0.1) and best > second


def test_the_table_and_the_sentence_on_the_llm(inference):
    values = {"batch": 1, "clips": 4, "cpu_seconds_per_clip": 0.5, "first_token_seconds": 0.25, "mebibytes": 10.0}
    values |= {"passes_per_token": 1.0, "real_time_factor": 0.125}
    plain = inference.Figures("plain", clips_per_second=2, llm_seconds_per_clip=0.3, **values, wer=0.25)
    drafted = inference.Figures("lossless", clips_per_second=3, llm_seconds_per_clip=0.1, **values, same_answers=4)
    rows = inference.table([plain, drafted]).splitlines()[2:]
    assert rows[0] == "| plain | 1 | 2.00 | 0.50 | 1.00 | 0.25 | 1.00 | 0.30 | 0.125 | 10 | 25.0 | - |"
    assert rows[1] == "| lossless | 1 | 3.00 | 0.50 | 1.50 | 0.25 | 1.00 | 0.10 | 0.125 | 10 | - | 4 of 4 |"
    (sentence,) = inference.llm_part([plain, drafted])
    assert sentence.endswith("plain 0.300 s a clip, lossless 0.100 s, 3.00 times as fast.")


@pytest.mark.parametrize(
    "words, message",
    [
        (["--seconds", "3,40"], "`--seconds` has 40; expected lengths up to 30. For 10 minutes: `--long`"),
        (["--batch", "0"], "give 1 or more"),
        (["--clips", "0"], "give 1 or more"),
        (["--modes", "lossles"], "invalid choice: 'lossles'"),
    ],
)
def test_requests_that_cannot_be_run_are_named(inference, capsys, words, message):
    with pytest.raises(SystemExit):
        inference.read_arguments(words)
    assert message in capsys.readouterr().err


def test_lengths_and_batches_are_lists_and_may_be_left_out(inference):
    given = inference.read_arguments(["--seconds", "", "--batch", "1,8,32"])
    assert (given.seconds, given.batch, given.modes) == ([], [1, 8, 32], list(inference.MODES))
