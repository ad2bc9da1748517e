"""A user's own metadata and text in README.md: what stays, what is left out and said, and what the card says of it."""

import pytest
from huggingface_hub import ModelCard, ModelCardData
from peft import LoraConfig, get_peft_model
from torch import nn

from soundwave_hf import push_model
from soundwave_hf.publish.card import model_card
from soundwave_hf.publish.card_parts import left_out_metadata, read_card, write_card
from soundwave_hf.publish.facts import ModelFacts
from tests.publish.conftest import USED


CONVERTED = """---
base_model: FreedomIntelligence/Soundwave
datasets: [org/one, org/two]
pipeline_tag: audio-text-to-text
language: [en, zh]
library_name: transformers
---
# Converted
"""
WHOLE = ModelFacts("whole", "an unnamed encoder", "an unnamed llm", name="me/mine")
LORA = ModelFacts("lora", "openai/whisper-base", "org/llm", name="me/mine")
WRITTEN = {"tags": ["soundwave"], "base_model": ["a/b"], "datasets": ["org/one"], "pipeline_tag": "x"}


def merged(own: str, written: dict) -> dict:
    return ModelCard(write_card(written, "# Written", read_card(own, "README.md"))).data.to_dict()


# ---- what stays ----


@pytest.fixture
def converted(folder, tmp_path, capsys, same_process, quick_plot):
    """The card of a converted model."""
    whole = folder("whole")
    (whole / "README.md").write_text(CONVERTED)
    push_model(whole, "me/mine", dry_run=tmp_path / "out")
    return tmp_path / "out"


def test_a_converted_model_keeps_its_base_model_and_data_sets(converted, tmp_path, capsys):
    card = ModelCard.load(converted / "README.md")
    assert card.data.base_model == ["FreedomIntelligence/Soundwave"]
    assert (card.data.datasets, card.data.language) == (["org/one", "org/two"], ["en", "zh"])
    assert "['pipeline_tag: audio-text-to-text'] are left out" in capsys.readouterr().out
    # What was written is pushed again.
    push_model(converted, "me/mine", dry_run=tmp_path / "again")
    assert (tmp_path / "again" / "README.md").read_text() == (converted / "README.md").read_text()


def test_the_text_says_what_the_metadata_says(converted):
    text = (converted / "README.md").read_text()
    assert "unnamed" not in text and "a speech encoder joined to an LLM. " in text
    assert "Made from FreedomIntelligence/Soundwave, as its author states." in text
    assert "Languages that its author states, without data or scores here: en, zh." in text
    assert "Languages of its data and scores" not in text
    assert "Its author states `org/one`, `org/two`." in text and "The data of the training is" not in text


def test_values_of_the_author_stand_beside_those_of_the_records():
    own = {"base_model": "org/start", "datasets": ["org/more"], "language": "zh"}
    data, text = model_card(ModelFacts("lora", "a/b", "c/d", name="me/mine", data=USED, own=own))
    found = ModelCard(write_card(data, text, read_card(f"---\n{ModelCardData(**own).to_yaml()}\n---\n", "a"))).data
    assert found.base_model == ["a/b", "c/d", "org/start"] and found.language == ["en", "zh"]
    assert found.datasets == ["openslr/librispeech_asr", "org/more"]
    assert "Languages of its data and scores: en; others are untested." in text
    assert "without data or scores here: zh." in text and "Its author also states `org/more`." in text
    assert "Made from org/start, as its author states." in text


@pytest.mark.parametrize("names", [("", ""), ("/home/me/whisper/", "/home/me/llm")])
def test_backbones_without_a_name_are_described_and_folders_lose_their_place(names):
    text = model_card(ModelFacts("lora", *names))[1]
    assert "/home" not in text
    expected = ("the encoder of whisper", "llm") if names[0] else ("a speech encoder", "an LLM")
    assert f"They join {expected[0]} to {expected[1]}, as in" in text


def test_what_an_earlier_push_wrote_goes_and_what_a_user_added_there_stays():
    written = {"tags": ["soundwave", "non-commercial"], "base_model": ["a/b"], "datasets": ["org/one"]}
    there = write_card(written, "# Written").replace("- org/one", "- org/one\n- org/by-hand", 1)
    found = merged(there, {"tags": ["soundwave"], "base_model": ["c/d"]})
    assert found == {"tags": ["soundwave"], "base_model": ["c/d"], "datasets": ["org/by-hand"]}


