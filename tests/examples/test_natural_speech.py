"""Natural speech for training: texts, voices and the job that makes the clips, with a stand-in for the voice."""

import random
import re
import struct
import sys
import threading
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest


sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "soundwave-small"))
import kokoro_voices
import natural_speech
import natural_texts
from human_speech import UNUSED, librivox_transcripts, split_remainder
from kokoro_voices import HELD_OUT_VOICES, TRAINING_VOICES, Kokoro, KokoroVoice, draw_voice, kokoro_phonemes
from name_sentences import FIRST_NAMES, FRAMES, LAST_NAMES, name_sentences
from natural_speech import (
    Work,
    clip_of,
    clips_of,
    earlier_rows,
    fill_folder,
    is_plausible,
    only_one,
    planned_texts,
    question_texts,
    speak_clip,
)
from natural_texts import Text, choose_for_coverage, choose_texts, spell_out, spoken_sentence
from sentences import HeldOut, normalized

from soundwave_hf.data.manifest import read_rows, write_rows


TEXTS = [
    Text(f"Here comes sentence number {word}.", "wordnet") for word in ["one", "two", "three", "four", "five", "six"]
]
NOTHING = HeldOut([])
UNUSED_PROMPT = next(f"digits_{n}" for n in range(20, 91, 10) if split_remainder(f"digits_{n}") == UNUSED)
SECOND = 16_000  # samples


def hum(text: str, voice: KokoroVoice, speed: float) -> np.ndarray:
    """Two seconds that are no silence, whatever the text."""
    return np.tile(np.array([1000, -1000], dtype=np.int16), SECOND)


def make(folder, texts=TEXTS, hours=1.0, speaker=hum) -> Work:
    """Run the job in this process, with `speaker` in the place of the model."""
    natural_speech._process.update(folder=folder, speaker=speaker)
    work = Work(folder, earlier_rows(folder, NOTHING))
    with ThreadPoolExecutor(1) as pool:
        fill_folder(work, (clip_of(text, seed=0) for text in texts), pool, hours, ahead=1)
    return work


# ---- texts ----


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("at 5:30", "at five thirty"),
        ("at 10:05", "at ten oh five"),
        ("at 7:00", "at seven o'clock"),
        ("$3.50", "three dollars and fifty cents"),
        ("the 1960s", "the nineteen sixties"),
        ("the 1800's", "the eighteen hundreds"),
        ("in 2016", "in twenty sixteen"),
        ("1 1/2", "1 a half"),
        ("the U.S. army", "the U S army"),
        ("at 8 p.m. today", "at 8 P M today"),
    ],
)
def test_numbers_are_spelled_as_they_are_read_aloud(written, spoken):
    assert spell_out(written) == spoken


WORDS = frozenset(
    re.findall(r"\w+", "the a train left leaves paris at in early he said it is cold outside five thirty")
)


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("the train left Paris at 5:30", "The train left Paris at five thirty."),
        ("is it cold outside ?", "Is it cold outside?"),
        ("“It is cold outside,” he said", "It is cold outside, he said."),
        ("it is cold", None),  # three words
        ("it is cold " * 8, None),  # 24 words
        ("the fnord left the glorp at Paris", None),  # two of seven words unknown
        ("the train left at http://x.org", None),
        ("he said the damn train left", None),
    ],
)
def test_a_sentence_is_written_as_it_is_spoken_or_left_out(written, spoken):
    assert spoken_sentence(written, WORDS) == spoken


def test_examples_are_the_quoted_parts_of_a_wordnet_gloss(tmp_path):
    line = '00003356 00 a 01 nascent 0 000 |  being born; "the nascent chicks"; "a nascent insurgency" \n'
    (tmp_path / "data.adj").write_text("  1 This software\n" + line)
    assert list(natural_texts.wordnet_examples(tmp_path)) == ["the nascent chicks", "a nascent insurgency"]


