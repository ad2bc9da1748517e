"""Which LLMs score tokens as Soundwave does, their head's rows times their states: read from config and parameters."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from soundwave_hf.modeling.backbones_soundwave import UNCHANGED_SCORES, refuse_other_heads
from tests.tiny_models import LLM_SIZES, spread_weights


VOCABULARY = 32
GPT_SIZES = {"n_embd": 16, "n_layer": 2, "n_head": 2, "rotary_dim": 4}
BERT_SIZES = {"is_decoder": True}
# model type, fields of its config: by their own defaults some change their scores, others do as a field says.
TAKEN = [
    ("llama", {}),
    ("qwen3", {}),
    ("mistral", {}),
    ("gemma", {}),
    ("smollm3", {"pad_token_id": 0}),
    ("gpt2", GPT_SIZES),
    ("gpt_neox", {}),
    ("olmo2", {}),
    ("phi3", {"pad_token_id": 0}),
    ("gemma2", {"final_logit_softcapping": None}),
    ("gemma3_text", {}),
    ("nanochat", {"final_logit_softcapping": None}),
    ("cohere", {"logit_scale": 1.0, "pad_token_id": 0}),
    ("granite", {"logits_scaling": 1.0, "embedding_multiplier": 12.0, "residual_multiplier": 0.22}),
    ("granitemoe", {"logits_scaling": 1, "num_local_experts": 2}),
]
REFUSED = [
    ("gemma2", {"final_logit_softcapping": 0.5}, "`final_logit_softcapping` is 0.5"),
    ("gemma3_text", {"final_logit_softcapping": 0.5}, "`final_logit_softcapping` is 0.5"),
    ("vaultgemma", {"final_logit_softcapping": 0.5}, "`final_logit_softcapping` is 0.5"),
    ("nanochat", {"final_logit_softcapping": 0.5}, "`final_logit_softcapping` is 0.5"),
    ("cohere", {"logit_scale": 0.0625, "pad_token_id": 0}, "`logit_scale` is 0.0625"),
    ("cohere2", {"logit_scale": 2.0, "pad_token_id": 0}, "`logit_scale` is 2.0"),
    ("granite", {"logits_scaling": 8.0}, "`logits_scaling` is 8.0"),
    ("granitemoe", {"logits_scaling": 4, "num_local_experts": 2}, "`logits_scaling` is 4"),
    ("gptj", GPT_SIZES, "its head has a bias"),
    ("phi", {}, "its head has a bias"),
    ("bert", BERT_SIZES, "its head has a bias"),
    ("modernbert-decoder", {"pad_token_id": 0}, "it"),
]


def tiny_llm(model_type: str, fields: dict) -> torch.nn.Module:
    sizes = {} if fields.keys() & GPT_SIZES.keys() else LLM_SIZES
    config = AutoConfig.for_model(model_type, **{"vocab_size": VOCABULARY, **sizes, **fields})
    torch.manual_seed(0)
    return spread_weights(AutoModelForCausalLM.from_config(config)).eval()


@torch.no_grad()
def scores_as_soundwave(language: torch.nn.Module) -> bool:
    """Two passes of the LLM tell it: what configs and parameters are held to here."""
    ids = torch.tensor([[3, 7, 1]])
    expected = language(input_ids=ids).logits
    found = language.base_model(input_ids=ids).last_hidden_state @ language.get_output_embeddings().weight.T
    return torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("model_type", "fields"), TAKEN, ids=[name for name, _ in TAKEN])
def test_an_llm_that_scores_as_soundwave_is_taken(model_type, fields):
    language = tiny_llm(model_type, fields)
    assert scores_as_soundwave(language)
    refuse_other_heads(language, "an-llm")


@pytest.mark.parametrize(("model_type", "fields", "why"), REFUSED, ids=[name for name, _, _ in REFUSED])
def test_an_llm_that_changes_its_scores_is_refused_with_what_changes_them(model_type, fields, why):
    language = tiny_llm(model_type, fields)
    assert not scores_as_soundwave(language)
    with pytest.raises(ValueError, match=f"`an-llm` .* after its head .{why}.*, which Soundwave cannot do"):
        refuse_other_heads(language, "an-llm")


def test_no_pass_of_the_llm_is_needed(monkeypatch):
    language = tiny_llm("llama", {})
    monkeypatch.setattr(language, "forward", None)
    monkeypatch.setattr(language.base_model, "forward", None)
    refuse_other_heads(language, "an-llm")


@pytest.mark.parametrize("name", UNCHANGED_SCORES)
def test_every_field_of_the_table_is_read(name):
    language = tiny_llm("llama", {})
    setattr(language.config, name, 3.0)
    with pytest.raises(ValueError, match=f"`{name}` is 3.0"):
        refuse_other_heads(language, "an-llm")
    setattr(language.config, name, UNCHANGED_SCORES[name])
    refuse_other_heads(language, "an-llm")
