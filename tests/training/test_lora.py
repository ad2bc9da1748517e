"""LoRA in LLMs of several families, and PEFT's variants of it."""

import re

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModel

from soundwave_hf.modeling.modeling_soundwave import SoundwaveForConditionalGeneration
from soundwave_hf.training.build import add_lora
from soundwave_hf.training.collator import SoundwaveDataCollator
from soundwave_hf.training.recipe import LORA_STARTS, SECTIONS
from soundwave_hf.training.run import read_rows
from soundwave_hf.training.stages import lora_targets
from tests.tiny_models import LLM_SIZES
from tests.training.workspace import SMALL_LORA, first_rows, train


SIZES = {**LLM_SIZES, "vocab_size": 32, "pad_token_id": 0}
SEPARATE = ["llama", "qwen3", "smollm3", "gemma3_text"]
FUSED = {
    "phi3": ["qkv_proj", "o_proj"],
    "gpt_neox": ["query_key_value", "dense"],
    "gpt2": ["c_attn"],
}


class Joined(nn.Module):
    """An LLM beside an encoder whose modules carry the same names, as in a Soundwave model."""

    def __init__(self, family: str):
        super().__init__()
        self.language_model = AutoModel.from_config(AutoConfig.for_model(family, **SIZES))
        self.audio_tower = nn.ModuleDict(dict.fromkeys(["q_proj", "qkv_proj", "dense"], nn.Linear(4, 4)))

    def lora_modules(self, names=None) -> list[str]:
        """Names of the modules that got a LoRA."""
        wrapped = get_peft_model(self, LoraConfig(r=2, target_modules=lora_targets(self.language_model, names)))
        return [name for name, module in wrapped.base_model.model.named_modules() if hasattr(module, "lora_A")]


@pytest.mark.parametrize("family", SEPARATE)
def test_four_projections_of_each_layer_get_a_lora_by_default(family):
    expected = [
        f"language_model.layers.{layer}.self_attn.{name}_proj" for layer in range(2) for name in ("q", "k", "v", "o")
    ]
    assert sorted(Joined(family).lora_modules()) == sorted(expected)


@pytest.mark.parametrize("family", FUSED)
def test_an_llm_without_them_names_the_key_and_its_own_modules(family):
    model = Joined(family)
    with pytest.raises(ValueError, match=r"has no \['q_proj'.*in the recipe, `lora: {target_modules:") as refused:
        lora_targets(model.language_model)
    choices = str(refused.value).rpartition(" from ")[2]
    assert all(f"'{name}'" in choices for name in FUSED[family])
    assert "embed" not in choices
    found = model.lora_modules(FUSED[family])
    assert {name.rpartition(".")[2] for name in found} == set(FUSED[family])
    assert all(name.startswith("language_model.") for name in found)


@pytest.mark.parametrize("names", ["all-linear", [], ["q_proj", "kproj"]])
def test_targets_that_are_no_names_of_the_llm_are_refused(names):
    with pytest.raises(ValueError, match=re.escape(f"`lora.target_modules` is {names!r}")):
        lora_targets(Joined("llama").language_model, names)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"exclude_modules": ["k_proj", "k_porj"]}, "`lora.exclude_modules` has 'k_porj', which matches none"),
        ({"exclude_modules": r"layers\.0\..*"}, r"has 'layers.*', which matches none .* such as `model.language_m"),
        ({"rank_pattern": {"q_proj": 2, "kproj": 4}}, "`lora.rank_pattern` has 'kproj', .*: name some of .*'k_proj'"),
        ({"alpha_pattern": {"o_proj": 2}, "exclude_modules": ["o_proj"]}, "`lora.alpha_pattern` has 'o_proj'"),
        ({"rank_pattern": {"q_proj": 2, r"layers\.0\..*q_proj": 4}}, "`lora.rank_pattern` has 'layers"),
    ],
)
def test_an_entry_that_matches_no_module_of_the_lora_is_refused(workspace, fields, message):
    model = SoundwaveForConditionalGeneration.from_backbones(workspace.encoder, workspace.llm)
    with pytest.raises(ValueError, match=message):
        add_lora(model, {**SMALL_LORA, **fields})