def test_bible_blocks_are_unpacked_and_notes_left_out(tmp_path):
    text = '<title>One</title>He rose <note n="1">or stood</note> , and <w>went</w> away. She stayed.'
    packed = zlib.compress(text.encode())
    for part in ("ot", "nt"):
        (tmp_path / f"{part}.bzs").write_bytes(struct.pack("<III", 0, len(packed), len(text)))
        (tmp_path / f"{part}.bzz").write_bytes(packed)
    assert list(natural_texts.bible_sentences(tmp_path)) == 2 * ["He rose, and went away.", "She stayed."]


def test_help_pages_give_the_sentences_of_their_paragraphs(tmp_path):
    page = "<page><title>T</title><p>Press <gui>Save\n file</gui>. Then wait.</p><p>Type <cmd>ls</cmd>.</p></page>"
    (tmp_path / "a.page").write_text(page)
    assert list(natural_texts.help_sentences(tmp_path)) == ["Press Save file.", "Then wait."]


def test_sentences_with_names_use_every_frame_and_name():
    made = name_sentences(len(FRAMES) * 40, random.Random(0))
    spoken = Counter(word.strip(".,?") for text in made for word in text.split())
    assert min(spoken[name] for name in FIRST_NAMES) >= 3 and min(spoken[name] for name in LAST_NAMES) >= 3
    assert any("spelled W A L L A C E." in text for text in made) and not any("{" in text for text in made)


def test_a_text_has_one_split_whatever_its_case_and_stops():
    assert Text("It is cold outside.", "wordnet").split == Text("it is COLD outside", "bible").split
    halves = Counter(Text(f"Sentence number {number}", "wordnet").split for number in range(1000))
    assert set(halves) == {"stage1", "stage2"} and 450 < halves["stage1"] < 550


# ---- nothing of the validation sets ----


@pytest.mark.parametrize(
    ("text", "leaks"),
    [
        ("Please leave a message.", True),  # the same, but for case and stops
        ("I said: please leave a message, will you?", True),  # holds it
        ("The quick brown fox!", True),  # stands in a longer one
        ("Seventeen.", True),  # equal to a single word
        ("I have seventeen cousins in Spain.", False),  # a single word inside is no leak
        ("Please leave a note.", False),
        ("The brown quick fox jumps.", False),
        ("He will please leave a messages folder.", False),  # no whole words
    ],
)
def test_a_text_that_repeats_a_held_out_one_is_found(text, leaks):
    held_out = HeldOut(map(normalized, ["please leave a message", "See the quick brown fox run", "seventeen", ""]))
    assert held_out.repeats(text) is leaks


def test_held_out_texts_are_never_chosen(monkeypatch, tmp_path):
    sentences = [f"The {word} train left Paris early." for word in ("red", "blue", "green", "fast")]
    monkeypatch.setattr(natural_texts, "text_packages", lambda: tmp_path)
    monkeypatch.setattr(natural_texts, "source_texts", lambda *_: (Text(text, "wordnet") for text in sentences))
    monkeypatch.setattr(natural_texts, "common_words", lambda: ["red", "blue", "green", "fast"])
    chosen = natural_texts.natural_texts(4, HeldOut([normalized(sentences[1])]))
    assert {text.text for text in chosen} == {sentences[0], sentences[2], sentences[3]}


def test_what_is_held_out_are_all_validation_sets_the_demo_and_the_unused_prompts(monkeypatch, tmp_path):
    found = []
    sentences = {"validation": ["A synthetic sentence of the validation."], "fortunes": ["The train left early."]}
    monkeypatch.setattr(natural_texts, "spoken_texts", lambda *_, **__: (found.append(1), sentences)[1])
    monkeypatch.setattr(natural_texts, "all_prompt_names", lambda: [UNUSED_PROMPT])
    for _ in range(2):
        kept_apart = natural_texts.held_out(tmp_path)
    assert found == [1]  # found once, then read
    told = UNUSED_PROMPT.removeprefix("digits_")
    for text in ("What is the capital of France?", "A synthetic sentence of the validation", told):
        assert kept_apart.repeats(text)
    assert all(kept_apart.repeats(text) for text in librivox_transcripts())
    assert not kept_apart.repeats("The train left early.")


# ---- even coverage ----


