"""LoRA in LLMs of several families, and PEFT's variants of it."""

import re

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModel

from soundwave_hf.training.stages import lora_targets
from tests.tiny_models import LLM_SIZES
from tests.training.workspace import SMALL_LORA, train


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
