"""`past_key_values`, of transformers 5.23, and `cache`, of 5.24, are one argument and one output here."""

import pytest
import torch

from soundwave_hf.modeling.outputs_soundwave import CACHE, CACHE_NAMES
from tests.tiny_models import AUDIO, make_clips, tiny_model


GREEDY = {"max_new_tokens": 4, "do_sample": False}
by_either_name = pytest.mark.parametrize("name", CACHE_NAMES)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def prompt() -> dict[str, torch.Tensor]:
    features, mask = make_clips([44])
    return {
        "input_ids": torch.tensor([[3, AUDIO, 5, 6]]),
        "input_features": features,
        "input_features_mask": mask,
    }


def test_the_library_calls_it_by_one_of_the_two_names():
    assert CACHE in CACHE_NAMES == ("past_key_values", "cache")


@torch.no_grad()
@by_either_name
def test_forward_takes_a_cache_by_either_name(model, name):
    ids = torch.tensor([[3, 4, 5, 6, 7]])
    for part in (model, model.model):
        whole = part(input_ids=ids, use_cache=True)
        kept = part(input_ids=ids[:, :3], use_cache=True).cache
        rest = part(input_ids=ids[:, 3:], **{name: kept})
        expected, found = (output[0] for output in (whole, rest))
        assert torch.allclose(found, expected[:, 3:], atol=1e-5)
        assert rest.cache is rest.past_key_values is kept
        assert kept.get_seq_length() == 5


@torch.no_grad()
def test_an_output_has_its_cache_by_either_name(model):
    for part in (model, model.model):
        output = part(**prompt(), use_cache=True)
        for name in CACHE_NAMES:
            assert getattr(output, name) is output[name] is output.get(name)
            assert name in output
        assert output.cache.get_seq_length() == 3 + part.get_audio_features(*make_clips([44])).num_positions.item()
        without = part(**prompt(), use_cache=False)
        for name in CACHE_NAMES:
            assert getattr(without, name) is None
            assert name not in without and without.get(name, "none") == "none"


@torch.no_grad()
def test_an_output_is_asked_for_no_other_name(model):
    output = model(input_ids=torch.tensor([[3, 4]]))
    with pytest.raises(AttributeError, match="`SoundwaveCausalLMOutputWithPast` has no attribute `caches`"):
        _ = output.caches


@torch.no_grad()
def test_two_caches_are_refused(model):
    ids = torch.tensor([[3, 4, 5]])
    first, second = (model(input_ids=ids[:, :2], use_cache=True).cache for _ in range(2))
    calls = (model, model.model, model.generate, model.prepare_inputs_for_generation)
    for call in calls:
        with pytest.raises(ValueError, match="two names of one argument, and both were given: pass one"):
            call(input_ids=ids, past_key_values=first, cache=second)
    again = model(input_ids=ids[:, 2:], past_key_values=first, cache=first)  # one cache, named twice
    assert again.cache.get_seq_length() == 3


@by_either_name
def test_generate_goes_on_from_a_cache_by_either_name(model, name):
    first = model.generate(**prompt(), **GREEDY, return_dict_in_generate=True)
    ids = torch.cat([first.sequences, torch.tensor([[8, 9]])], dim=1)
    expected = model.generate(**{**prompt(), "input_ids": ids}, **GREEDY)
    read = []
    handle = model.model.audio_tower.register_forward_hook(lambda *_: read.append(1))
    found = model.generate(input_ids=ids, **{name: first[CACHE]}, **GREEDY)
    handle.remove()
    assert torch.equal(found, expected)
    assert read == []  # the clip is in the cache


@by_either_name
def test_a_draft_reads_a_cache_by_either_name(model, name):
    ids = torch.tensor([[3, 4, 5, 6]])
    kept = model.generate(input_ids=ids, **GREEDY, return_dict_in_generate=True)
    longer = torch.cat([kept.sequences, torch.tensor([[8, 9]])], dim=1)
    expected = model.generate(input_ids=longer, **GREEDY)
    draft = tiny_model(seed=1)
    assert torch.equal(
        model.generate(input_ids=longer, assistant_model=draft, **{name: kept[CACHE]}, **GREEDY), expected
    )


@by_either_name
def test_inputs_are_prepared_from_a_cache_by_either_name(model, name):
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        kept = model(input_ids=ids[:, :2], use_cache=True).cache
    prepared = model.prepare_inputs_for_generation(ids, next_sequence_length=1, **{name: kept})
    assert prepared[CACHE] is kept
    assert prepared["input_ids"].tolist() == [[5]]
    assert not set(prepared) & set(CACHE_NAMES) - {CACHE}


def test_both_names_are_known_where_the_library_looks_for_them(model):
    assert set(CACHE_NAMES) <= set(model.config.keys_to_ignore_at_inference)
    assert set(CACHE_NAMES) <= set(model._skip_keys_device_placement)