def test_cards_of_earlier_versions_have_no_values_of_the_user_but_tags():
    text = write_card(WRITTEN | {"tags": ["soundwave", "non-commercial"]}, "# Written")
    earlier = "\n".join(line for line in text.splitlines() if "metadata that" not in line)
    card = read_card(earlier, "a")
    assert card.metadata == {"tags": ["soundwave"]} and not card.is_edited and card.own == ""


def test_norwegian_stays_norwegian():
    assert merged("---\nlanguage: no\n---\n", {"language": ["en"]})["language"] == ["en", "no"]


# ---- what is left out ----


@pytest.mark.parametrize(
    ("own", "lost"),
    [
        ("metrics: [wer]\nmodel-index: [{name: x}]", ["metrics", "model-index"]),
        ("pipeline_tag: y", ["pipeline_tag: y"]),
        ("pipeline_tag: x\ntags: soundwave\nbase_model: a/b\ndatasets: org/one\nthumbnail: x.png", []),
        ("base_model: /home/me/llm", ["base_model: ['/home/me/llm']"]),
        ("datasets: [./rows, org/two]", ["datasets: ['./rows']"]),
        ("tags: ['base_model:adapter:', mine]", ["tags: ['base_model:adapter:']"]),
    ],
)
def test_what_is_left_out_is_named(own, lost):
    own = f"---\n{own}\n---\n"
    assert sorted(left_out_metadata(read_card(own, "a"), WRITTEN)) == lost
    assert "/home" not in str(merged(own, WRITTEN)) and "./rows" not in str(merged(own, WRITTEN))


@pytest.mark.parametrize("base", ["", "/home/me/llm", "./llm", "None/x/y"])
@pytest.mark.parametrize("relation", ["", "adapter:", "finetune:", "merge:", "quantized:"])
def test_tags_of_base_models_that_are_none_of_the_hub_are_dropped(base, relation):
    own = f"---\ntags: ['base_model:{relation}{base}', 'base_model:{relation}org/llm', lora]\n---\n"
    assert merged(own, {"tags": ["soundwave"]})["tags"] == ["soundwave", f"base_model:{relation}org/llm", "lora"]


# ---- empty templates ----


@pytest.fixture
def of_peft(tmp_path) -> str:
    """The README.md of `save_pretrained` of a PEFT model."""
    model = get_peft_model(nn.Sequential(nn.Linear(2, 2)), LoraConfig(target_modules=["0"]))
    model.save_pretrained(tmp_path / "adapter")
    return (tmp_path / "adapter" / "README.md").read_text()


def test_pefts_empty_card_is_no_text_of_the_user(of_peft):
    assert "[More Information Needed]" in of_peft and "- PEFT" in of_peft
    assert read_card(of_peft, "a").own == ""
    quantized = "The following `bitsandbytes` quantization config was used during training:\n- load_in_4bit: True\n"
    assert read_card(f"{of_peft}\n## Training procedure\n\n{quantized}", "a").own == ""


def test_a_card_that_somebody_filled_in_is_their_text(of_peft):
    for old, new in (
        ("- **Developed by:** [More Information Needed]", "- **Developed by:** me"),
        ("# Model Card for Model ID", "# My model"),
        ("### Direct Use", "It hears.\n\n### Direct Use"),
    ):
        assert old in of_peft
        assert new in read_card(of_peft.replace(old, new), "a").own


def test_the_empty_card_of_transformers_is_no_text_either():
    text = (
        "This is the model card of a 🤗 transformers model that has been pushed on the Hub. This model card has been "
        "automatically generated."
    )
    assert read_card(str(ModelCard.from_template(ModelCardData(), model_description=text)), "a").own == ""


def test_an_empty_card_below_the_written_text_goes_at_the_next_push(of_peft):
    pushed = write_card({"tags": []}, "# Written") + "\n" + ModelCard(of_peft).text
    card = read_card(pushed, "a")
    assert (card.own, card.block, card.is_edited) == ("", "# Written", False)


def test_a_folder_of_peft_is_pushed_without_its_empty_card(folder, tmp_path, of_peft, same_process, quick_plot):
    run = folder("run")
    (run / "README.md").write_text(of_peft.replace("tags:", "tags:\n- 'base_model:adapter:'", 1))
    push_model(run, "me/mine", dry_run=tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "More Information" not in text and "base_model:adapter:" not in text and "- lora" in text
