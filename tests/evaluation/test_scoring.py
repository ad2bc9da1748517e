import pytest

from soundwave_hf.evaluation.evaluate import Options, summary
from soundwave_hf.evaluation.metrics import Edit
from soundwave_hf.evaluation.rows import Request
from soundwave_hf.evaluation.scoring import Scores, add_whisper_scores, compare_clips, score_clips, score_results
from soundwave_hf.evaluation.sets import hub_sets
from soundwave_hf.evaluation.transcribe import Result


def transcript(
    row: int, reference: str, text: str, ctc_text: str | None = None, positions: int | None = None
) -> Result:
    request = Request(row, f"{row}.wav", reference, spoken=reference, seconds=2.0)
    return Result(request, text, ctc_text, positions)


def answer(row: int, reference: str, text: str, spoken: str | None = None, ctc_text: str | None = None) -> Result:
    request = Request(row, f"{row}.wav", reference, is_answer=True, question="?", spoken=spoken, seconds=2.0)
    return Result(request, text, ctc_text, 4)


def unreadable(row: int) -> Result:
    return Result(Request(row, "broken.wav", "", failure="no audio"), failure="no audio")


def test_scores_are_taken_over_the_set():
    results = [
        transcript(0, "Good morning.", "Good morning.", ctc_text="morning", positions=4),
        transcript(1, "Dear friends.", "dear fiends", ctc_text="deer friends", positions=8),
    ]
    whisper = [transcript(0, "Good morning.", "Good morning"), transcript(1, "Dear friends.", "dear friends")]
    scores, by_row = score_results(results, 6.0)
    add_whisper_scores(scores, by_row, whisper)
    # Words: 1 error of 4; as written `Dear` and `friends.` are wrong, 2 of 4. Characters: r is left out, 1 of 24.
    assert (scores.clips, scores.audio_seconds, scores.seconds_taken) == (2, 4.0, 6.0)
    assert (scores.wer, scores.written_wer, scores.ctc_wer) == (0.25, 0.5, 0.5)
    assert scores.cer == pytest.approx(1 / 24)
    assert scores.whisper_wer == 0 and scores.positions_per_second == 3.0
    assert scores.positions_per_second_interval == (2.0, 4.0)  # 4 and 8 positions in 2 s each
    assert scores.word_errors == {"substitutions": 1, "deletions": 0, "insertions": 0, "words": 4}
    assert scores.character_errors == {"substitutions": 0, "deletions": 1, "insertions": 0, "characters": 24}
    assert scores.wer_interval == (0.0, 0.5)
    assert by_row[1].edits == [Edit("substitute", "friends", "fiends")]
    assert (scores.answers, scores.exact_match) == (0, None)


def test_sets_of_the_hub_are_recorded_with_config_and_split():
    found = hub_sets(
        ["a=org/set", "b=test.csv", "c={path: org/other, name: en, split: test}", "d=https://x.org/a.csv"]
    )
    assert found == {"a": {"path": "org/set"}, "c": {"path": "org/other", "config": "en", "split": "test"}}
    assert hub_sets({"rows": [{"audio": "a.wav", "text": "a"}]}) == {}


def test_answers_and_transcripts_are_scored_apart():
    results = [
        transcript(0, "good morning", "good evening"),
        answer(1, "Paris", "paris"),
        answer(2, "Rome", "It is Rome."),
        answer(3, "Oslo", "Bonn"),
    ]
    scores, _ = score_results(results, 1.0)
    assert (scores.clips, scores.answers) == (4, 3)
    assert scores.wer == 0.5 and scores.word_errors["words"] == 2
    assert (scores.exact_match, scores.contained_answer) == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert scores.exact_match_interval == (0, 1)


def test_the_ctc_head_is_scored_against_what_is_said_and_not_against_the_answer():
    results = [answer(0, "Paris", "Paris", spoken="where is the tower", ctc_text="where is a tower")]
    scores, _ = score_results(results, 1.0)
    assert scores.ctc_wer == 1 / 4 and scores.wer is None


def test_words_for_silence_are_insertions():
    scores, by_row = score_results(
        [transcript(0, "", "thank you"), transcript(1, "good morning", "good morning")], 1.0
    )
    assert scores.word_errors == {"substitutions": 0, "deletions": 0, "insertions": 2, "words": 2}
    assert scores.wer == 1.0 and by_row[0].words.errors == 2


