"""Texts that are spoken for training, and the voices that speak them."""

import random
import re
import struct
import sys
import zlib
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest


sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "soundwave-small"))
import kokoro_voices
import natural_texts
import voices
from human_speech import UNUSED, librivox_transcripts, split_remainder
from kokoro_voices import HELD_OUT_VOICES, TRAINING_VOICES, Kokoro, KokoroVoice, draw_voice, kokoro_phonemes
from name_sentences import FIRST_NAMES, FRAMES, LAST_NAMES, name_sentences
from natural_texts import (
    LINES,
    Text,
    choose_for_coverage,
    choose_texts,
    repeated_lines,
    spell_out,
    spoken_sentence,
    words_of,
    written_texts,
)
from sentences import HeldOut, normalized

from soundwave_hf.data.build.recipe import read_build_recipe
from soundwave_hf.evaluation.shipped import EXAMPLES


UNUSED_PROMPT = next(f"digits_{n}" for n in range(20, 91, 10) if split_remainder(f"digits_{n}") == UNUSED)
SECOND = 16_000  # samples


def hum(seconds: int = 2) -> np.ndarray:
    """Samples that are no silence."""
    return np.tile(np.array([1000, -1000], dtype=np.int16), seconds * SECOND // 2)


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


def test_sentences_by_hand_are_written_as_spoken_each_once():
    lines = natural_texts.RARE_WORDS.read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(set(lines)) and all(line[-1] in ".?!" and not re.search(r"\d", line) for line in lines)
    assert {"lieutenant", "referendum", "netflix"} <= {word for line in lines for word in words_of(line)}


def test_each_sentence_by_hand_holds_a_common_word():
    pytest.importorskip("wordfreq", reason="the extra `data` brings wordfreq")
    common = set(natural_texts.common_words())
    lines = natural_texts.RARE_WORDS.read_text(encoding="utf-8").splitlines()
    assert all(common.intersection(words_of(line)) for line in lines)


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
    monkeypatch.setattr(
        natural_texts, "written_texts", lambda texts, write: [Text(text, "written") for text in write([])]
    )
    leak, written = sentences[1].upper(), "A red fox is here now."
    chosen = natural_texts.natural_texts(4, HeldOut([normalized(sentences[1])]), lambda words: [leak, written])
    assert {text.text for text in chosen} == {sentences[0], sentences[2], sentences[3], written}


def test_what_is_held_out_are_all_validation_sets_the_demo_and_the_unused_prompts(monkeypatch, tmp_path):
    found = []
    sentences = ["A synthetic sentence of the validation."]
    monkeypatch.setattr(natural_texts, "validation_sentences", lambda: (found.append(1), sentences)[1])
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


def test_each_common_word_stands_in_enough_lines():
    texts = [Text(text, "wordnet") for text in ("the rare word here", "a rare bird", "the bird here", "here it is")]
    lines = texts[3:] + repeated_lines(texts[3:], texts, ["rare", "bird", "word", "here", "unheard"])
    heard = Counter(word for text in lines for word in text.text.split())
    assert min(heard[word] for word in ("rare", "bird", "word", "here")) >= LINES
    # "word" has one text, which has "rare" too: seven lines of it, and then seven of both texts with "bird".
    assert Counter(lines)[texts[0]] == LINES and len(lines) == 1 + 2 * LINES
    assert {Counter(lines)[texts[1]], Counter(lines)[texts[2]]} == {LINES // 2, LINES - LINES // 2}


def test_the_llm_writes_sentences_with_words_that_few_texts_have(monkeypatch, tmp_path):
    words = tmp_path / "usr/share/dict/american-english"
    words.parent.mkdir(parents=True)
    words.write_text(
        "\n".join(["the", "train", "left", "early", "venue", "is", "full", "this", "evening", "it", "at"])
    )
    monkeypatch.setattr(natural_texts, "text_packages", lambda: tmp_path)
    monkeypatch.setattr(natural_texts, "common_words", lambda: ["train", "venue", "ll", "lol", "left"])
    asked = []
    texts = 2 * [Text("The train left early.", "wordnet"), Text("It left the train.", "bible")]
    answers = [
        "The venue is full this evening.",
        "It is full at the venue this evening.",
        "It is full. The venue left at the train.",
        "It is early at it.",
    ]
    made = written_texts(texts, lambda words: (asked.extend(words), 2 * answers)[1])
    assert asked == ["venue"]  # no letters, and nothing that the dictionary does not know
    # Each once, with the word; of an answer of two sentences, the one with the word.
    assert [text.text for text in made] == [*answers[:2], "The venue left at the train."]
    assert {text.source for text in made} == {"written"}


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


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("af_bella", "'af_bella' is not for training"),
        ("af_sky:0.50+am_liam:0.50", "'am_liam' is not for training"),
        ("af_sky:0.50+bf_emma:0.50", "mixes two accents"),
        ("awb", "is for validation"),
    ],
)
def test_voices_of_the_validation_and_mixed_accents_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        voices.say("One two three four.", name, 1.0)


