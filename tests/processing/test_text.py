"""What the CTC head learns to write of a transcript, policy by policy."""

import inspect
import json
import shutil
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig, WhisperFeatureExtractor

from soundwave_hf import SoundwaveCollator, SoundwaveProcessor
from soundwave_hf.modeling import ctc_text_soundwave, folders_soundwave, spacing_soundwave, spelled_soundwave
from soundwave_hf.modeling.ctc_text_soundwave import CTC_FORMS, ctc_form
from soundwave_hf.processing import llm_tokenizer_soundwave, spelling_soundwave, text_soundwave
from soundwave_hf.processing.text_soundwave import CTC_TEXTS, ctc_target, normalize_text
from soundwave_hf.training.collator import ctc_text
from tests.tiny import tiny_processor, tiny_tokenizer


OLD = Path(__file__).parents[1] / "fixtures" / "0.1"  # folders of a version that had no `ctc_text`


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Login incorrect.", " login incorrect"),
        ("HELLO, World!", " hello world"),
        ("It's five o'clock", " it's five o'clock"),
        ("Don’t", " don't"),
        ("'Tis 'quoted'; dogs' tails", " tis quoted dogs tails"),
        ("Dial 911 at 7:30", " dial 911 at 7 30"),
        ("e-mail snake_case", " e mail snake case"),
        ("3.5 %", " 3 5"),
        ("École d'été", " école d'été"),
        ("  many \n spaces\t", " many spaces"),
        ("你好 world", " 你好 world"),
        ("?!...", ""),
        ("", ""),
        # Combining marks are parts of words: vowels of Hindi, Thai, Burmese and Tamil, points of Hebrew and Arabic.
        ("नमस्ते, दुनिया!", " नमस्ते दुनिया"),
        ("สวัสดีครับ ที่นี่", " สวัสดีครับ ที่นี่"),
        ("မင်္ဂလာပါ။", " မင်္ဂလာပါ"),
        ("வணக்கம்!", " வணக்கம்"),
        ("שָׁלוֹם", " שָׁלוֹם"),
        ("e\u0301cole E\u0301te\u0301", " école été"),
        ("می\u200cخواهم", " می\u200cخواهم"),  # the joiner is inside the word
        ("co\u00adoperate \ufeffnow", " cooperate now"),
        ("\u1112\u1161\u11ab\u1100\u1173\u11af", " 한글"),
    ],
)
def test_lower_gives_one_spelling_a_word(text, expected):
    assert ctc_target(text, "lower") == ctc_text(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("He was not a young man.", " He was not a young man."),
        ("  Wait --\n\twhat?! ", " Wait -- what?!"),
        ("Don’t e-mail 3.5 %", " Don’t e-mail 3.5 %"),
        ("a\u00a0b", " a b"),
        ("你好 world", " 你好 world"),
        ("\n", ""),
        ("", ""),
    ],
)
def test_as_written_keeps_case_and_marks_with_one_space_before_each_word(text, expected):
    assert ctc_target(text, "as_written") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Dial 911 at 7:30", " dial nine hundred and eleven at seven thirty"),
        ("The 21st of 1,250,000", " the twenty first of one million two hundred and fifty thousand"),
        ("3.05 percent", " three point zero five percent"),
        ("Agent 007, room 0", " agent zero zero seven room zero"),
        ("an mp3 of B2B", " an mp3 of b2b"),
        ("No numbers.", " no numbers"),
    ],
)
def test_lower_spelled_says_numbers_in_words(text, expected):
    assert ctc_target(text, "lower_spelled") == expected


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        # whole numbers, with the marks of thousands of the language
        (
            "de",
            "42 Hunde und 1.250.000 Katzen",
            " zweiundvierzig hunde und eine million zweihundertfünfzigtausend katzen",
        ),
        ("fr", "80 ou 1 250 000", " quatre vingts ou un million deux cent cinquante mille"),
        ("es", "21 y 1.250", " veintiuno y mil doscientos cincuenta"),
        ("ru", "в 5 домах", " в пять домах"),
        ("ja", "3個と21人。", " 三個と二十一人"),
        ("th", "42 คน", " สี่สิบสองคน"),
        ("ko", "3개", " 삼개"),
        # decimals: a comma, or a point where the language has one
        ("de", "3,05 Prozent", " drei komma null fünf prozent"),
        ("fr", "3,14 et 10,50", " trois virgule un quatre et dix virgule cinq zéro"),
        ("es", "3,5 km", " tres punto cinco km"),
        ("it", "3,05", " tre virgola zero cinque"),
        ("ru", "3,05", " три целых пять сотых"),
        ("ko", "1,250.5", " 천이백오십 점 오"),
        # ordinals
        ("de", "Am 3. Mai, der 21. Juni.", " am dritten mai der einundzwanzigste juni"),
        ("de", "Es waren 21. Dann ging er.", " es waren einundzwanzig dann ging er"),
        ("fr", "le 1er, la 1re, le 21e, la 2ème", " le premier la première le vingt et unième la deuxième"),
        ("es", "el 1º, la 2ª, el 1er día", " el primero la segunda el primero día"),
        ("nl", "de 2de keer", " de tweede keer"),
        ("pt-BR", "a 1ª vez", " a primeira vez"),
        # years: in hundreds in German and others, as a number in French and Spanish
        ("de", "von 1999 bis 2024", " von neunzehnhundertneunundneunzig bis zweitausendvierundzwanzig"),
        ("de", "1.999 Mark", " eintausendneunhundertneunundneunzig mark"),
        ("fr", "en 1999", " en mille neuf cent quatre vingt dix neuf"),
        ("es", "en 1999", " en mil novecientos noventa y nueve"),
        # amounts of money
        ("de", "2,50 € oder 5 €", " zwei euro und fünfzig cent oder fünf euro"),
        ("fr", "2,20 € et 5 $", " deux euros et vingt centimes et cinq dollars"),
        ("es", "$5 o £2,20", " cinco dólares o dos libras con veinte peniques"),
        ("de", "3 Mio. €", " drei mio"),  # the currency is said last, which the order of the signs hides
        ("pt-BR", "R$ 5", " r cinco"),  # reais, not dollars
        ("sv", "5 €", " fem"),  # num2words has no amounts here: the sign is a mark
        ("ar", "5 €", " خمسة"),
        # a leading zero, other names of a language, and no number at all
        ("de", "Zimmer 007", " zimmer null null sieben"),
        ("German", "Call 9", " call neun"),
        ("de-AT", "9", " neun"),
        ("en-IN", "100000", " one lakh"),
        ("en_GB", "911", " nine hundred and eleven"),
        ("auto", "9", " nine"),
        ("hi", "कोई संख्या नहीं", " कोई संख्या नहीं"),
        ("tr", "5'te", " beş'te"),
    ],
)
def test_numbers_are_words_of_the_language(language, text, expected):
    assert normalize_text(text, "lower_spelled", language) == expected


