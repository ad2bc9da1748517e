"""Languages as people write them, and keywords of a transcription request that nothing reads."""

import pytest
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

from soundwave_hf.processing.languages_soundwave import language_name
from tests.tiny import tiny_processor


WRITTEN = {
    "english": [
        "en",
        "EN",
        "en-US",
        "en_us",
        "en-GB",
        "English",
        " english ",
        "en_US.UTF-8",
        "<|en|>",
        "English (US)",
    ],
    "chinese": ["zh", "zh-CN", "zh_cn", "zh-Hans", "zh-Hant-TW", "cmn_hans_cn", "Mandarin", "Chinese (Mandarin)"],
    "cantonese": ["yue", "zh-yue", "yue_hant_hk", "Cantonese"],
    "portuguese": ["pt-BR", "pt_br", "PT", "Portuguese"],
    "spanish": ["es-419", "Castilian", "es_ES@euro"],
    "german": ["de-DE-1996", "German"],
    "norwegian": ["nb-NO", "no"],
    "hebrew": ["iw", "he-IL"],
    "haitian creole": ["ht", "Haitian", "haitian_creole", "Haitian Creole"],
    "filipino": ["fil", "fil_ph", "Filipino"],
    None: [None, "auto", "AUTO", "und"],
}


@pytest.mark.parametrize(("name", "written"), WRITTEN.items())
def test_a_language_is_known_however_it_is_written(name, written):
    assert [language_name(one) for one in written] == [name] * len(written)


def test_every_code_and_name_of_whisper_is_known():
    for code, name in LANGUAGES.items():
        assert language_name(code) == language_name(code.upper()) == language_name(name.title()) == name
    for name, code in TO_LANGUAGE_CODE.items():
        assert language_name(name) == LANGUAGES[code]


@pytest.mark.parametrize(
    ("language", "near"),
    [("frensh", "'french'"), ("Germann", "'german'"), ("englsh", "'english'"), ("chinease", "'ch")],
)
def test_an_unknown_language_is_refused_with_those_like_it(language, near):
    with pytest.raises(ValueError, match=f"Unsupported language: '{language}'. Did you mean .*{near}"):
        language_name(language)


@pytest.mark.parametrize("language", ["klingon", "", "xx", "en-", "e", "french-banana-split"])
def test_what_is_no_language_is_refused(language):
    with pytest.raises(ValueError, match=f"Unsupported language: {language!r}.*Use a code"):
        language_name(language)
    with pytest.raises(ValueError, match="Unsupported language"):
        tiny_processor().apply_transcription_request("a.wav", language=language, tokenize=False)


def test_a_language_that_is_no_text_is_refused():
    with pytest.raises(TypeError, match="`language` is 5; expected a code such as 'en'"):
        language_name(5)


def questions(language, clips: int = 1) -> list[bool]:
    prompts = tiny_processor().apply_transcription_request(["a.wav"] * clips, language=language, tokenize=False)
    return ["The speech is in French." in prompt for prompt in prompts]


def test_a_request_names_the_language_of_each_clip():
    assert questions("fr-CA", 2) == [True, True]
    assert questions(["fr", "auto", None], 3) == [True, False, False]
    assert questions(("FRENCH", "en-US"), 2) == [True, False]
    with pytest.raises(ValueError, match=r"Got 3 language\(s\) for 2 sample\(s\)"):
        questions(["fr", "en", "de"], 2)
    with pytest.raises(ValueError, match="Received 1 prompt for 2 audio sample"):
        tiny_processor().apply_transcription_request(["a.wav"] * 2, prompt=["Write."], tokenize=False)


MISSPELT = {"langauge": "language", "promt": "prompt", "sampling_rte": "sampling_rate", "tokenise": "tokenize"}


@pytest.mark.parametrize(("keyword", "near"), MISSPELT.items())
def test_a_misspelt_keyword_is_refused_with_the_one_meant(keyword, near):
    with pytest.raises(ValueError, match=rf"`{keyword}='fr'`. Did you mean `{near}`\?"):
        tiny_processor().apply_transcription_request("a.wav", **{keyword: "fr"}, tokenize=False)


def test_a_variable_of_the_template_is_no_misspelt_keyword():
    processor = tiny_processor()
    processor.chat_template += "{{ enable_thinking }}"
    prompts = processor.apply_transcription_request("a.wav", tokenize=False, enable_thinking="off")
    assert prompts[0].endswith("off")
    with pytest.raises(ValueError, match="got an unknown argument `enable_thinkin='off'`"):
        processor.apply_transcription_request("a.wav", tokenize=False, enable_thinkin="off")


def test_a_request_transcribes_and_does_nothing_else():
    processor = tiny_processor()
    plain = processor.apply_transcription_request("a.wav", tokenize=False)
    assert processor.apply_transcription_request("a.wav", tokenize=False, task="transcribe") == plain
    with pytest.raises(ValueError, match="`task` is 'translate'; .* use `apply_chat_template` with the clip"):
        processor.apply_transcription_request("a.wav", tokenize=False, task="translate")