def test_a_name_gives_back_its_voice():
    drawn = [draw_voice(random.Random(seed)) for seed in range(50)]
    assert [kokoro_voices.training_voice(voice.name) for voice in drawn] == drawn


def test_a_voice_says_the_same_each_time_and_changes_its_pitch_with_the_text(monkeypatch):
    shifts = []

    def flite(text, voice, stretch, pitch_shift):
        shifts.append(pitch_shift)
        assert voice == "slt" and stretch == 0.5
        return hum()

    monkeypatch.setattr(voices, "flite_samples", flite)
    for text in ("One two three.", "One two three.", "Four five six."):
        samples, rate = voices.say(text, "slt", 2.0)
        assert rate == SECOND and len(samples) == 2 * SECOND
    assert shifts[0] == shifts[1] != shifts[2]


def test_pico_takes_pitch_and_speed_in_percent(monkeypatch):
    engine = SimpleNamespace(speak=lambda text: hum().tobytes())
    monkeypatch.setattr(voices, "pico_engine", lambda voice: engine)
    assert len(voices.say("One two three.", "pico-us", 1.25)[0]) == 2 * SECOND
    assert engine.rate == 125 and 70 <= engine.pitch <= 125
    engine.speak = lambda text: None
    with pytest.raises(ValueError, match="cannot be its speech"):
        voices.say("One two three.", "pico-us", 1.25)


def test_speech_that_cannot_be_its_text_is_refused(monkeypatch):
    text = "one two three four five six"
    for samples in (np.zeros(2 * SECOND, dtype=np.int16), hum()[: SECOND // 2], hum(18)):  # silent, too fast, too slow
        assert not voices.is_plausible(text, samples)
        monkeypatch.setattr(voices, "flite_samples", lambda *_, samples=samples: samples)
        with pytest.raises(ValueError, match="cannot be its speech"):
            voices.say(text, "slt", 1.0)
    assert voices.is_plausible(text, hum())


def test_the_recipe_of_the_speech_uses_every_training_voice_and_no_other(monkeypatch, tmp_path):
    monkeypatch.setenv("SOUNDWAVE_HOME", str(tmp_path))
    steps = read_build_recipe(EXAMPLES / "soundwave-small" / "data.yaml", tmp_path).steps
    spoken = {step.name: step for step in steps if step.name != "conversations"}
    names = [voice for step in spoken.values() for voice in step.synthesizer.voices]
    for name in names:
        if name not in voices.VOICES:
            kokoro_voices.training_voice(name)
    assert len(set(names)) >= 24
    assert {name for name in names if name in voices.VOICES} == voices.VOICES.keys() - {"awb"}
    assert set(TRAINING_VOICES) <= set(names)
    # Each line of the texts is spoken three times, once by Kokoro.
    texts = [name for name, step in spoken.items() if step.data.endswith("texts.jsonl") and step.rows is None]
    assert texts == ["flite", "piper_pico", "kokoro"]