def test_the_text_with_the_least_heard_words_comes_next():
    texts = [Text(text, "wordnet") for text in ("the cat sat", "the cat ran", "the dog sat", "one dog barked")]
    heard = Counter()
    chosen = choose_for_coverage(texts, {"cat", "dog", "sat", "barked"}, 3, heard)
    # "dog sat" and "dog barked" are worth 2 each, the first in the list first (after "cat sat", also 2);
    # with cat and sat heard once: "dog barked" 2, "dog sat" 1.5; then "dog sat" 1 and "cat ran" 0.5.
    assert [text.text for text in chosen] == ["the cat sat", "one dog barked", "the dog sat"]
    assert heard["sat"] == 2 and heard["cat"] == 1


def test_the_choice_depends_on_the_seed_alone_and_mixes_the_kinds():
    texts = [Text(f"Is word{number} here today?", "wordnet") for number in range(50)]
    texts += [Text(f"Here lies word{number} today.", "bible") for number in range(200)]
    texts += [Text(f"Press {number} today now.", "prompts") for number in range(50)]
    texts += [Text(f"Name {number} was here.", "names") for number in range(50)]
    chosen = choose_texts(texts, ["here", "lies"], 100, seed=3)
    assert chosen == choose_texts(texts, ["here", "lies"], 100, seed=3)
    assert chosen != choose_texts(texts, ["here", "lies"], 100, seed=4)
    sources = Counter(text.source for text in chosen)
    assert len(chosen) == len(set(chosen)) == 100 and sources["prompts"] == 6 and sources["names"] == 5
    assert 0 < sum(text.source == "prompts" for text in chosen[:50]) < 6  # any beginning is a sample of all


# ---- voices ----


def test_ten_voices_are_held_out_and_no_draw_or_mixture_has_one():
    assert len(HELD_OUT_VOICES) == 10 and not set(HELD_OUT_VOICES) & set(TRAINING_VOICES)
    drawn = [draw_voice(random.Random(seed)) for seed in range(2000)]
    names = [{name for name, _ in voice.shares} for voice in drawn]
    assert set().union(*names) == set(TRAINING_VOICES)
    assert all(not parts & set(HELD_OUT_VOICES) for parts in names)
    assert 0.45 < sum(len(parts) == 2 for parts in names) / 2000 < 0.55
    assert all(len({name[0] for name in parts}) == 1 for parts in names)  # one accent
    assert all(sum(share for _, share in voice.shares) == pytest.approx(1) for voice in drawn)


def test_a_mixture_is_named_by_its_shares():
    voice = KokoroVoice((("bf_emma", 0.4), ("bm_fable", 0.6)))
    assert voice.name == "bf_emma:0.40+bm_fable:0.60" and voice.accent == "b"


def test_the_style_of_a_mixture_is_the_weighted_mean_of_the_rows_for_its_length():
    tables = {"af_sky": np.full((510, 256), 1.0), "am_puck": np.arange(510.0)[:, None] * np.ones(256)}
    voice = KokoroVoice((("af_sky", 0.25), ("am_puck", 0.75)))
    style = Kokoro.style(SimpleNamespace(tables=tables), voice, phonemes=5)  # row 4
    assert style.shape == (1, 256) and style.dtype == np.float32 and style[0, 0] == 0.25 + 0.75 * 4


@pytest.mark.parametrize(
    ("accent", "espeak", "kokoro"),
    [
        ("a", "nˈaɪn hˈaʊs dʒˈɔɪ tʃˈɜːtʃ dˈoʊnt ðeɪ", "nˈIn hˈWs ʤˈY ʧˈɜɹʧ dˈOnt ðA"),
        ("a", "ɹˈɪʔn\u0329 wˈɔːɾɚ bˈɜːd fˈoːɹ", "ɹˈɪtᵊn wˈɔTəɹ bˈɜɹd fˈɔɹ"),
        ("b", "dˈəʊnt fˈɛðəz hˈeə nˈiə fˈɔː", "dˈQnt fˈɛðəz hˈɛː nˈɪə fˈɔː"),
    ],
)
def test_phonemes_are_written_in_the_alphabet_of_the_model(accent, espeak, kokoro):
    assert kokoro_phonemes(espeak, accent) == kokoro