def test_french_of_belgium_and_switzerland_has_its_own_numbers():
    assert normalize_text("70", "lower_spelled", "fr") == " soixante dix"
    assert (
        normalize_text("70", "lower_spelled", "fr-CH") == normalize_text("70", "lower_spelled", "fr_BE") == " septante"
    )


@pytest.mark.parametrize(
    ("language", "text", "message"),
    [
        ("hi", "कमरा 9", "num2words has no number words for 'hi'; it has am, ar, .*, vi. Give 'lower'"),
        ("zh", "第 9", "no number words for 'zh'"),
        ("gernam", "9", "Unsupported language: 'gernam'. Did you mean 'german'"),
        ("vi", "3,05", "num2words has no words for 3.05 .* in the language 'vi': write it out"),
        ("ar", "3,05", "num2words has no words for 3.05"),
        ("de", "1,234 €", "num2words has no words for 1.234 EUR"),
    ],
)
def test_a_number_without_words_is_refused_and_never_shortened(language, text, message):
    with pytest.raises(ValueError, match=message):
        normalize_text(text, "lower_spelled", language)


def test_amounts_of_euros_are_said_in_every_language_that_has_them():
    for language in spelling_soundwave.AMOUNTS:
        words = normalize_text("2,50 €", "lower_spelled", language).split()
        two, fifty = (normalize_text(number, "lower_spelled", language).strip() for number in ("2", "50"))
        assert len(words) >= 4 and words[0][:1] == two[:1] and fifty in " ".join(words), language


