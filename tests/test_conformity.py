"""What the library's shared testers ask of every model and processor, kept here without them.

With the CTC silenced each clip gives one position, so that internal lengths are those of `input_ids`.
"""

import pytest
import torch
from transformers import AutoModel

from tests.tiny import tiny_processor
from tests.tiny_models import AUDIO, pad_batch, tiny_model


ROWS = [[3, AUDIO, 4, AUDIO, 5, 6], [7, 8, 9], [11, 12, AUDIO]]
MEL_FRAMES = [80, 51, 5]


def silent_model(**options):
    """A model whose clips are one position each: nothing but blanks."""
    model = tiny_model(keep_blanks=False, **options)
    model.model.ctc_head.blank_bias.data.fill_(1e4)
    return model


def batch_with_labels() -> dict[str, torch.Tensor]:
    batch = pad_batch(ROWS, MEL_FRAMES)
    labels = batch["input_ids"].masked_fill((batch["input_ids"] == AUDIO) | (batch["attention_mask"] == 0), -100)
    return {**batch, "labels": labels, "ctc_labels": torch.tensor([[1, 2], [3, -100], [4, -100]])}


@torch.no_grad()
def test_states_and_attentions_have_a_place_for_each_token():
    model = silent_model()
    model.set_attn_implementation("eager")
    output = model(**pad_batch(ROWS, MEL_FRAMES), output_hidden_states=True, output_attentions=True)
    assert output.num_positions.tolist() == [1, 1, 1]
    assert [states.shape for states in output.hidden_states] == [(3, 6, 16)] * 3
    assert [weights.shape for weights in output.attentions] == [(3, 2, 6, 6)] * 2
    assert output.past_key_values.get_seq_length() == 6


@pytest.mark.parametrize("make", [silent_model, tiny_model])
@torch.no_grad()
def test_a_tuple_holds_what_the_output_holds(make):
    model, batch = make(), batch_with_labels()
    output = model(**batch)
    values = model(**batch, return_dict=False)
    assert len(values) == len(output.to_tuple())
    assert torch.equal(values[0], output.loss)
    assert torch.equal(values[1], output.logits)


@torch.no_grad()
def test_two_runs_and_two_loads_are_equal(tmp_path):
    model, batch = tiny_model(), batch_with_labels()
    model.save_pretrained(tmp_path)
    loaded, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(model(**batch).logits, model(**batch).logits)
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize("tie_ctc_head", [True, False])
def test_every_parameter_that_trains_gets_a_gradient(tie_ctc_head):
    model = tiny_model(tie_ctc_head=tie_ctc_head)
    model.train()
    model(**batch_with_labels()).loss.backward()
    without = {name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None}
    assert without == set()
    assert not any(weight.requires_grad for weight in model.model.audio_tower.parameters())


def test_without_ctc_labels_the_blank_gets_a_gradient_of_zero_and_the_others_keep_theirs():
    model, batch = tiny_model(adapter_dropout=0.0), batch_with_labels()
    batch.pop("ctc_labels")
    model.eval()(**batch).loss.backward()
    expected = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    assert not any("ctc_head" in name for name in expected)
    model.zero_grad()
    output = model.train()(**batch)
    assert output.ctc_loss is None
    output.loss.backward()
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    assert {name for name in found if name not in expected} == {
        "model.ctc_head.blank_weight",
        "model.ctc_head.blank_bias",
    }
    assert not any(value.any() for name, value in found.items() if "ctc_head" in name)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


@torch.no_grad()
def test_embeddings_give_what_their_ids_give():
    model = tiny_model()
    text = {"input_ids": torch.tensor([[3, 4, 5], [6, 7, 8]]), "attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]])}
    embeds = model.get_input_embeddings()(text["input_ids"])
    given = {"inputs_embeds": embeds, "attention_mask": text["attention_mask"]}
    assert torch.equal(model(**given).logits, model(**text).logits)
    batch = pad_batch(ROWS, MEL_FRAMES)  # clips stand where the embedding is that of the audio token
    embedded = {**batch, "inputs_embeds": model.get_input_embeddings()(batch.pop("input_ids"))}
    embedded.pop("input_ids")
    assert torch.equal(model(**embedded).logits, model(**pad_batch(ROWS, MEL_FRAMES)).logits)
    options = {"max_new_tokens": 3, "do_sample": False, "suppress_tokens": [AUDIO]}
    assert torch.equal(model.generate(**given, **options), model.generate(**text, **options)[:, 3:])


def test_the_processor_takes_options_flat_and_by_kind():
    processor = tiny_processor()
    clip = torch.randn(1600).numpy()
    flat = processor(text="<|audio|> a", audio=clip, padding="max_length", max_length=9, return_tensors="np")
    nested = processor(
        text="<|audio|> a",
        audio=clip,
        text_kwargs={"padding": "max_length", "max_length": 9},
        audio_kwargs={"sampling_rate": 16_000},
        common_kwargs={"return_tensors": "np"},
    )
    assert flat["input_ids"].shape == (1, 9)
    assert flat.keys() == nested.keys()
    assert all((flat[name] == nested[name]).all() for name in flat)
    assert set(flat) == set(processor.model_input_names)
