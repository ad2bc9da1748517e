import re

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaModel

from soundwave_hf import SoundwaveForConditionalGeneration, SoundwaveForCTC, SoundwaveProcessor
from soundwave_hf.data.tiny import make_speech
from soundwave_hf.modeling.backbones_soundwave import TRAINED_FILE
from soundwave_hf.training.stages import STAGES, check_trainable, freeze_all_but
from tests.training.workspace import Trained, everything_in, train, train_chain


LORA = r"language_model\.layers\.[01]\.self_attn\.[qkvo]_proj\.lora_[AB]\.default\.weight$"
ADAPTERS = r"(alignment_adapter|ctc_head|shrinking_adapter)\.modules_to_save\.default\."
TRAINS = {
    "align": r"(alignment_adapter|ctc_head)\.",
    "shrink": rf"base_model\.model\.model\.({ADAPTERS}|{LORA})",
    "instruct": rf"base_model\.model\.model\.{LORA}",
}
# Tensors that train. Alignment: projection 2, attention 8 (4 where a frame hears itself alone), feed-forward 4, three
# norms 6. CTC head: the blank's 2, or one matrix. Shrinking: attention 8, norm 2. LoRA: 2 layers of 4 pairs.
NUM_TRAINED = {
    "paper": {"align": 20 + 2, "shrink": 20 + 2 + 10 + 16, "instruct": 16},
    "published": {"align": 16 + 1, "shrink": 16 + 1 + 10 + 16, "instruct": 16},
}


