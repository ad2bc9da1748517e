"""The recipe's `ctc_text` reaches the targets, both saved configs and the stages that follow."""

import json

import pytest
from transformers import AutoConfig

from soundwave_hf import (
    SoundwaveCollator,
    SoundwaveForCTC,
    SoundwaveProcessor,
    SoundwaveTrainer,
    SoundwaveTrainingArguments,
)
from soundwave_hf.training.export import export_adapter
from tests.training.workspace import train


@pytest.fixture(scope="module")
def aligned(workspace, tmp_path_factory):
    """A run of stage `align` of one step on transcripts as written."""
    folder = tmp_path_factory.mktemp("ctc_text") / "align"
    return train(workspace.recipe("align", folder, max_steps=1, model={"ctc_text": "as_written"}))


def saved(folder) -> tuple[str, str]:
    """`ctc_text` in the config of the model and in that of the processor."""
    values = (json.loads((folder / name).read_text()) for name in ("config.json", "processor_config.json"))
    return tuple(each["ctc_text"] for each in values)


def test_the_model_and_the_processor_are_saved_with_the_recipes_policy(aligned):
    assert saved(aligned.folder) == ("as_written", "as_written")
    assert SoundwaveProcessor.from_pretrained(aligned.folder).ctc_target("Hi, You!") == " Hi, You!"


def test_a_recipe_that_names_no_policy_trains_both_on_the_default(workspace, tmp_path):
    run = train(workspace.recipe("align", tmp_path / "out", max_steps=1))
    expected = SoundwaveProcessor.from_backbones(workspace.encoder, workspace.llm).ctc_text
    assert saved(run.folder) == (expected, expected)
    assert run.model.config.ctc_text == expected


def test_the_labels_of_a_run_follow_the_policy(aligned):
    labels = aligned.trainer.data_collator([{"audio": clip_of(aligned), "text": "Hi, You!"}])["ctc_labels"]
    tokenizer = aligned.trainer.processing_class.tokenizer
    assert labels[0].tolist() == tokenizer(" Hi, You!", add_special_tokens=False).input_ids


def clip_of(run) -> str:
    return run.trainer.train_dataset[0]["audio"]


def test_the_stages_that_follow_keep_the_policy_and_refuse_another(workspace, aligned, tmp_path):
    start = {"start_from": str(aligned.folder), "max_steps": 1}
    shrunk = train(workspace.recipe("shrink", tmp_path / "shrink", **start))
    assert saved(shrunk.folder) == ("as_written", "as_written")
    exported = export_adapter(shrunk.folder, tmp_path / "exported")
    assert saved(exported) == ("as_written", "as_written")
    assert AutoConfig.from_pretrained(exported).ctc_text == "as_written"
    recipe = workspace.recipe("shrink", tmp_path / "other", **start, model={"ctc_text": "lower"})
    with pytest.raises(ValueError, match="`ctc_text` is set to 'lower', and `.*align` was trained with 'as_written'"):
        train(recipe)
    with pytest.raises(ValueError, match="`ctc_text` is set to 'lower', and `.*align` was trained with 'as_written'"):
        SoundwaveForCTC.from_backbones(workspace.encoder, workspace.llm, adapter=str(aligned.folder), ctc_text="lower")


def test_an_unknown_policy_in_a_recipe_is_refused(workspace, tmp_path):
    with pytest.raises(ValueError, match="`ctc_text` is 'written'; expected one of 'as_written', 'lower'"):
        train(workspace.recipe("align", tmp_path / "out", model={"ctc_text": "written"}))


def test_a_trainer_refuses_a_tokenizer_with_more_tokens_than_the_model_has(workspace, tmp_path):
    backbones = workspace.encoder, workspace.llm
    processor = SoundwaveProcessor.from_backbones(*backbones)
    model = SoundwaveForCTC.from_backbones(*backbones)
    vocabulary = model.config.text_config.vocab_size
    processor.tokenizer.add_tokens([f"<new{number}>" for number in range(vocabulary + 1 - len(processor.tokenizer))])
    with pytest.raises(ValueError, match=f"has {vocabulary + 1} tokens and the model's vocabulary {vocabulary}"):
        SoundwaveTrainer(
            model=model,
            args=SoundwaveTrainingArguments(str(tmp_path), max_steps=1, report_to="none", use_cpu=True),
            data_collator=SoundwaveCollator(processor, losses=("ctc",)),
        )


@pytest.mark.parametrize("where", ["processing_class", "collator"])
def test_a_trainer_refuses_a_processor_with_other_targets_than_the_models(workspace, tmp_path, where):
    backbones = workspace.encoder, workspace.llm
    model = SoundwaveForCTC.from_backbones(*backbones, ctc_text="as_written")
    right, wrong = (SoundwaveProcessor.from_backbones(*backbones, ctc_text=name) for name in ("as_written", "lower"))
    message = "`ctc_text` is 'lower' in the processor and 'as_written' in the model's config: give both the same"
    with pytest.raises(ValueError, match=message):
        SoundwaveTrainer(
            model=model,
            args=SoundwaveTrainingArguments(str(tmp_path), max_steps=1, report_to="none", use_cpu=True),
            data_collator=SoundwaveCollator(wrong if where == "collator" else right, losses=("ctc",)),
            processing_class=wrong if where == "processing_class" else right,
        )