def test_every_language_of_num2words_spells_whole_numbers():
    from num2words import CONVERTER_CLASSES

    for language in CONVERTER_CLASSES:
        words = {normalize_text(f"{number}", "lower_spelled", language) for number in (7, 42, 90)}
        assert len(words) == 3 and not any(map(str.isdecimal, "".join(words))), language


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("zh", "你好 世界 OK go 再见。", " 你好世界 ok go 再见"),
        ("Japanese", "お は よう", " おはよう"),
        ("th", "สวัสดี ครับ", " สวัสดีครับ"),
        (None, "你好 世界", " 你好 世界"),
        ("en", "你好 世界", " 你好 世界"),
        ("ko", "안녕 하세요", " 안녕 하세요"),
        ("tr", "IŞIK İstanbul", " ışık istanbul"),
        ("en", "ISLE", " isle"),
        ("xx", "ISLE", " isle"),  # a language that only numbers need
    ],
)
def test_lower_knows_languages_without_spaces_and_the_turkish_i(language, text, expected):
    assert normalize_text(text, "lower", language) == expected
    assert normalize_text(text, "as_written", language) == f" {text}"


def test_training_cleaning_and_scoring_call_the_same_function(monkeypatch, tmp_path):
    """Each takes another text if the function does."""
    from soundwave_hf.data.clean import text_filters
    from soundwave_hf.evaluation import metrics
    from soundwave_hf.processing import processing_soundwave

    modules = (processing_soundwave, text_filters, metrics)
    assert all(module.normalize_text is normalize_text for module in modules)
    asked = []

    def marked(text, policy, language=None):
        asked.append((policy, language))
        return f" <{text}>"

    for module in modules:
        monkeypatch.setattr(module, "normalize_text", marked)
    processor = SoundwaveProcessor(WhisperFeatureExtractor(), tiny_tokenizer(), ctc_text="lower_spelled")
    row = {"audio": {"array": [0.0] * 16000, "sampling_rate": 16000}, "text": "9", "language": "de"}
    labels = SoundwaveCollator(processor, losses=("ctc",))([row])["ctc_labels"][0].tolist()
    assert labels == processor.tokenizer(" <9>", add_special_tokens=False).input_ids
    assert text_filters.num_characters("9") == 3
    (edits,) = metrics.edits_by_clip(["9"], ["8"], language="de", normalize="lower_spelled")
    assert edits[1][0].reference == "<9>"
    assert asked == [("lower_spelled", "de"), ("as_written", None), *[("lower_spelled", "de")] * 2]


def test_training_targets_are_in_the_language_of_the_row():
    processor = SoundwaveProcessor(WhisperFeatureExtractor(), tiny_tokenizer(), ctc_text="lower_spelled")
    clip = {"array": [0.0] * 16000, "sampling_rate": 16000}
    rows = [{"audio": clip, "text": "9", **given} for given in ({"language": "de"}, {}, {"language": None})]
    labels = SoundwaveCollator(processor, losses=("ctc",))(rows)["ctc_labels"]
    texts = [processor.tokenizer.decode(row[row >= 0].tolist()) for row in labels]
    assert texts == [" neun", " nine", " nine"]


def test_without_num2words_numbers_are_refused_and_other_texts_are_not(monkeypatch):
    monkeypatch.setitem(sys.modules, "num2words", None)
    with pytest.raises(ImportError, match="library num2words: `pip install num2words`, or"):
        ctc_target("Dial 9.", "lower_spelled")
    assert ctc_target("Dial nine.", "lower_spelled") == " dial nine"


@pytest.mark.parametrize("policy", ["upper", "Lower", "", None])
def test_another_policy_is_refused_with_the_known_ones(policy):
    message = f"`ctc_text` is {policy!r}; expected one of 'as_written', 'lower', 'lower_spelled'"
    with pytest.raises(ValueError, match=message):
        ctc_target("Hi.", policy)
    with pytest.raises(ValueError, match=message):
        SoundwaveProcessor(WhisperFeatureExtractor(), tiny_tokenizer(), ctc_text=policy)


def test_the_models_config_knows_the_same_policies():
    for policy in CTC_TEXTS:
        assert AutoConfig.for_model("soundwave", ctc_text=policy).ctc_text == policy


@pytest.mark.parametrize(
    "text",
    [
        "It's  Don’t -- 7:30, e-mail snake_case!",
        "École d'été",
        "'Tis dogs' tails",
        "你好",
        "",
        "नमस्ते, ที่นี่ می\u200cخواهم",
        "E\u0301cole co\u00adoperate",
    ],
)
@pytest.mark.parametrize("form", CTC_FORMS)
def test_the_bridge_of_the_model_has_the_same_forms(text, form):
    assert ctc_form(text, form) == ctc_target(text, form)
    assert text_soundwave.UNSPACED == spacing_soundwave.UNSPACED


