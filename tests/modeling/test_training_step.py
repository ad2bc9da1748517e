"""What a training step does beside its losses: no work that only `generate` needs, few waits for an accelerator."""

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from soundwave_hf import SoundwaveForCTC
from soundwave_hf.modeling import adapters_soundwave, audio_model_soundwave, modeling_soundwave
from soundwave_hf.modeling.modeling_soundwave import SoundwaveModel
from tests.tiny_models import AUDIO, make_clips, pad_batch, spread_weights, tiny_config, tiny_model


CTC_LABELS = torch.tensor([[3, 4, -100], [5, 6, 7]])
LOOKS = {  # what reads values of a tensor on the host, or makes a tensor whose shape depends on values
    *("_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select"),
    *("_unique2", "unique_consecutive", "unique_dim"),
}


class CountWaits(TorchDispatchMode):
    """Counts operations after which the host of an accelerator would have to wait for it."""

    def __init__(self):
        super().__init__()
        self.found = []
        self.methods = CountMethods(self.found)

    def __enter__(self):
        self.methods.__enter__()
        return super().__enter__()

    def __exit__(self, *args):
        super().__exit__(*args)
        self.methods.__exit__(*args)

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation._schema.name.removeprefix("aten::")
        by_mask = name.startswith("index") and any(
            index is not None and index.dtype == torch.bool
            for index in (args[1] if isinstance(args[1], (list, tuple)) else ())
        )
        unknown_size = name == "repeat_interleave" and (kwargs or {}).get("output_size") is None
        if name in LOOKS or by_mask or unknown_size:
            self.found.append(name)
        return operation(*args, **(kwargs or {}))


class CountMethods(TorchFunctionMode):
    """`tolist`, `cpu` and `numpy` copy without an operation that a dispatch mode sees."""

    def __init__(self, found: list):
        super().__init__()
        self.found = found

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (torch.Tensor.tolist, torch.Tensor.cpu, torch.Tensor.numpy):
            self.found.append(function.__name__)
        return function(*args, **(kwargs or {}))


@pytest.fixture
def as_on_an_accelerator(monkeypatch):
    """Let modules treat the CPU as an accelerator, where a training step checks no values."""

    def may_look(module, values):
        return not adapters_soundwave.in_training_step(module)

    def padding_mask(config, states, mask, is_training, **keys):
        return adapters_soundwave.create_bidirectional_mask(
            config, states, mask, allow_is_bidirectional_skip=not is_training, **keys
        )

    for module in (audio_model_soundwave, modeling_soundwave):
        monkeypatch.setattr(module, "may_look", may_look)
    monkeypatch.setattr(adapters_soundwave, "padding_mask", padding_mask)


def batch_of_two() -> dict:
    return pad_batch([[3, AUDIO, 4, 5], [AUDIO, 6]], [60, 40])


def labelled(batch: dict) -> dict:
    return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}


def waits_of_a_step(model, **batch) -> list[str]:
    model.train()
    with CountWaits() as waits:
        model(**batch).loss.backward()
    return waits.found


# ---- waits for an accelerator


@pytest.mark.parametrize("kind", [True, "expected"])
def test_a_step_of_both_losses_waits_5_times_where_it_waited_32_times(as_on_an_accelerator, kind):
    found = waits_of_a_step(tiny_model(label_embeddings=kind), **labelled(batch_of_two()), ctc_labels=CTC_LABELS)
    # Lengths for CTC, positions of the clips, width of the merged rows; the library's mask of the LLM adds two.
    assert found.count("tolist") == 3
    assert len(found) <= 5, found


def test_a_step_of_the_next_token_loss_alone_waits_5_times(as_on_an_accelerator):
    found = waits_of_a_step(tiny_model(keep_blanks=False), **labelled(batch_of_two()))
    assert found.count("tolist") == 3 and len(found) <= 5, found