def test_silence_alone_has_counts_and_no_rate():
    scores, _ = score_results([transcript(0, "", "thank you"), transcript(1, "", "")], 1.0)
    assert scores.wer is None and scores.wer_interval is None
    assert scores.word_errors == {"substitutions": 0, "deletions": 0, "insertions": 2, "words": 0}


def test_rows_that_could_not_be_read_are_counted_and_in_no_figure():
    scores, by_row = score_results([unreadable(0), transcript(1, "good morning", "good")], 1.0)
    assert (scores.clips, scores.wer, scores.audio_seconds) == (1, 0.5, 2.0)
    assert scores.failures == [{"row": 0, "audio": "broken.wav", "reason": "no audio"}]
    assert 0 not in by_row


def test_a_set_that_could_not_be_read_at_all_has_no_figures():
    scores, _ = score_results([unreadable(0)], 1.0)
    assert (scores.clips, scores.wer, len(scores.failures)) == (0, None, 1)


def test_a_language_has_its_own_normaliser():
    results = [transcript(0, "Die Farbe, bitte!", "die farbe bitte")]
    assert score_results(results, 1.0, "de")[0].wer == 0
    assert score_results([transcript(0, "colour", "color")], 1.0, "de")[0].wer == 1


def test_texts_that_were_cut_off_are_counted():
    cut = transcript(0, "good morning", "good")
    cut.finished = False
    assert score_results([cut], 1.0)[0].unfinished == 1


def test_two_systems_are_compared_on_the_same_clips():
    references = ["good morning", "dear friends", "all right", "red door"]
    mine = score_clips(references, ["good morning", "dear fiends", "all right", "red door"])
    other = score_clips(references, ["good evening", "dear friends", "all wrong", "red door"])
    found = compare_clips(mine, other, is_answer=False, metric="wer")
    assert (found["metric"], found["clips"], found["value"], found["other_value"]) == ("wer", 4, 1 / 8, 2 / 8)
    assert found["difference"] == pytest.approx(-1 / 8)
    assert (found["clips_better"], found["clips_worse"]) == (2, 1)
    low, high = found["difference_interval"]
    assert low < -1 / 8 < high and 0.3 < found["p_value"] <= 1


def test_answers_are_compared_by_exact_match():
    references = ["Paris", "Rome", "Oslo"]
    mine, other = score_clips(references, references), score_clips(references, ["Paris", "Rom", "It is Oslo"])
    found = compare_clips(mine, other, is_answer=True, metric="wer")
    assert (found["metric"], found["value"], found["other_value"]) == ("exact_match", 1, pytest.approx(1 / 3))
    assert found["difference"] == pytest.approx(2 / 3) and (found["clips_better"], found["clips_worse"]) == (2, 0)


def test_one_clip_is_too_little_to_compare():
    clips = score_clips(["good morning"], ["good"])
    assert compare_clips(clips, clips, is_answer=False, metric="wer") is None


def test_scores_of_earlier_versions_are_still_read():
    assert Scores(clips=2, audio_seconds=4.0, wer=0.25, ctc_wer=0.5, positions_per_second=3.0, seconds_taken=6.0).wer


def test_a_whisper_that_fails_on_a_clip_has_no_rate_and_is_named():
    results = [transcript(0, "good morning", "good morning"), transcript(1, "dear friends", "dear friends")]
    failed = Result(results[1].request, failure="<|yue|> is not supported")
    scores, by_row = score_results(results, 1.0)
    add_whisper_scores(scores, by_row, [results[0], failed])
    assert scores.whisper_wer is None
    assert scores.whisper_failures == [{"row": 1, "audio": "1.wav", "reason": "<|yue|> is not supported"}]
    text = summary({"mine": scores}, Options(), "weights", None)
    assert "mine: clips that Whisper could not transcribe: 1. Its rate is left out. Row 1: <|yue|> is not" in text
    scores, by_row = score_results([results[0], unreadable(1)], 1.0)
    add_whisper_scores(scores, by_row, [results[0], unreadable(1)])
    assert scores.whisper_wer == 0 and scores.whisper_failures == []  # the model failed there too