def test_too_many_phonemes_are_refused():
    model = SimpleNamespace(vocabulary={"a": 43, "b": 44})
    assert Kokoro.tokens(model, "a?b") == [43, 44]
    with pytest.raises(ValueError, match="arrived with 511 phonemes and Kokoro reads 1 to 510"):
        Kokoro.tokens(model, 511 * "a")


def test_a_changed_model_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(kokoro_voices, "soundwave_home", lambda: tmp_path)
    (tmp_path / "data" / "kokoro").mkdir(parents=True)
    (tmp_path / "data" / "kokoro" / "model.onnx").write_bytes(b"another model")
    with pytest.raises(ValueError, match="`model.onnx`.* arrived with 13 bytes"):
        kokoro_voices.kokoro_folder()


# ---- the job ----


def test_a_clip_is_a_function_of_its_text_and_the_seed():
    clips = [clip_of(text, 0) for text in TEXTS]
    assert clips[::-1] == [clip_of(text, 0) for text in TEXTS[::-1]]
    assert all(0.85 <= clip.speed <= 1.15 for clip in clips) and len({clip.speed for clip in clips}) == 6
    assert not {clip.audio for clip in clips} & {clip_of(text, 1).audio for text in TEXTS}
    turns = [clip.text for clip in clips_of(TEXTS, 0)]
    assert turns == natural_speech.MOST_TURNS * TEXTS and len({clip.audio for clip in clips_of(TEXTS, 0)}) == 30


def test_texts_are_chosen_once_and_checked_at_every_run(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(natural_speech, "natural_texts", lambda *arguments: (asked.append(arguments), TEXTS)[1])
    assert planned_texts(tmp_path, 6, NOTHING, seed=0) == TEXTS
    assert planned_texts(tmp_path, 6, HeldOut([normalized(TEXTS[2].text)]), seed=0) == TEXTS[:2] + TEXTS[3:]
    assert asked == [(6, NOTHING, 0)]
    planned_texts(tmp_path, 6, NOTHING, seed=1)
    assert len(asked) == 2
    assert read_rows(tmp_path / "texts_6_0.jsonl")[0] == {
        "text": TEXTS[0].text,
        "source": "wordnet",
        "split": TEXTS[0].split,
    }


def test_questions_are_those_of_stage_three_in_random_order_without_held_out_ones(monkeypatch):
    import training_sets

    pairs = [("What is tea?", None), ("What is a cup?", "A cup holds tea."), ("Who was Bach?", None)]
    monkeypatch.setattr(training_sets, "question_pairs", lambda seed: pairs)
    texts = question_texts(HeldOut([normalized("Who was Bach?")]), seed=0)
    assert sorted(text.text for text in texts) == ["What is a cup?", "What is tea?"]
    assert {clip_of(text, 0).row(1.0)["source"] for text in texts} <= set(training_sets.QUESTION_SOURCES)
    orders = {tuple(text.text for text in question_texts(NOTHING, seed)) for seed in range(9)}
    assert len(orders) > 1 and question_texts(NOTHING, 3) == question_texts(NOTHING, 3)


def test_the_manifest_names_every_clip(tmp_path):
    work = make(tmp_path)
    rows = read_rows(tmp_path / "manifest.jsonl")
    assert [row["text"] for row in rows] == [text.text for text in TEXTS] and work.seconds == 12
    assert set(rows[0]) == {"audio", "text", "seconds", "voice", "source", "split"}
    assert rows[0]["source"] == "natural-wordnet" and all((tmp_path / row["audio"]).is_file() for row in rows)


def test_a_second_run_makes_what_is_missing_alone(tmp_path):
    make(tmp_path, TEXTS[:2])
    (tmp_path / clip_of(TEXTS[0], 0).audio).unlink()  # made again
    spoken = []
    work = make(tmp_path, TEXTS[:4], speaker=lambda text, *rest: (spoken.append(text), hum(text, *rest))[1])
    assert spoken == [TEXTS[0].text, TEXTS[2].text, TEXTS[3].text]
    assert work.seconds == 8 and work.made_seconds == 6


def test_clips_that_a_killed_run_left_out_of_its_manifest_are_taken_in(tmp_path):
    make(tmp_path)
    rows = read_rows(tmp_path / "manifest.jsonl")
    write_rows(tmp_path / "manifest.jsonl", rows[:2])
    work = make(tmp_path, speaker=None)  # there is nothing left to say
    assert sorted(work.rows) == sorted(row["audio"] for row in rows) and work.seconds == 12


def test_a_stopped_run_keeps_its_rows_and_no_half_written_clip(tmp_path):
    spoken = []

    def stopped_at_the_fourth(text, voice, speed):
        spoken.append(text)
        if len(spoken) == 4:
            raise KeyboardInterrupt
        return hum(text, voice, speed)

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, speaker=stopped_at_the_fourth)
    assert len(read_rows(tmp_path / "manifest.jsonl")) == 3
    assert not list(tmp_path.rglob("*.part"))


