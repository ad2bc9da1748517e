"""What the CTC head learns to write of a transcript, policy by policy."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig, WhisperFeatureExtractor

from soundwave_hf import SoundwaveCollator, SoundwaveProcessor
from soundwave_hf.modeling.ctc_text_soundwave import CTC_FORMS, ctc_form
from soundwave_hf.processing.text_soundwave import CTC_TEXTS, ctc_target
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
    "text", ["It's  Don’t -- 7:30, e-mail snake_case!", "École d'été", "'Tis dogs' tails", "你好", ""]
)
@pytest.mark.parametrize("form", CTC_FORMS)
def test_the_bridge_of_the_model_has_the_same_forms(text, form):
    assert ctc_form(text, form) == ctc_target(text, form)


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