@pytest.fixture(scope="module", params=["paper", "published"])
def compat(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def stages(compat, request, workspace, tmp_path_factory) -> dict[str, Trained]:
    """The three stages, of either set of choices."""
    if compat == "paper":
        return request.getfixturevalue("chain")
    return train_chain(workspace, tmp_path_factory.mktemp("published"), compat="published")


@pytest.fixture(scope="module")
def inputs(workspace) -> dict[str, torch.Tensor]:
    """A left-padded batch of two questions about clips of 1 s and 0.6 s."""
    clips = [make_speech(1.0, seed=20), make_speech(0.6, seed=21)]
    request = workspace.processor().apply_transcription_request
    return request(clips, prompt=["What does the person say?", "Who?"], sampling_rate=16_000)


def test_a_recipe_chooses_the_attention_of_a_part(workspace, tmp_path):
    recipe = workspace.recipe("shrink", tmp_path / "out", max_steps=1, attn_implementation={"text_config": "eager"})
    config = train(recipe).model.get_base_model().config
    assert config.text_config._attn_implementation == "eager"
    assert config.audio_config._attn_implementation == config._attn_implementation == "sdpa"


def test_the_table_is_that_of_the_paper():
    assert {name: stage.losses for name, stage in STAGES.items()} == {
        "align": ("ctc",),
        "shrink": ("ce", "ctc"),
        "instruct": ("ce",),
    }
    assert [name for name, stage in STAGES.items() if not stage.has_llm] == ["align"]


@pytest.mark.parametrize("stage", STAGES)
def test_exactly_the_named_parameters_move(stages, compat, stage):
    trained = stages[stage]
    named = {name for name in trained.before if re.match(TRAINS[stage], name)}
    assert len(named) == NUM_TRAINED[compat][stage]
    assert trained.moved() <= named
    # A bias of the keys adds one score to all frames alike, which attention does not see.
    assert {name for name in named - trained.moved() if not name.endswith("k_proj.bias")} == set()


@pytest.mark.parametrize("stage", STAGES)
def test_the_optimizer_holds_what_trains_and_nothing_else(stages, compat, stage):
    groups = stages[stage].trainer.optimizer.param_groups
    assert sum(len(group["params"]) for group in groups) == NUM_TRAINED[compat][stage]


def test_stage_one_holds_no_llm_layer(stages):
    model = stages["align"].model
    assert isinstance(model, SoundwaveForCTC)
    parts = {name.split(".")[0] for name, _ in model.named_parameters()}
    tied = {"token_embeddings"} if model.config.tie_ctc_head else set()
    assert parts == {"audio_tower", "alignment_adapter", "ctc_head"} | tied


def test_stage_one_neither_loads_nor_runs_the_llm(workspace, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the LLM was used")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refuse)
    monkeypatch.setattr(LlamaModel, "forward", refuse)
    assert len(train(workspace.recipe("align", tmp_path / "out", max_steps=1)).losses()) == 1


def test_stage_two_begins_with_what_stage_one_trained(stages):
    before = stages["shrink"].before
    for name, weight in load_file(stages["align"].folder / TRAINED_FILE).items():
        part, rest = name.split(".", 1)
        assert torch.equal(before[f"base_model.model.model.{part}.modules_to_save.default.{rest}"], weight)


def test_stage_three_begins_with_what_stage_two_trained(stages):
    after = everything_in(stages["shrink"].model)
    for name, value in stages["instruct"].before.items():
        if ".original_module." not in name:  # what PEFT replaced; no forward reads it
            assert torch.equal(value, after[name]), name


def test_stage_one_can_go_on_from_stage_one(workspace, chain, tmp_path):
    again = train(workspace.recipe("align", tmp_path / "out", start_from=str(chain["align"].folder), max_steps=1))
    for name, weight in load_file(chain["align"].folder / TRAINED_FILE).items():
        assert torch.equal(again.before[name], weight)


def test_the_folder_of_stage_one_loads_as_an_adapter(workspace, stages):
    loaded = SoundwaveForConditionalGeneration.from_backbones(
        workspace.encoder, workspace.llm, adapter=str(stages["align"].folder)
    )
    assert loaded.config.compat == stages["align"].model.config.compat
    parts = loaded.model.state_dict()
    for name, weight in load_file(stages["align"].folder / TRAINED_FILE).items():
        assert torch.equal(parts[name], weight)


@pytest.mark.parametrize("stage", ["shrink", "instruct"])
@torch.no_grad()
def test_an_adapter_folder_gives_the_logits_and_answers_of_the_trained_model(workspace, stages, inputs, stage):
    loaded = SoundwaveForConditionalGeneration.from_backbones(
        workspace.encoder, workspace.llm, adapter=str(stages[stage].folder)
    )
    trained = stages[stage].model.eval()
    torch.testing.assert_close(loaded(**inputs).logits, trained(**inputs).logits, rtol=0, atol=1e-4)
    length = inputs["input_ids"].shape[1]
    answers = [
        model.generate(**inputs, max_new_tokens=5, do_sample=False, eos_token_id=None) for model in (loaded, trained)
    ]
    assert answers[0].shape == (2, length + 5)
    assert torch.equal(answers[0], answers[1])


@pytest.mark.parametrize("stage", STAGES)
def test_the_folder_of_a_stage_holds_its_processor(workspace, chain, stage):
    processor = SoundwaveProcessor.from_pretrained(chain[stage].folder)
    assert processor.tokenizer.get_vocab() == workspace.processor().tokenizer.get_vocab()
    assert processor.feature_extractor.feature_size == workspace.processor().feature_extractor.feature_size


def test_a_stage_whose_parts_the_model_lacks_is_refused(workspace):
    model = SoundwaveForCTC.from_backbones(workspace.encoder, workspace.llm)
    with pytest.raises(
        ValueError, match=r"trains `\\bshrinking_adapter.*SoundwaveForCTC has no parameter of such a name"
    ):
        freeze_all_but(model, STAGES["shrink"])


def test_a_parameter_against_the_table_is_named(workspace):
    model = SoundwaveForCTC.from_backbones(workspace.encoder, workspace.llm)
    freeze_all_but(model, STAGES["align"])
    check_trainable(model, STAGES["align"])
    model.ctc_head.blank_bias.requires_grad_(False)
    with pytest.raises(ValueError, match="`ctc_head.blank_bias` is frozen, and the stage trains exactly"):
        check_trainable(model, STAGES["align"])


def test_training_refuses_a_parameter_against_the_table(workspace, tmp_path):
    def thaw(model):
        model.audio_tower.conv1.bias.requires_grad_()

    with pytest.raises(ValueError, match="`audio_tower.conv1.bias` trains, and the stage trains exactly"):
        train(workspace.recipe("align", tmp_path / "out"), change=thaw)


@pytest.mark.parametrize(
    ("stage", "start", "changes", "message"),
    [
        ("instruct", "align", {}, "which holds no LoRA: name a stage `shrink` folder"),
        ("align", "shrink", {}, "which holds LoRA: stage `align` has no LLM for it"),
        ("align", None, {"lora": {"r": 4}}, "`lora` is given, and the stage has no LLM: leave it out"),
        ("instruct", "shrink", {"lora": {"r": 4}}, "`lora` is given, and .* holds a LoRA already: leave it out"),
        ("align", None, {"quantization": {"load_in_4bit": True}}, "`quantization` is given, and stage `align` has no"),
        ("shrink", "align", {"warm_start": True}, "`warm_start` is given, and `start_from` holds trained adapters"),
        ("instruct", "shrink", {"ctc_negatives": 4}, "`ctc_negatives` is given, and stage `instruct` has no CTC loss"),
        ("shrink", "align", {"model": {"alignment_attention": "frame"}}, "to 'frame', and .* trained with 'sequence'"),
        ("shrink", "align", {"model": {"compat": "published"}}, "to 'published', and .* was trained with 'paper'"),
    ],
)
def test_what_the_stage_before_cannot_give_is_refused(workspace, chain, tmp_path, stage, start, changes, message):
    if start is not None:
        changes = {"start_from": str(chain[start].folder), **changes}
    with pytest.raises(ValueError, match=message):
        train(workspace.recipe(stage, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_fields_that_leave_the_weights_alone_may_change_between_stages(workspace, chain, tmp_path):
    changes = {"start_from": str(chain["align"].folder), "model": {"ctc_loss_weight": 0.5, "look_back": "kept"}}
    trained = train(workspace.recipe("shrink", tmp_path / "out", max_steps=1, **changes))
    config = trained.model.get_base_model().config
    assert (config.ctc_loss_weight, config.look_back) == (0.5, "kept")
    (entry,) = trained.logs
    assert entry["loss"] == pytest.approx(entry["ce_loss"] + 0.5 * entry["ctc_loss"], rel=1e-5)