def test_a_manifest_that_cannot_be_written_leaves_the_old_one(tmp_path):
    work = make(tmp_path, TEXTS[:1])
    before = (tmp_path / "manifest.jsonl").read_bytes()
    work.rows["broken"] = {"audio": object()}
    with pytest.raises(TypeError):
        work.save()
    assert (tmp_path / "manifest.jsonl").read_bytes() == before and not list(tmp_path.glob(".*.part"))


def test_the_job_ends_at_the_hours_asked_for(tmp_path):
    work = make(tmp_path, hours=5 / 3600)  # 5 s: three clips of 2 s, and those under way
    assert 3 <= len(work.rows) <= 4


def test_a_slow_clip_holds_up_no_other(tmp_path):
    others_are_done = threading.Event()

    def slow_at_the_first(text, voice, speed):
        if text == TEXTS[0].text:
            assert others_are_done.wait(10)
        if text == TEXTS[-1].text:
            others_are_done.set()
        return hum(text, voice, speed)

    natural_speech._process.update(folder=tmp_path, speaker=slow_at_the_first)
    work = Work(tmp_path)
    with ThreadPoolExecutor(2) as pool:
        fill_folder(work, (clip_of(text, seed=0) for text in TEXTS), pool, hours=1.0, ahead=3)
    assert sorted(row["text"] for row in work.rows.values()) == sorted(text.text for text in TEXTS)


def test_earlier_rows_with_held_out_voices_or_texts_are_dropped(tmp_path):
    make(tmp_path, TEXTS[:3])
    rows = read_rows(tmp_path / "manifest.jsonl")
    rows[1]["voice"] = f"af_sky:0.50+{HELD_OUT_VOICES[0]}:0.50"
    write_rows(tmp_path / "manifest.jsonl", [*rows, {**rows[0], "audio": "gone.flac"}])
    assert list(earlier_rows(tmp_path, HeldOut([normalized(rows[2]["text"])]))) == [rows[0]["audio"]]


def test_speech_that_cannot_be_its_text_is_left_out(tmp_path):
    text = "one two three four five six"
    assert is_plausible(text, hum(text, None, 1.0))
    assert not is_plausible(text, np.zeros(2 * SECOND, dtype=np.int16))  # silent
    assert not is_plausible(text, hum(text, None, 1.0)[: SECOND // 2])  # 12 words a second
    assert not is_plausible(text, np.tile(hum(text, None, 1.0), 9))  # 18 s for six words
    assert speak_clip(clip_of(TEXTS[0], 0), tmp_path, lambda *_: np.zeros(SECOND, dtype=np.int16)) is None
    assert not list(tmp_path.iterdir())
    assert make(tmp_path, speaker=lambda *_: np.zeros(SECOND, dtype=np.int16)).left_out == 6


def test_two_jobs_in_one_folder_are_refused(tmp_path):
    with only_one(tmp_path), pytest.raises(RuntimeError, match="Another process makes speech"), only_one(tmp_path):
        pass