def test_entries_that_match_modules_of_the_lora_are_taken(workspace):
    model = SoundwaveForConditionalGeneration.from_backbones(workspace.encoder, workspace.llm)
    fields = {"exclude_modules": ["k_proj"], "rank_pattern": {r"layers\.0\..*q_proj": 2, "q_proj": 3}}
    model = add_lora(model, {**SMALL_LORA, **fields})
    ranks = {name: len(value) for name, value in model.named_parameters() if "q_proj.lora_A" in name}
    assert list(ranks.values()) == [2, 3] and not any("k_proj.lora_A" in name for name, _ in model.named_parameters())


def check_loaded(workspace, trained, tmp_path):
    """Compare the logits of a trained model with those of the models that are loaded from its folder."""
    (row,) = read_rows(first_rows(workspace, 1, tmp_path / "one.jsonl"), {})
    batch = SoundwaveDataCollator(workspace.processor())([row])
    with torch.no_grad():
        expected = trained.model.eval()(**batch).logits
        for merge in (False, True):
            loaded = SoundwaveForConditionalGeneration.from_pretrained(trained.folder, merge_lora=merge).eval()
            torch.testing.assert_close(loaded(**batch).logits, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("start", [start for start in LORA_STARTS if start is not True and start != "orthogonal"])
def test_a_lora_of_any_start_is_loaded_as_it_was_trained(workspace, chain, tmp_path, start):
    lora = {**SMALL_LORA, "init_lora_weights": start}
    changes = {"start_from": str(chain["align"].folder), "lora": lora, "max_steps": 1}
    check_loaded(workspace, train(workspace.recipe("shrink", tmp_path / "out", **changes)), tmp_path)


@pytest.mark.slow
def test_a_lora_with_every_key_of_a_recipe_is_loaded_as_it_was_trained(workspace, chain, tmp_path):
    lora = {
        **SMALL_LORA,
        "target_modules": ["q_proj", "k_proj", "v_proj"],
        "exclude_modules": r".*layers\.0\..*k_proj",
        "rank_pattern": {"q_proj": 2},
        "alpha_pattern": {"v_proj": 32},
        "init_lora_weights": "orthogonal",
        "use_rslora": True,
        "use_dora": True,
    }
    assert lora.keys() == SECTIONS["lora"]
    start = str(chain["align"].folder)
    trained = train(workspace.recipe("shrink", tmp_path / "out", start_from=start, lora=lora, max_steps=2))
    ranks = {
        name.split("layers.")[1]: len(value) for name, value in trained.model.named_parameters() if "lora_A" in name
    }
    assert {name.split(".")[2] for name in ranks if name.startswith("0.")} == {"q_proj", "v_proj"}
    assert sorted(ranks.values()) == [2, 2, 4, 4, 4]  # q, then k and v
    check_loaded(workspace, trained, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("option", ["use_dora", "use_rslora"])
def test_the_variants_of_peft_train_and_nothing_else_moves(workspace, chain, tmp_path, option):
    lora = {**SMALL_LORA, option: True, "target_modules": ["q_proj", "down_proj"]}
    start = str(chain["align"].folder)
    second = train(workspace.recipe("shrink", tmp_path / "shrink", start_from=start, lora=lora, max_steps=2))
    third = train(workspace.recipe("instruct", tmp_path / "out", start_from=str(second.folder), max_steps=2))
    of_lora = {name for name in third.before if ".lora_" in name}
    tensors = 3 if option == "use_dora" else 2
    assert len(of_lora) == 2 * 2 * tensors  # two layers of two modules
    assert all(".language_model." in name for name in of_lora)
    assert third.moved() == of_lora
    assert all(torch.equal(value, second.before[name]) for name, value in third.before.items() if "base_layer" in name)
    config = third.model.peft_config["default"]
    assert getattr(config, option)


@pytest.mark.slow
def test_a_lora_trains_on_a_frozen_llm_of_four_bits(workspace, chain, tmp_path):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    four_bits = {"quantization": {"quant_method": "bitsandbytes", "load_in_4bit": True}, "max_steps": 2}
    start = str(chain["align"].folder)
    second = train(workspace.recipe("shrink", tmp_path / "shrink", start_from=start, **four_bits))
    third = train(workspace.recipe("instruct", tmp_path / "out", start_from=str(second.folder), **four_bits))
    quantized = [name for name, m in third.model.named_modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert len({name.replace(".base_layer", "") for name in quantized}) == 2 * 7  # four of attention, three behind it
    assert all(".language_model.layers." in name for name in quantized)
    of_lora = {name for name in third.before if ".lora_" in name}
    assert len(of_lora) == 2 * 4 * 2
    assert third.moved() == of_lora
    assert len({round(loss, 6) for loss in third.losses()}) == 2