# ---- in the processor ----


@pytest.mark.parametrize("policy", CTC_TEXTS)
def test_a_saved_processor_makes_the_same_targets(tmp_path, policy):
    processor = SoundwaveProcessor(WhisperFeatureExtractor(), tiny_tokenizer(), ctc_text=policy)
    processor.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "processor_config.json").read_text())["ctc_text"] == policy
    loaded = SoundwaveProcessor.from_pretrained(tmp_path)
    assert loaded.ctc_text == policy
    assert loaded.ctc_target("Dial 9!") == ctc_target("Dial 9!", policy)


def test_a_folder_that_names_no_policy_writes_lower_case(tmp_path):
    tiny_processor().save_pretrained(tmp_path)
    path = tmp_path / "processor_config.json"
    values = json.loads(path.read_text())
    values.pop("ctc_text")
    path.write_text(json.dumps(values))
    assert SoundwaveProcessor.from_pretrained(tmp_path).ctc_text == "lower"
    for folder in ("align", "instruct", "merged"):
        assert "ctc_text" not in json.loads((OLD / folder / "config.json").read_text())
        assert AutoConfig.from_pretrained(OLD / folder).ctc_text == "lower"


def test_labels_are_the_tokens_of_the_processors_policy(tmp_path):
    row = {"audio": {"array": [0.0] * 16000, "sampling_rate": 16000}, "text": "Hi,  You!"}
    for policy, expected in (("as_written", " Hi, You!"), ("lower", " hi you")):
        processor = SoundwaveProcessor(WhisperFeatureExtractor(), tiny_tokenizer(), ctc_text=policy)
        collator = SoundwaveCollator(processor, losses=("ctc",))
        labels = collator([row])["ctc_labels"][0].tolist()
        assert labels == processor.tokenizer(expected, add_special_tokens=False).input_ids
        collator.set_negatives(["Hi,  You!"], negatives=0)
        assert collator.spoken_ids.tolist() == sorted(set(labels))


def test_trained_adapters_keep_their_policy(tmp_path):
    adapter = shutil.copytree(OLD / "align", tmp_path / "adapter")
    processor = tiny_processor()
    processor.feature_extractor.save_pretrained(tmp_path / "encoder")
    processor.tokenizer.save_pretrained(tmp_path / "llm")
    backbones = str(tmp_path / "encoder"), str(tmp_path / "llm")
    assert SoundwaveProcessor.from_backbones(*backbones, ctc_text="as_written").ctc_text == "as_written"
    assert SoundwaveProcessor.from_backbones(*backbones, adapter=adapter).ctc_text == "lower"
    message = "`ctc_text` is set to 'as_written', and `.*adapter` was trained with 'lower': leave it out"
    with pytest.raises(ValueError, match=message):
        SoundwaveProcessor.from_backbones(*backbones, adapter=adapter, ctc_text="as_written")
    with pytest.raises(ValueError, match=message):
        SoundwaveProcessor.from_pretrained(adapter, llm=backbones[1], ctc_text="as_written")


def test_candidates_have_the_number_words_of_the_rows_language():
    processor = SoundwaveProcessor(WhisperFeatureExtractor(), tiny_tokenizer(), ctc_text="lower_spelled")
    collator = SoundwaveCollator(processor, losses=("ctc",))
    collator.set_negatives([("a 5", "de")], negatives=0)
    expected = processor.tokenizer(" a fünf", add_special_tokens=False).input_ids
    assert collator.spoken_ids.tolist() == sorted(set(expected))


def test_what_the_uploaded_files_of_model_and_processor_both_hold_is_the_same():
    assert ctc_text_soundwave.word_pattern().pattern == text_soundwave.word_pattern().pattern
    assert ctc_text_soundwave.UNSEEN == text_soundwave.UNSEEN
    assert spelled_soundwave.NUMBER.pattern == spelling_soundwave.ENGLISH.pattern
    assert spelled_soundwave.MOST_DIGITS == spelling_soundwave.MOST_DIGITS
    for name in ("_package_backbones", "local_backbone"):
        found = [inspect.getsource(getattr(module, name)) for module in (folders_soundwave, llm_tokenizer_soundwave)]
        assert found[0] == found[1]