def test_a_step_of_ctc_alone_waits_once_where_it_waited_11_times(as_on_an_accelerator):
    model = spread_weights(SoundwaveForCTC(tiny_config()))
    features, mask = make_clips([60, 40])
    batch = {"input_features": features, "input_features_mask": mask, "labels": CTC_LABELS}
    assert waits_of_a_step(model, **batch) == ["tolist"]
    assert waits_of_a_step(model, **batch, ctc_candidates=torch.tensor([1, 2, AUDIO])) == ["tolist", "_unique2"]
    assert waits_of_a_step(model, **batch, ctc_labels=CTC_LABELS.clone()) == ["tolist"]  # one thing by both names


def test_a_training_step_on_an_accelerator_still_refuses_another_number_of_clips(as_on_an_accelerator):
    batch = batch_of_two()
    for ids in ([[3, AUDIO, 4, 5], [0, 1, 2, 6]], [[3, AUDIO, AUDIO, 5], [0, 1, AUDIO, 6]], [[AUDIO]], [[3]]):
        wrong = batch | {"input_ids": torch.tensor(ids), "attention_mask": torch.ones(len(ids), len(ids[0]))}
        num_tokens = sum(row.count(AUDIO) for row in ids)
        with pytest.raises(ValueError, match=f"holds {num_tokens} audio tokens .id 31. and 2 clips were given"):
            tiny_model().train()(**wrong)


def test_losses_and_gradients_are_those_of_a_step_that_checks_everything(request):
    batch = {**labelled(batch_of_two()), "ctc_labels": CTC_LABELS}
    steps = []
    for accelerator in (False, True):
        if accelerator:
            request.getfixturevalue("as_on_an_accelerator")
        model = tiny_model(adapter_dropout=0.0).train()
        model(**batch).loss.backward()
        steps.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    assert len(steps[0]) > 40
    torch.testing.assert_close(steps[0], steps[1])


# ---- work that `generate` alone needs


def test_a_training_step_digests_no_clip_judges_no_silence_and_keeps_no_cache(monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("this is for `generate`")

    monkeypatch.setattr(modeling_soundwave, "digest_clips", never)
    monkeypatch.setattr(SoundwaveModel, "judge_silence", never)
    model = tiny_model(no_speech_threshold=0.5).train()
    for asked in ({}, {"use_cache": True}, {"use_cache": False}):
        output = model.model(**batch_of_two(), **asked)
        assert (output.past_key_values is None) == (not asked.get("use_cache"))
        assert output.audio_output.no_speech_probs is None


def test_without_gradients_training_mode_gives_generate_what_it_needs():
    model = tiny_model(no_speech_threshold=0.5, adapter_dropout=0.0)
    expected = model.generate(**batch_of_two(), is_transcription=torch.tensor([1, 1]), max_new_tokens=3)
    model.train()
    found = model.generate(**batch_of_two(), is_transcription=torch.tensor([1, 1]), max_new_tokens=3)
    assert found.tolist() == expected.tolist()
    with torch.no_grad():
        assert model.model(**batch_of_two()).audio_output.no_speech_probs.shape == (2,)


def test_evaluation_keeps_the_cache_and_the_prompt_behind_it():
    output = tiny_model().model(**batch_of_two())
    assert output.past_key_values.prompt.input_ids.tolist() == batch_of_two()["input_ids"].tolist()


@pytest.mark.parametrize("kind", [False, True, "expected"])
def test_noise_on_the_embeddings_of_whole_rows(kind):
    """NEFTune's hook reads the shape `(batch, tokens, width)` of what the embeddings return."""
    model = tiny_model(label_embeddings=kind).train()
    shapes = []
    hook = model.get_input_embeddings().register_forward_hook(lambda _, __, output: shapes.append(output.dim()))
    batch = pad_batch([[3, AUDIO, 4], [7, AUDIO]], [80, 51])
    model(**batch, labels=batch["input_ids"]).loss.backward()
    hook.remove()
    assert shapes and set(shapes) == {3}


def test_a_compiled_forward_with_clips_has_the_same_gradients():
    batch = pad_batch([[3, AUDIO, 4], [7, AUDIO]], [80, 51])
    gradients = []
    for compiled in (False, True):
        model = tiny_model()
        run = torch.compile(model, backend="eager") if compiled else model
        run(**batch, labels=batch["input_ids"]).loss.backward()
        gradients.append({name: value.grad for name, value in model.named_parameters() if value.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected)
