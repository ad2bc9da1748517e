import copy
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    DynamicCache,
    Trainer,
    TrainingArguments,
    WhisperForConditionalGeneration,
)

from soundwave_hf import SoundwaveConfig, SoundwaveForConditionalGeneration, SoundwaveForCTC
from soundwave_hf.modeling import modeling_soundwave
from soundwave_hf.modeling.backbones_soundwave import adapter_fields
from soundwave_hf.modeling.ctc_soundwave import large_vocabulary_ctc
from soundwave_hf.modeling.modeling_soundwave import SoundwaveAudioOutput, first_of_run
from soundwave_hf.modeling.no_speech_soundwave import may_be_word, may_be_words
from soundwave_hf.modeling.positions_soundwave import PositionLimits
from tests.tiny_models import (
    AUDIO,
    MEL_BINS,
    VOCABULARY,
    WINDOW,
    make_clips,
    pad_batch,
    pad_rows,
    save_tiny_llm,
    save_tiny_whisper,
    tiny_config,
    tiny_model,
)


# GPT-2 learns a state for each place in a row, so that a shifted row gives other logits; the others turn by distance.
SETTINGS = [("llama", "paper"), ("llama", "published"), ("qwen3", "paper"), ("qwen3", "published"), ("gpt2", "paper")]
# Two clips in a row, text alone, one clip at the end, one at the start. 80 mel frames are the whole window; 51 and 5
# are odd; 1 gives a single aligned frame.
ROWS = [[3, AUDIO, 4, AUDIO, 5, 6], [7, 8, 9], [10, 11, 12, AUDIO], [AUDIO, 13, 14]]
CLIPS_OF_ROW = [[0, 1], [], [2], [3]]
MEL_FRAMES = [80, 51, 5, 1]
CTC_LABELS = torch.tensor([[1, 2, 2, 3], [4, 4, -100, -100], [5, -100, -100, -100], [-100, -100, -100, -100]])


def mixed_batch(side: str = "left") -> dict[str, torch.Tensor]:
    """The rows above as one padded batch."""
    return pad_batch(ROWS, MEL_FRAMES, side)


def single_row(row: int) -> dict[str, torch.Tensor]:
    """One of those rows alone: no padding, and no mask where its clips have one length."""
    batch, clips = mixed_batch(), CLIPS_OF_ROW[row]
    inputs = {"input_ids": torch.tensor([ROWS[row]])}
    if clips:
        longest = max(MEL_FRAMES[clip] for clip in clips)
        inputs["input_features"] = batch["input_features"][clips, :, :longest]
    if len(clips) > 1:
        inputs["input_features_mask"] = batch["input_features_mask"][clips, :longest]
    return inputs


def assert_near(found: torch.Tensor, expected: torch.Tensor, atol: float = 1e-5):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=atol)


# ---- A batch gives what each row gives alone


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("family", "compat"), SETTINGS)
@torch.no_grad()
def test_a_padded_batch_gives_the_logits_of_each_row_alone(family, compat, side):
    model = tiny_model(family, compat=compat)
    batch = mixed_batch(side)
    logits = model(**batch).logits
    for row in range(len(ROWS)):
        assert_near(logits[row, batch["attention_mask"][row].bool()], model(**single_row(row)).logits[0])


@pytest.mark.parametrize(("family", "compat"), SETTINGS)
@torch.no_grad()
def test_a_padded_batch_gives_the_positions_and_labels_of_each_clip_alone(family, compat):
    model = tiny_model(family, compat=compat)
    features, mask = make_clips(MEL_FRAMES)
    together = model.get_audio_features(features, mask)
    alone = [model.get_audio_features(features[i : i + 1, :, :length]) for i, length in enumerate(MEL_FRAMES)]
    assert together.num_positions.tolist() == [int(audio.num_positions) for audio in alone]
    assert together.num_frames.tolist() == [20, 13, 2, 1] == [int(audio.num_frames) for audio in alone]
    assert_near(together.pooler_output, torch.cat([audio.pooler_output for audio in alone]))
    for clip, audio in enumerate(alone):
        assert torch.equal(together.ctc_best[clip, : together.num_frames[clip]], audio.ctc_best[0])


@torch.no_grad()
def test_the_ctc_loss_of_a_batch_is_the_mean_of_its_clips_alone():
    model = tiny_model()
    features, mask = make_clips(MEL_FRAMES)
    together = model.get_audio_features(features, mask, ctc_labels=CTC_LABELS)
    alone = [
        model.get_audio_features(features[i : i + 1, :, :length], ctc_labels=CTC_LABELS[i : i + 1])
        for i, length in enumerate(MEL_FRAMES)
    ]
    assert_near(together.ctc_loss, torch.stack([audio.ctc_loss for audio in alone]).mean())


@torch.no_grad()
def test_noise_in_the_padding_changes_nothing():
    model, batch = tiny_model(), mixed_batch()
    silenced = batch["input_features"] * batch["input_features_mask"][:, None]
    assert_near(model(**batch).logits, model(**{**batch, "input_features": silenced}).logits, atol=1e-6)


@torch.no_grad()
def test_more_padding_changes_nothing():
    model = tiny_model()
    features, mask = make_clips([51, 5])
    more, more_mask = nn.functional.pad(features, (0, 29)), nn.functional.pad(mask, (0, 29))
    few, many = model.get_audio_features(features, mask), model.get_audio_features(more, more_mask)
    assert torch.equal(few.num_positions, many.num_positions)
    assert_near(few.pooler_output, many.pooler_output)


@pytest.mark.parametrize("compat", ["paper", "published"])
@torch.no_grad()
def test_positions_are_the_runs_of_true_frames_alone(compat):
    audio = tiny_model(compat=compat).get_audio_features(*make_clips(MEL_FRAMES))
    for clip, length in enumerate(audio.num_frames):
        runs = 1 + int(audio.ctc_best[clip, :length].diff().ne(0).sum())
        assert audio.num_positions[clip] == runs
    assert len(audio.pooler_output) == audio.num_positions.sum()


@torch.no_grad()
def test_a_clip_of_one_run_becomes_one_position():
    model = tiny_model()
    model.model.ctc_head.blank_bias.fill_(100)  # every frame is blank
    audio = model.get_audio_features(*make_clips(MEL_FRAMES))
    assert audio.num_positions.tolist() == [1, 1, 1, 1]


@torch.no_grad()
def test_ids_of_32_bits_give_the_same_logits_and_loss():
    model, batch = tiny_model("llama"), mixed_batch()
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    with torch.no_grad():
        expected = model(**batch, labels=labels)
        found = model(**batch | {"input_ids": batch["input_ids"].int()}, labels=labels)
    assert torch.equal(found.logits, expected.logits) and torch.equal(found.loss, expected.loss)


def test_a_boolean_mask_of_frames_serves_as_well():
    model, batch = tiny_model(), mixed_batch()
    as_bool = {**batch, "input_features_mask": batch["input_features_mask"].bool()}
    assert torch.equal(model(**batch).logits, model(**as_bool).logits)


@pytest.mark.parametrize("compat", ["paper", "published"])
@torch.no_grad()
def test_attention_in_plain_pytorch_agrees_with_sdpa(compat):
    model, batch = tiny_model(compat=compat), mixed_batch()
    sdpa = model(**batch).logits
    model.set_attn_implementation("eager")
    true = batch["attention_mask"].bool()
    assert_near(model(**batch).logits[true], sdpa[true])


@torch.no_grad()
def test_encoder_states_may_be_given_in_place_of_features():
    model, batch = tiny_model(), mixed_batch()
    expected = model(**batch).logits
    features, mask = batch.pop("input_features"), batch.pop("input_features_mask")
    states, states_mask = model.model.encode(features, mask)
    assert torch.equal(model(**batch, encoder_states=states, encoder_mask=states_mask).logits, expected)


@torch.no_grad()
def test_no_state_is_left_between_calls():
    model, batch = tiny_model(), mixed_batch()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    first = model(**batch).logits
    model(**single_row(0))
    model.generate(**single_row(2), max_new_tokens=2)
    assert torch.equal(model(**batch).logits, first)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())


@torch.no_grad()
def test_inputs_are_left_as_they_were():
    batch = mixed_batch()
    before = copy.deepcopy(batch)
    tiny_model()(**batch, labels=batch["input_ids"], ctc_labels=CTC_LABELS)
    assert all(torch.equal(batch[name], before[name]) for name in batch)


# ---- Parts


def test_first_of_run_keeps_one_frame_per_repeated_label():
    labels = torch.tensor([[5, 5, 0, 7, 7, 5], [0, 0, 0, 0, 1, 1]])
    assert first_of_run(labels).tolist() == [[1, 0, 1, 1, 0, 1], [1, 0, 0, 0, 1, 0]]


@pytest.mark.parametrize(
    ("keep_blanks", "kept"),
    [(True, [[1, 1, 0, 1, 1], [1, 0, 0, 0, 0]]), (False, [[1, 0, 0, 1, 0], [1, 0, 0, 0, 0]])],
)
def test_blanks_are_kept_or_dropped_and_a_clip_of_blanks_keeps_one(keep_blanks, kept):
    model = tiny_model(keep_blanks=keep_blanks)
    best = torch.tensor([[4, AUDIO, AUDIO, 4, AUDIO], [AUDIO, AUDIO, AUDIO, AUDIO, AUDIO]])
    mask = torch.tensor([[True, True, True, True, True], [True, True, True, False, False]])
    assert model.model.keep_mask(best, mask).tolist() == kept


@torch.no_grad()
def test_dropping_blanks_leaves_fewer_positions():
    features, mask = make_clips([80])
    keeping, dropping = tiny_model(), tiny_model(keep_blanks=False)
    best = keeping.get_audio_features(features, mask).ctc_best
    blank_runs = int((first_of_run(best) & (best == AUDIO)).sum())
    assert blank_runs > 0
    found = dropping.get_audio_features(features, mask).num_positions
    assert found == keeping.get_audio_features(features, mask).num_positions - blank_runs


@torch.no_grad()
def test_a_blank_names_a_frame_where_it_leads_by_the_margin():
    features, mask = make_clips([80, 44])
    blanks_named = set()
    for margin in (-1.0, 0.0, 2.0):
        audio = tiny_model(blank_margin=margin).get_audio_features(features, mask, output_ctc_logits=True)
        blanks, tokens = audio.ctc_logits[..., AUDIO], audio.ctc_logits[..., :AUDIO].max(dim=-1)
        expected = torch.where(blanks - margin >= tokens.values, AUDIO, tokens.indices)
        for found, labels, frames in zip(audio.ctc_best, expected, audio.num_frames, strict=True):
            assert torch.equal(found[:frames], labels[:frames])
        blanks_named.add(int((audio.ctc_best == AUDIO).sum()))
    assert len(blanks_named) == 3


@torch.no_grad()
def test_a_margin_set_after_loading_counts_at_once_and_after_saving(tmp_path):
    features, mask = make_clips([80, 44])
    model = tiny_model()
    before = model.get_audio_features(features, mask).ctc_best
    model.config.blank_margin = 2.0
    found = model.get_audio_features(features, mask).ctc_best
    assert not torch.equal(found, before)
    assert torch.equal(found, tiny_model(blank_margin=2.0).get_audio_features(features, mask).ctc_best)
    model.save_pretrained(tmp_path)
    loaded = SoundwaveForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(loaded.get_audio_features(features, mask).ctc_best, found)


@pytest.mark.parametrize("family", ["llama", "gemma"])
@torch.no_grad()
def test_positions_may_hold_the_embeddings_of_their_labels(family):
    features, mask = make_clips([80, 44])
    plain, labelled = (
        tiny_model(family, keep_blanks=False),
        tiny_model(family, keep_blanks=False, label_embeddings=True),
    )
    sound = plain.get_audio_features(features, mask)
    both = labelled.get_audio_features(features, mask)
    assert torch.equal(both.num_positions, sound.num_positions)
    labels = [
        int(label)
        for row, frames in zip(sound.ctc_best, sound.num_frames, strict=True)
        for label, starts in zip(row[:frames], first_of_run(row[None])[0], strict=False)
        if starts and label != AUDIO
    ]
    assert len(labels) > 2
    embeddings = plain.get_input_embeddings()(torch.tensor(labels))
    assert_near(both.pooler_output, sound.pooler_output + embeddings)


@pytest.mark.parametrize("tie_ctc_head", [True, False], ids=["tied", "free"])
@pytest.mark.parametrize("family", ["llama", "gemma"])  # Gemma scales its embeddings
@torch.no_grad()
def test_positions_may_hold_the_expected_embeddings_of_their_likeliest_tokens(family, tie_ctc_head):
    features, mask = make_clips([80, 44])
    fields = {"keep_blanks": False, "tie_ctc_head": tie_ctc_head}
    plain = tiny_model(family, **fields)
    sound = plain.get_audio_features(features, mask, output_ctc_logits=True)
    both = tiny_model(family, **fields, label_embeddings="expected").get_audio_features(features, mask)
    assert torch.equal(both.num_positions, sound.num_positions)
    frames = torch.arange(sound.ctc_best.shape[1]) < sound.num_frames[:, None]
    kept = sound.ctc_logits[first_of_run(sound.ctc_best) & frames & (sound.ctc_best != AUDIO)].double()
    assert len(kept) > 2
    expected = []
    for scores in kept:
        order = sorted((token for token in range(VOCABULARY) if token != AUDIO), key=lambda token: -scores[token])[:16]
        shares = scores[order].exp() / scores[order].exp().sum()
        expected.append(shares @ plain.get_input_embeddings()(torch.tensor(order)).double())
    assert_near(both.pooler_output, sound.pooler_output + torch.stack(expected).float())


@torch.no_grad()
def test_a_kept_blank_holds_its_own_embedding_beside_expected_ones():
    clips = make_clips([80])
    plain, labelled = (tiny_model(keep_blanks=True, label_embeddings=kind) for kind in (True, "expected"))
    logits = plain.get_audio_features(*clips, output_ctc_logits=True).ctc_logits[0]
    lead = logits[:, AUDIO] - logits[:, :AUDIO].amax(dim=1)
    for model in (plain, labelled):
        model.model.ctc_head.blank_bias.sub_(lead.median() - 1e-4)  # half of the frames become blanks
    audio = plain.get_audio_features(*clips)
    is_blank = audio.ctc_best[first_of_run(audio.ctc_best)] == AUDIO
    assert 0 < is_blank.sum() < len(is_blank)
    expected = labelled.get_audio_features(*clips).pooler_output
    assert_near(expected[is_blank], audio.pooler_output[is_blank])
    assert (expected - audio.pooler_output)[~is_blank].abs().amax(dim=1).min() > 1e-4


@torch.no_grad()
def test_expected_embeddings_of_a_batch_are_those_of_each_clip_alone():
    model = tiny_model(keep_blanks=False, label_embeddings="expected")
    lengths = [80, 51, 5]
    features, mask = make_clips(lengths)
    batch = model.get_audio_features(features, mask)
    positions = batch.pooler_output.split(batch.num_positions.tolist())
    for clip, length, found in zip(features, lengths, positions, strict=True):
        assert_near(found, model.get_audio_features(clip[None, :, :length]).pooler_output)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_expected_embeddings_keep_the_models_dtype(dtype):
    positions = tiny_model(label_embeddings="expected").to(dtype).get_audio_features(*make_clips([80])).pooler_output
    assert positions.dtype == dtype
    assert positions.isfinite().all()


def test_label_embeddings_of_another_kind_are_refused():
    with pytest.raises(Exception, match="label_embeddings"):
        tiny_config(label_embeddings="mean")


def test_the_losses_know_nothing_of_the_margin():
    features, mask = make_clips([80, 44, 60, 30])
    losses = [
        tiny_model(blank_margin=margin).get_audio_features(features, mask, ctc_labels=CTC_LABELS).ctc_loss
        for margin in (0.0, 2.0)
    ]
    assert_near(*losses)


@pytest.mark.parametrize(("look_back", "reaches"), [("all", True), ("kept", False)])
@torch.no_grad()
def test_a_dropped_frame_is_looked_back_at_or_not(look_back, reaches):
    adapter = tiny_model(look_back=look_back).model.shrinking_adapter
    aligned = torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(0))
    mask, keep = torch.ones(1, 4, dtype=torch.bool), torch.tensor([[True, False, True, True]])
    changed = aligned.clone()
    changed[0, 1] += 1
    same = torch.allclose(adapter(aligned, mask, keep), adapter(changed, mask, keep), atol=1e-6)
    assert same is not reaches


@pytest.mark.parametrize(("alignment_attention", "reaches"), [("sequence", True), ("frame", False)])
@torch.no_grad()
def test_a_frame_hears_its_clip_or_itself_alone(alignment_attention, reaches):
    adapter = tiny_model(alignment_attention=alignment_attention).model.alignment_adapter
    states = torch.randn(1, 8, 12, generator=torch.Generator().manual_seed(0))
    changed = states.clone()
    changed[0, 0] += 1  # one half of frame 0
    before, after = adapter(states, None)[0], adapter(changed, None)[0]
    assert not torch.allclose(before[0, 0], after[0, 0], atol=1e-3)
    assert torch.allclose(before[0, 1:], after[0, 1:], atol=1e-6) is not reaches


@torch.no_grad()
def test_alignment_layers_follow_each_other():
    adapter = tiny_model(alignment_layers=2).model.alignment_adapter
    states = torch.randn(1, 8, 12, generator=torch.Generator().manual_seed(0))
    stacked = adapter.linear(states.reshape(1, 4, 24))
    expected = adapter.norm(adapter.layers[1](adapter.layers[0](stacked, None), None))
    assert_near(adapter(states, None)[0], expected)


@torch.no_grad()
def test_stack_factor_joins_that_many_encoder_frames():
    # 51 mel frames are 26 encoder frames; the last of 9 threes is filled with zeros.
    audio = tiny_model(stack_factor=3).get_audio_features(*make_clips([51, 5]))
    assert audio.last_hidden_state.shape == (2, 26, 12)
    assert audio.aligned_states.shape == (2, 9, 16)
    assert audio.num_frames.tolist() == [9, 1]


@torch.no_grad()
def test_the_tied_head_scores_with_the_llms_embeddings():
    model = tiny_model()
    audio = model.get_audio_features(*make_clips([80]), output_ctc_logits=True)
    tokens = audio.aligned_states @ model.get_input_embeddings().weight.T
    assert_near(audio.ctc_logits[..., :AUDIO], tokens[..., :AUDIO])
    head = model.model.ctc_head
    assert_near(audio.ctc_logits[..., AUDIO], audio.aligned_states @ head.blank_weight + head.blank_bias)


@torch.no_grad()
def test_the_free_head_scores_with_a_matrix_of_its_own():
    model = tiny_model(tie_ctc_head=False)
    audio = model.get_audio_features(*make_clips([80]), output_ctc_logits=True)
    assert_near(audio.ctc_logits, audio.aligned_states @ model.model.ctc_head.weight.T)
    assert torch.equal(audio.ctc_logits.argmax(dim=-1), audio.ctc_best)


@torch.no_grad()
def test_merge_replaces_each_audio_token_by_its_positions():
    model = tiny_model()
    ids, mask = torch.tensor([[5, AUDIO, 6], [0, 7, AUDIO]]), torch.tensor([[1, 1, 1], [0, 1, 1]])
    positions = torch.arange(4.0)[:, None].expand(4, 16)  # three of the first clip, one of the second
    merged = model.model.merge_audio(ids, positions, torch.tensor([3, 1]), mask)
    text, nothing = model.get_input_embeddings().weight, torch.zeros(16)
    assert_near(merged.inputs_embeds[0], torch.stack([text[5], *positions[:3], text[6]]))
    assert_near(merged.inputs_embeds[1], torch.stack([nothing, nothing, text[0], text[7], positions[3]]))
    assert merged.attention_mask.tolist() == [[1, 1, 1, 1, 1], [0, 0, 0, 1, 1]]
    assert merged.position_ids.tolist() == [[0, 1, 2, 3, 4], [0, 0, 0, 0, 1]]
    assert merged.last_position.tolist() == [[0, 3, 4], [2, 3, 4]]


@torch.no_grad()
def test_a_masked_audio_token_masks_its_positions():
    ids, mask = torch.tensor([[5, AUDIO, 6]]), torch.tensor([[1, 0, 1]])
    merged = tiny_model().model.merge_audio(ids, torch.zeros(2, 16), torch.tensor([2]), mask)
    assert merged.attention_mask.tolist() == [[1, 0, 0, 1]]


# ---- Losses


def labels_of(batch: dict) -> torch.Tensor:
    """Every true text token is to be learnt, but for the first of a row, which nothing comes before."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    return ids.masked_fill((mask == 0) | (mask.cumsum(dim=1) == 1) | (ids == AUDIO), -100)


def expanded_loss(model, batch: dict) -> torch.Tensor:
    """Next-token loss over the merged row, its labels written out position by position."""
    audio = model.get_audio_features(batch["input_features"], batch["input_features_mask"])
    merged = model.model.merge_audio(
        batch["input_ids"], audio.pooler_output, audio.num_positions, batch["attention_mask"]
    )
    labels = torch.full(merged.attention_mask.shape, -100)
    for row, (ends, wanted) in enumerate(zip(merged.last_position, labels_of(batch), strict=True)):
        for end, label in zip(ends, wanted, strict=True):
            labels[row, end] = label
    hidden = model.model.language_model(
        inputs_embeds=merged.inputs_embeds,
        attention_mask=merged.attention_mask,
        position_ids=merged.position_ids,
    ).last_hidden_state
    return nn.functional.cross_entropy(model.lm_head(hidden)[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("family", "compat"), SETTINGS)
def test_one_state_per_token_gives_the_loss_and_gradients_of_all_positions(family, compat, side):
    model, batch = tiny_model(family, compat=compat), mixed_batch(side)
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    loss, expected = model(**batch, labels=labels_of(batch)).loss, expanded_loss(model, batch)
    assert_near(loss, expected)
    gradients, wanted = (
        torch.autograd.grad(value, parameters.values(), allow_unused=True) for value in (loss, expected)
    )
    assert [gradient is None for gradient in gradients] == [gradient is None for gradient in wanted]
    for gradient, other in zip(gradients, wanted, strict=True):
        if gradient is not None:
            torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("family", "compat"), SETTINGS)
def test_a_shared_prefix_read_once_gives_the_same_losses_and_gradients(family, compat):
    rows = [[3, 4, 5, AUDIO, 6, 7, 8], [3, 4, 5, 9, AUDIO, 10], [3, 4, 5, AUDIO, AUDIO]]
    batch = pad_batch(rows, [30, 44, 21, 60], side="right")
    labels = batch["input_ids"].masked_fill((batch["attention_mask"] == 0) | (batch["input_ids"] == AUDIO), -100)
    labels[:, :4] = -100
    losses, gradients = [], []
    for prefix, kept in ((0, 0), (3, 0), (3, 4)):
        model = tiny_model(family, compat=compat)
        output = model(**batch, labels=labels, ctc_labels=CTC_LABELS, logits_to_keep=kept, shared_prefix=prefix)
        assert model.model.shares_prefix()
        output.loss.backward()
        losses.append(output.loss)
        gradients.append({name: value.grad for name, value in model.named_parameters() if value.grad is not None})
    for loss, found in zip(losses[1:], gradients[1:], strict=True):
        assert_near(loss, losses[0])
        assert found.keys() == gradients[0].keys()
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("prefix", [2, 4])
def test_a_prefix_that_is_not_shared_is_refused(prefix):
    batch = pad_batch([[3, 4, 5, AUDIO], [3, 9, 5, AUDIO]], [30, 44], side="right")
    with pytest.raises(ValueError, match="do not all begin with the same"):
        tiny_model()(**batch, shared_prefix=prefix)


def test_a_prefix_is_not_shared_where_its_cache_would_not_hold_all_of_it():
    assert not tiny_model("gemma2").model.shares_prefix()  # sliding windows
    model = tiny_model().train()
    model.activation_checkpointing_enable()
    assert not model.model.shares_prefix()
    batch = pad_batch([[3, 4, 5, AUDIO], [3, 4, 5, AUDIO]], [30, 44], side="right")
    with pytest.raises(ValueError, match="keeps no whole cache"):
        model(**batch, shared_prefix=3)


@torch.no_grad()
def test_the_loss_is_cross_entropy_and_three_tenths_of_ctc():
    model, batch = tiny_model(), mixed_batch()
    output = model(**batch, labels=labels_of(batch), ctc_labels=CTC_LABELS)
    assert output.ctc_loss > 0
    assert_near(output.loss, output.ce_loss + 0.3 * output.ctc_loss)


@torch.no_grad()
def test_a_zero_ctc_weight_leaves_the_text_loss():
    batch = mixed_batch()
    output = tiny_model(ctc_loss_weight=0.0)(**batch, labels=labels_of(batch), ctc_labels=CTC_LABELS)
    assert output.loss == output.ce_loss


@torch.no_grad()
def test_each_loss_is_returned_alone_where_the_other_has_no_labels():
    model, batch = tiny_model(), mixed_batch()
    text_only, ctc_only = model(**batch, labels=labels_of(batch)), model(**batch, ctc_labels=CTC_LABELS)
    assert text_only.ctc_loss is None and text_only.loss == text_only.ce_loss
    assert ctc_only.ce_loss is None
    assert_near(ctc_only.loss, 0.3 * ctc_only.ctc_loss)


@torch.no_grad()
def test_targets_longer_than_their_frames_are_counted_and_skipped():
    model = tiny_model()
    features, mask = make_clips([80, 5])  # 20 and 2 aligned frames
    fits, too_long = torch.tensor([[1, 2, 3], [1, -100, -100]]), torch.tensor([[1, 2, 3], [1, 2, 3]])
    expected = model.get_audio_features(features[:1], mask[:1], ctc_labels=fits[:1])
    audio = model.get_audio_features(features, mask, ctc_labels=too_long)
    assert audio.num_ctc_skipped == 1
    assert_near(audio.ctc_loss, expected.ctc_loss / 2)
    assert model.get_audio_features(features, mask, ctc_labels=fits).num_ctc_skipped == 0


@torch.no_grad()
def test_losses_may_be_means_over_a_whole_accumulated_batch():
    model, batch = tiny_model(), mixed_batch()
    labels = labels_of(batch)
    here = model(**batch, labels=labels, ctc_labels=CTC_LABELS)
    counted = labels[:, 1:].ne(-100).sum()
    output = model(**batch, labels=labels, ctc_labels=CTC_LABELS, num_items_in_batch=2 * counted, num_ctc_clips=8)
    assert_near(output.ce_loss, here.ce_loss / 2)
    assert_near(output.ctc_loss, here.ctc_loss / 2)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("train_encoder", [False, True])
def test_activation_checkpointing_changes_no_gradient(train_encoder, use_reentrant):
    batch, gradients, read = mixed_batch(), [], []
    layers = {"audio_tower": "fc1", "alignment_adapter": "fc1", "language_model": "mlp"}
    for checkpointing in (False, True):
        model = tiny_model(adapter_dropout=0.0)
        model.model.audio_tower.requires_grad_(train_encoder)
        model.train()
        if checkpointing:
            model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": use_reentrant})
            for part, inner in layers.items():
                module = model.model.get_submodule(f"{part}.layers.0.{inner}")
                module.register_forward_pre_hook(lambda *_, part=part: read.append(part))
        model(**batch, labels=labels_of(batch), ctc_labels=CTC_LABELS).loss.backward()
        gradients.append({name: value.grad for name, value in model.named_parameters() if value.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert_near(gradients[1][name], gradient)
    # Once forward, and once more in the backward pass, but for an encoder that is frozen.
    encoder_runs = 2 if train_encoder else 1
    assert {part: read.count(part) for part in layers} == dict(zip(layers, (encoder_runs, 2, 2), strict=True))


@torch.no_grad()
def test_dropout_acts_in_training_alone():
    model, batch = tiny_model(adapter_dropout=0.5), mixed_batch()
    assert torch.equal(model(**batch).logits, model(**batch).logits)
    model.train()
    first, second = (model.model.alignment_adapter(torch.ones(1, 8, 12), None)[0] for _ in range(2))
    assert not torch.allclose(first, second)


# ---- Text alone


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@torch.no_grad()
def test_text_alone_is_the_plain_llm(family):
    model = tiny_model(family)
    plain = AutoModelForCausalLM.from_config(model.config.text_config).eval()
    plain.base_model.load_state_dict(model.model.language_model.state_dict())
    plain.lm_head.load_state_dict(model.lm_head.state_dict())
    ids, mask = pad_rows([[3, 4, 5, 6, 7], [8, 9]])
    labels = ids.masked_fill(mask == 0, -100)
    found = model(input_ids=ids, attention_mask=mask, labels=labels)
    expected = plain(input_ids=ids, attention_mask=mask, labels=labels)
    assert_near(found.logits[mask.bool()], expected.logits[mask.bool()])
    assert_near(found.loss, expected.loss)
    assert found.num_positions is None


@torch.no_grad()
def test_logits_to_keep_returns_the_last_ones():
    model, batch = tiny_model(), mixed_batch()
    assert_near(model(**batch, logits_to_keep=2).logits, model(**batch).logits[:, -2:])


# ---- Stage I


def ctc_model_of(model) -> SoundwaveForCTC:
    """The model of Stage I with the weights of a whole one."""
    stage_one = SoundwaveForCTC(model.config)
    weights = model.model.state_dict()
    own = {name: weights[name] for name in stage_one.state_dict() if name in weights}
    if stage_one.token_embeddings is not None:
        own["token_embeddings.weight"] = model.get_input_embeddings().weight
    stage_one.load_state_dict(own)
    return stage_one.eval()


def test_scores_of_the_last_tokens_alone_give_the_loss_of_their_labels():
    model, batch = tiny_model(), mixed_batch()
    labels = batch["input_ids"].masked_fill(batch["input_ids"] == AUDIO, -100)
    labels[:, :-3] = -100
    whole = model(**batch, labels=labels)
    short = model(**batch, labels=labels, logits_to_keep=4)
    assert short.logits.shape[1] == 4
    assert_near(short.ce_loss, whole.ce_loss)


@pytest.mark.parametrize("compat", ["paper", "published"])
@torch.no_grad()
def test_stage_one_gives_the_ctc_numbers_of_the_whole_model(compat):
    model, batch = tiny_model(compat=compat), mixed_batch()
    expected = model(**batch, ctc_labels=CTC_LABELS)
    found = ctc_model_of(model)(batch["input_features"], batch["input_features_mask"], ctc_labels=CTC_LABELS)
    for name in ("ctc_loss", "num_positions", "num_frames", "num_ctc_skipped", "ctc_best"):
        assert_near(found[name], expected[name])
    assert found.loss == found.ctc_loss


@pytest.mark.parametrize("compat", ["paper", "published"])
@torch.no_grad()
def test_candidates_are_those_of_the_ctc_loss(compat):
    model, batch = tiny_model(compat=compat), mixed_batch()
    head, candidates = model.model.ctc_head, torch.tensor([6, 9, 20])
    _, aligned, mask = model.model.align(batch["input_features"], batch["input_features_mask"])
    expected = large_vocabulary_ctc(
        aligned,
        mask.sum(dim=1),
        model.get_input_embeddings().weight if head.weight is None else head.weight,
        AUDIO,
        head.blank_weight,
        head.blank_bias,
        CTC_LABELS,
        candidates=candidates,
    )
    given = {"ctc_labels": CTC_LABELS, "ctc_candidates": candidates}
    whole = model(**batch, **given)
    stage_one = ctc_model_of(model)(batch["input_features"], batch["input_features_mask"], **given)
    for found in (whole, stage_one):
        assert torch.equal(found.ctc_best, expected.best)
        assert_near(found.ctc_loss, (expected.losses / torch.tensor([4, 2, 1, 1])).sum() / 4)
    assert whole.ctc_loss < model(**batch, ctc_labels=CTC_LABELS).ctc_loss


def test_stage_one_trains_the_alignment_adapter_and_the_heads_own_parameters():
    trainable = {name for name, value in SoundwaveForCTC(tiny_config()).named_parameters() if value.requires_grad}
    parts = {name.split(".")[0] for name in trainable}
    assert parts == {"alignment_adapter", "ctc_head"}
    assert {name for name in trainable if name.startswith("ctc")} == {"ctc_head.blank_weight", "ctc_head.blank_bias"}


# ---- Frozen encoder, saving and loading


def frozen_parts(model) -> set[str]:
    return {name for name, value in model.named_parameters() if not value.requires_grad}


def test_the_encoder_is_frozen_and_stays_in_eval_mode():
    model = tiny_model().train()
    assert model.model.alignment_adapter.training
    assert not any(module.training for module in model.model.audio_tower.modules())
    model.model.audio_tower.layers[1].requires_grad_(True)
    assert not model.model.audio_tower.training
    model.get_audio_features(*make_clips([80]))
    assert model.model.audio_tower.training  # of one that its user trains, dropout and checkpoints act
    assert not model.eval().model.audio_tower.training
    model.model.audio_tower.requires_grad_(False)
    assert frozen_parts(model) == {name for name, _ in model.named_parameters() if ".audio_tower." in name}


def test_a_training_step_leaves_the_encoder_without_gradients():
    model, batch = tiny_model().train(), mixed_batch()
    model(**batch, labels=labels_of(batch), ctc_labels=CTC_LABELS).loss.backward()
    without = {name for name, value in model.named_parameters() if value.grad is None}
    assert without == frozen_parts(model)


@pytest.mark.parametrize("tie_llm", [True, False])
@pytest.mark.parametrize("tie_ctc_head", [True, False])
@torch.no_grad()
def test_a_saved_model_gives_the_same_logits_when_loaded(tmp_path, tie_llm, tie_ctc_head):
    model = tiny_model(text_fields={"tie_word_embeddings": tie_llm}, tie_ctc_head=tie_ctc_head)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForMultimodalLM.from_pretrained(tmp_path)
    assert type(loaded) is SoundwaveForConditionalGeneration
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) == tie_llm
    batch = mixed_batch()
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)


def test_what_is_frozen_is_frozen_again_when_loaded(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "whole")
    ctc_model_of(model).save_pretrained(tmp_path / "stage_one")
    assert frozen_parts(SoundwaveForConditionalGeneration.from_pretrained(tmp_path / "whole")) == frozen_parts(model)
    stage_one = SoundwaveForCTC.from_pretrained(tmp_path / "stage_one")
    assert {name.split(".")[0] for name in frozen_parts(stage_one)} == {"audio_tower", "token_embeddings"}
    assert not stage_one.training


def test_loading_reports_no_missing_or_unexpected_names(tmp_path):
    tiny_model(text_fields={"tie_word_embeddings": True}).save_pretrained(tmp_path)
    _, report = SoundwaveForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]


def test_a_missing_shard_is_refused(tmp_path):
    tiny_model().save_pretrained(tmp_path, max_shard_size="20KB")
    shards = sorted(path.name for path in tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    (tmp_path / shards[1]).unlink()
    message = rf"lacks 1 of the {len(shards)} shards that model.safetensors.index.json names: \['{shards[1]}'\]. Downl"
    with pytest.raises(FileNotFoundError, match=message):
        AutoModelForMultimodalLM.from_pretrained(tmp_path)


def test_a_checkpoint_that_lacks_a_weight_is_refused(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    name = "model.shrinking_adapter.norm.weight"
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop(name)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"lacks 1 weights of SoundwaveForConditionalGeneration: \['{name}'\]. Load"):
        AutoModelForMultimodalLM.from_pretrained(tmp_path)
    _, report = AutoModelForMultimodalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert report["missing_keys"] == {name}


def test_an_adapter_of_another_encoder_width_is_refused_when_loaded(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    model.config.audio_config.d_model = 24
    model.config.save_pretrained(tmp_path)
    name = "model.alignment_adapter.linear.weight"
    with pytest.raises(ValueError, match=rf"do not fit its config: .*{name} has \(16, 24\), not \(16, 48\)"):
        AutoModelForMultimodalLM.from_pretrained(tmp_path)
    loaded = AutoModelForMultimodalLM.from_pretrained(tmp_path, ignore_mismatched_sizes=True)
    assert loaded.model.alignment_adapter.linear.weight.shape == (16, 48)


def test_a_published_checkpoint_is_refused_with_the_command_that_converts_it():
    with pytest.raises(ValueError, match='model type "Soundwave", .* Convert the folder first: `soundwave-hf convert'):
        SoundwaveForConditionalGeneration.from_pretrained(Path(__file__).parent.parent / "fixtures" / "published")


def test_a_resized_vocabulary_keeps_the_logits_of_the_old_tokens():
    model, batch = tiny_model(), mixed_batch()
    with torch.no_grad():
        before = model(**batch).logits
        model.resize_token_embeddings(VOCABULARY + 4)
        after = model(**batch).logits
    assert after.shape[-1] == VOCABULARY + 4 == model.config.text_config.vocab_size
    assert_near(after[..., :VOCABULARY], before)


# ---- Joining backbones


@pytest.fixture
def backbones(tmp_path) -> tuple[str, str]:
    return save_tiny_whisper(tmp_path / "whisper"), save_tiny_llm(tmp_path / "llm")


def test_joined_backbones_keep_their_weights_and_get_an_audio_token(backbones):
    encoder, llm = backbones
    model = SoundwaveForConditionalGeneration.from_backbones(encoder, llm)
    assert model.config.audio_token_id == 32
    assert model.config.text_config.vocab_size == 33 == len(model.lm_head.weight)
    whisper, llama = load_file(f"{encoder}/model.safetensors"), load_file(f"{llm}/model.safetensors")
    for name, value in model.model.audio_tower.state_dict().items():
        assert torch.equal(value, whisper[f"model.encoder.{name}"])
    assert torch.equal(model.get_input_embeddings().weight[:32], llama["model.embed_tokens.weight"])
    assert torch.equal(model.lm_head.weight[:32], llama["lm_head.weight"])
    assert torch.equal(model.model.language_model.norm.weight, llama["model.norm.weight"])


def test_a_joined_model_has_no_weights_left_out(backbones):
    model = SoundwaveForConditionalGeneration.from_backbones(*backbones)
    assert {value.device.type for value in [*model.parameters(), *model.buffers()]} == {"cpu"}
    assert all(torch.isfinite(value).all() for value in model.parameters())
    assert frozen_parts(model) == {name for name, _ in model.named_parameters() if ".audio_tower." in name}
    assert not model.training


@torch.no_grad()
def test_a_joined_model_reads_text_as_the_llm_did(backbones):
    model = SoundwaveForConditionalGeneration.from_backbones(*backbones)
    plain = AutoModelForCausalLM.from_pretrained(backbones[1])
    ids = torch.tensor([[3, 4, 5, 6]])
    assert_near(model(input_ids=ids).logits[..., :32], plain(input_ids=ids).logits)


@torch.no_grad()
def test_the_blank_of_a_joined_model_begins_between_never_and_always(backbones):
    model = SoundwaveForConditionalGeneration.from_backbones(*backbones)
    head = model.model.ctc_head
    frames = nn.functional.layer_norm(torch.randn(400, 16, generator=torch.Generator().manual_seed(0)), (16,))
    probabilities = head.logits(frames[None], model.get_input_embeddings().weight).softmax(dim=-1)
    assert head.blank_weight.abs().max() == 0
    assert 0.1 < probabilities[..., 32].mean() < 0.9


def test_positions_of_a_joined_model_begin_at_the_scale_of_the_embeddings(backbones):
    model = SoundwaveForConditionalGeneration.from_backbones(*backbones)
    expected = model.get_input_embeddings().weight.pow(2).mean().sqrt()
    assert_near(model.model.shrinking_adapter.norm.weight, expected.expand(16))


def test_beside_the_embeddings_of_their_labels_positions_begin_small(backbones):
    labelled = SoundwaveForConditionalGeneration.from_backbones(*backbones, label_embeddings=True)
    plain = SoundwaveForConditionalGeneration.from_backbones(*backbones)
    assert_near(4 * labelled.model.shrinking_adapter.norm.weight, plain.model.shrinking_adapter.norm.weight)


def test_an_audio_token_that_the_tokenizer_knows_is_used(tmp_path):
    encoder = save_tiny_whisper(tmp_path / "whisper")
    llm = save_tiny_llm(tmp_path / "llm", extra_tokens=("<|audio|>", "<|more|>"), vocab_size=40)
    config = SoundwaveForConditionalGeneration.from_backbones(encoder, llm).config
    assert (config.audio_token_id, config.text_config.vocab_size) == (32, 40)


def test_fields_and_dtype_are_given_on(backbones):
    model = SoundwaveForConditionalGeneration.from_backbones(*backbones, dtype=torch.bfloat16, compat="published")
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}
    assert model.config.look_back == "kept"
    assert model.model.ctc_head.weight.shape == (33, 16)


@pytest.mark.parametrize("joins", [SoundwaveForConditionalGeneration, SoundwaveForCTC])
def test_a_dtype_may_be_named_as_for_from_pretrained(backbones, tmp_path, joins):
    own = save_tiny_llm(tmp_path / "half")
    AutoModelForCausalLM.from_pretrained(own, dtype=torch.bfloat16).save_pretrained(own)
    for dtype in ("bfloat16", "torch.bfloat16"):
        assert {value.dtype for value in joins.from_backbones(*backbones, dtype=dtype).parameters()} == {
            torch.bfloat16
        }
    for dtype in ("auto", None):
        kept = joins.from_backbones(backbones[0], own, dtype=dtype)
        assert kept.get_input_embeddings().weight.dtype == torch.bfloat16
        assert {value.dtype for value in kept.base_model.audio_tower.parameters()} == {torch.float32}
        assert {value.dtype for value in kept.base_model.alignment_adapter.parameters()} == {torch.float32}
    for dtype in ("bf16", "int8", torch.int8, {"text_config": torch.bfloat16}):
        with pytest.raises(ValueError, match="`dtype` is .*; expected a floating point `torch.dtype`, its name such"):
            joins.from_backbones(*backbones, dtype=dtype)


@pytest.mark.parametrize("joins", [SoundwaveForConditionalGeneration, SoundwaveForCTC])
@pytest.mark.parametrize(
    ("keyword", "message"),
    [
        (
            "device_map",
            "got an unknown argument `device_map`. It accepts `dtype` and the fields .*'adapter_dropout'",
        ),
        ("max_memory", r"save the joined model and load it with `from_pretrained`"),
        ("attn_implementation", "or use `set_attn_implementation`"),
        ("torch_dtype", "got an unknown argument `torch_dtype`. Did you mean `dtype`?"),
        ("keep_blank", "Did you mean `keep_blanks`?"),
    ],
)
def test_a_keyword_that_joining_does_not_take_is_refused(joins, keyword, message):
    with pytest.raises(ValueError, match=message):
        joins.from_backbones("no encoder", "no llm", **{keyword: "auto"})


@torch.no_grad()
def test_stage_one_joins_the_same_embeddings_without_the_llm(backbones):
    whole, stage_one = (cls.from_backbones(*backbones) for cls in (SoundwaveForConditionalGeneration, SoundwaveForCTC))
    assert torch.equal(stage_one.token_embeddings.weight, whole.get_input_embeddings().weight)
    assert_near(stage_one.ctc_head.blank_bias, whole.model.ctc_head.blank_bias)
    assert stage_one.config.audio_token_id == whole.config.audio_token_id
    assert {name.split(".")[0] for name in frozen_parts(stage_one)} == {"audio_tower", "token_embeddings"}
    found = stage_one(*make_clips([80]), ctc_labels=torch.tensor([[1, 2]]))
    assert torch.isfinite(found.loss)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "gemma"])
@torch.no_grad()
def test_any_joined_llm_is_the_same_when_saved_and_loaded(tmp_path, family, tied):
    encoder = save_tiny_whisper(tmp_path / "whisper")
    llm = save_tiny_llm(tmp_path / "llm", family=family, tie_word_embeddings=tied)
    model = SoundwaveForConditionalGeneration.from_backbones(encoder, llm)
    model.save_pretrained(tmp_path / "joined")
    loaded = AutoModelForMultimodalLM.from_pretrained(tmp_path / "joined")
    inputs = {"input_ids": torch.tensor([[3, 32, 4]]), "input_features": make_clips([80])[0]}
    # Weights at other addresses may be multiplied by other kernels: the last bit is the machine's.
    assert torch.allclose(loaded(**inputs).logits, model(**inputs).logits, atol=1e-6)
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) == tied
    assert model.generate(**inputs, max_new_tokens=2).shape == (1, 5)


def save_in_shards(llm: str, folder) -> list:
    """Save the LLM of a folder in shards. Returns their paths."""
    AutoModelForCausalLM.from_pretrained(llm).save_pretrained(folder, max_shard_size="4KB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(llm, name), folder)
    return sorted(folder.glob("model-*.safetensors"))


def test_an_llm_that_lacks_a_weight_is_refused(backbones):
    drop_weight(Path(backbones[1], "model.safetensors"), "model.layers.1.mlp.up_proj.weight")
    message = r"lacks 1 weights of LlamaForCausalLM: \['model.layers.1.mlp.up_proj.weight'\]. Name a causal LM with"
    with pytest.raises(ValueError, match=message):
        SoundwaveForConditionalGeneration.from_backbones(*backbones)


def test_an_llm_that_lacks_a_shard_is_refused(backbones, tmp_path):
    shards = save_in_shards(backbones[1], tmp_path)
    shards[1].unlink()
    with pytest.raises(FileNotFoundError, match=rf"lacks 1 of the {len(shards)} shards .*{shards[1].name}.*Download"):
        SoundwaveForConditionalGeneration.from_backbones(backbones[0], str(tmp_path))


def test_an_llm_with_a_shard_that_broke_off_is_refused(backbones, tmp_path):
    shards = save_in_shards(backbones[1], tmp_path)
    shards[1].write_bytes(shards[1].read_bytes()[:-4])
    with pytest.raises(ValueError, match=rf"`.*{shards[1].name}` cannot be read \(.*\): download or copy it again"):
        SoundwaveForConditionalGeneration.from_backbones(backbones[0], str(tmp_path))


@pytest.mark.parametrize("stage", ["align", "shrink"])
def test_adapters_that_broke_off_are_refused(backbones, tmp_path, stage):
    if stage == "align":
        save_trained(SoundwaveForCTC.from_backbones(*backbones), tmp_path)
    else:
        save_lora(backbones, tmp_path)
    (weights,) = tmp_path.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(ValueError, match=rf"`.*{weights.name}` cannot be read \(.*\): download or copy it again"):
        SoundwaveForConditionalGeneration.from_backbones(*backbones, adapter=str(tmp_path))


def test_a_saved_model_with_a_shard_that_broke_off_is_refused(tmp_path):
    tiny_model().save_pretrained(tmp_path, max_shard_size="20KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-4])
    with pytest.raises(ValueError, match=rf"`.*{shard.name}` cannot be read"):
        AutoModelForMultimodalLM.from_pretrained(tmp_path)


def test_an_llm_that_scales_its_scores_is_refused(backbones, tmp_path):
    llm = save_tiny_llm(tmp_path / "gemma2", family="gemma2", final_logit_softcapping=1.0)
    with pytest.raises(ValueError, match="Gemma2ForCausalLM.* caps, scales or shifts its scores after its head"):
        SoundwaveForConditionalGeneration.from_backbones(backbones[0], llm)


def save_trained(model, folder):
    """What Stage I leaves: its config, and the parameters that trained."""
    model.config.save_pretrained(folder)
    trained = {name: value for name, value in model.state_dict().items() if name.startswith(("alignment", "ctc"))}
    save_file(trained, folder / "trained.safetensors")


def test_trained_adapters_are_loaded_into_the_joined_model(backbones, tmp_path):
    stage_one = SoundwaveForCTC.from_backbones(*backbones, look_back="kept", ctc_loss_weight=0.5)
    save_trained(stage_one, tmp_path)
    model = SoundwaveForConditionalGeneration.from_backbones(*backbones, adapter=str(tmp_path))
    assert (model.config.look_back, model.config.ctc_loss_weight) == ("kept", 0.5)
    found = model.model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in load_file(tmp_path / "trained.safetensors").items())


def test_trained_adapters_bring_every_field_of_their_model(backbones, tmp_path):
    changed = {
        "stack_factor": 3,
        "alignment_layers": 2,
        "compat": "published",
        "alignment_attention": "sequence",
        "look_back": "all",
        "keep_blanks": False,
        "blank_margin": 1.5,
        "label_embeddings": True,
        "tie_ctc_head": True,
        "adapter_heads": 4,
        "adapter_dropout": 0.2,
        "ctc_loss_weight": 0.7,
        "no_speech_threshold": 0.4,
        "ctc_text": "as_written",
        "label_peak": 0.3,
    }
    model = SoundwaveForCTC.from_backbones(*backbones, **changed)
    trained = {name: value.detach() for name, value in model.named_parameters() if "adapter" in name or "head" in name}
    save_file(trained, tmp_path / "trained.safetensors")
    model.config.save_pretrained(tmp_path)
    found = adapter_fields(str(tmp_path), *backbones)
    assert found == changed
    # What follows from the backbones does not come with the adapters; a LoRA of the encoder comes by its file.
    others = {"audio_config", "text_config", "audio_token_id", "tie_word_embeddings", "encoder_lora"}
    assert found.keys() == SoundwaveConfig.own_fields() - others


@torch.no_grad()
def test_lora_and_adapters_are_merged_into_the_joined_model(backbones, tmp_path):
    joined = SoundwaveForConditionalGeneration.from_backbones(*backbones, look_back="kept")
    adapters = ["alignment_adapter", "ctc_head", "shrinking_adapter"]
    projections = r"model\.language_model\.layers\.\d+\.self_attn\.[qkvo]_proj"
    lora = LoraConfig(r=2, target_modules=projections, modules_to_save=adapters, init_lora_weights=False)
    trained = get_peft_model(joined, lora).eval()
    for name, value in trained.named_parameters():
        if "modules_to_save" in name:
            value.add_(0.1)
    inputs = {"input_ids": torch.tensor([[3, 32, 4]]), "input_features": make_clips([80])[0]}
    expected = trained(**inputs).logits
    trained.save_pretrained(tmp_path / "trained")
    joined.config.save_pretrained(tmp_path / "trained")
    found = SoundwaveForConditionalGeneration.from_backbones(*backbones, adapter=str(tmp_path / "trained"))
    assert type(found) is SoundwaveForConditionalGeneration
    assert_near(found(**inputs).logits, expected, atol=1e-4)


def test_trained_parameters_without_a_place_are_refused(backbones, tmp_path):
    save_trained(SoundwaveForCTC.from_backbones(*backbones, tie_ctc_head=False), tmp_path)
    SoundwaveForCTC.from_backbones(*backbones).config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds weights that the model does not have: \['ctc_head.weight'\]"):
        SoundwaveForConditionalGeneration.from_backbones(*backbones, adapter=str(tmp_path))


def drop_weight(path, name: str):
    weights = load_file(path)
    weights.pop(name)
    save_file(weights, path)


@pytest.mark.parametrize("name", ["ctc_head.blank_bias", "alignment_adapter.norm.weight"])
def test_stage_one_weights_that_lack_one_are_refused(backbones, tmp_path, name):
    save_trained(SoundwaveForCTC.from_backbones(*backbones), tmp_path)
    drop_weight(tmp_path / "trained.safetensors", name)
    with pytest.raises(ValueError, match=rf"trained.safetensors` lacks 1 weights that belong to .*: \['{name}'\]"):
        SoundwaveForConditionalGeneration.from_backbones(*backbones, adapter=str(tmp_path))


def save_lora(backbones, folder):
    """What stage II leaves: LoRA and adapters in PEFT's files, and the config."""
    model = SoundwaveForConditionalGeneration.from_backbones(*backbones)
    adapters = ["alignment_adapter", "ctc_head", "shrinking_adapter"]
    lora = LoraConfig(r=2, target_modules=r".*language_model.*\.[qkvo]_proj", modules_to_save=adapters)
    get_peft_model(model, lora).save_pretrained(folder)
    model.config.save_pretrained(folder)


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.model.shrinking_adapter.norm.bias",
        "base_model.model.model.language_model.layers.1.self_attn.q_proj.lora_A.weight",
    ],
)
def test_lora_files_that_lack_a_weight_are_refused(backbones, tmp_path, name):
    save_lora(backbones, tmp_path)
    drop_weight(tmp_path / "adapter_model.safetensors", name)
    with pytest.raises(ValueError, match=rf"adapter_model.safetensors` lacks 1 weights that belong .*: \['{name}'\]"):
        SoundwaveForConditionalGeneration.from_backbones(*backbones, adapter=str(tmp_path))


@pytest.mark.parametrize("missing", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_folder_without_a_file_of_its_lora_is_refused_before_the_backbones_load(backbones, tmp_path, missing):
    save_lora(backbones, tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(FileNotFoundError, match=f"has no {missing}, and no trained.safetensors of stage `align`"):
        SoundwaveForConditionalGeneration.from_backbones("no encoder", "no llm", adapter=str(tmp_path))


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"alignment_attention": "frame"}, "is set to 'frame', and .* was trained with 'sequence': leave it out, or"),
        ({"alignment_layers": 2}, "`alignment_layers` is set to 2, and .* was trained with 1: leave it out"),
        ({"stack_factor": 4}, "`stack_factor` is set to 4, and .* was trained with 2: leave it out, or name another"),
        ({"adapter_heads": 4}, "`adapter_heads` is set to 4, and .* was trained with 2: leave it out"),
    ],
)
def test_a_field_that_trained_weights_fix_is_not_set_to_another_value(backbones, tmp_path, field, message):
    save_trained(SoundwaveForCTC.from_backbones(*backbones), tmp_path)
    with pytest.raises(ValueError, match=message):
        SoundwaveForConditionalGeneration.from_backbones(*backbones, adapter=str(tmp_path), **field)


def test_adapters_of_other_widths_are_refused(backbones, tmp_path):
    save_trained(SoundwaveForCTC.from_backbones(*backbones), tmp_path)
    wide = save_tiny_llm(tmp_path / "wide", hidden_size=32)
    with pytest.raises(ValueError, match="of width 12 to an LLM of width 16, and .* has width 12, .* 32. Name"):
        SoundwaveForConditionalGeneration.from_backbones(backbones[0], wide, adapter=str(tmp_path))


def test_a_folder_without_adapters_is_refused(backbones, tmp_path):
    with pytest.raises(FileNotFoundError, match="has no config.json: give a folder that `soundwave-hf train` wrote"):
        SoundwaveForConditionalGeneration.from_backbones(*backbones, adapter=str(tmp_path / "nothing"))


# ---- Bad input


def test_more_clips_than_audio_tokens_are_refused():
    features = make_clips([80, 80])[0]
    with pytest.raises(ValueError, match=r"holds 1 audio tokens \(id 31\) and 2 clips were given: give one"):
        tiny_model()(input_ids=torch.tensor([[3, AUDIO, 4]]), input_features=features)


def test_fewer_clips_than_audio_tokens_are_refused():
    ids = torch.tensor([[3, AUDIO, AUDIO]])
    with pytest.raises(ValueError, match="holds 2 audio tokens .* and 1 clips were given: give one audio token"):
        tiny_model()(input_ids=ids, input_features=make_clips([80])[0])


def test_clips_without_an_audio_token_are_refused():
    with pytest.raises(ValueError, match="holds 0 audio tokens .* and 1 clips were given: give one audio token"):
        tiny_model()(input_ids=torch.tensor([[3, 4]]), input_features=make_clips([80])[0])


@torch.no_grad()
def test_an_audio_token_without_a_clip_is_read_as_a_word_with_a_warning(monkeypatch):
    # As in the library; `generate`, where it would be a mistake for certain, refuses it.
    warnings = []
    monkeypatch.setattr(modeling_soundwave.logger, "warning_once", warnings.append)
    model, ids = tiny_model(), torch.tensor([[3, AUDIO, 4]])
    hidden = model.model.language_model(input_ids=ids).last_hidden_state
    assert torch.equal(model(input_ids=ids).last_hidden_state, hidden)
    assert len(warnings) == 1
    assert "holds audio tokens and no clip was given" in warnings[0]


@torch.no_grad()
def test_states_and_attentions_of_the_encoder_are_returned_on_request():
    model = tiny_model()
    model.set_attn_implementation("eager")
    audio = model.get_audio_features(*make_clips([80, 51]), output_hidden_states=True, output_attentions=True)
    assert [states.shape for states in audio.hidden_states] == [(2, 40, 12)] * 3
    assert torch.equal(audio.hidden_states[-1], audio.last_hidden_state)
    assert [weights.shape for weights in audio.attentions] == [(2, 2, 40, 40)] * 2
    assert model.get_audio_features(*make_clips([80, 51])).hidden_states is None


def test_a_mask_of_another_shape_is_refused():
    features, mask = make_clips([80, 51])
    message = r"mask` has shape \(2, 40\) and `input_features` \(2, 8, 80\): the mask must be .* here \(2, 80\)"
    with pytest.raises(ValueError, match=message):
        tiny_model().get_audio_features(features, mask[:, :40])


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("input_features", (1, 8, 0)),
        ("input_features", (1, 0, 80)),
        ("input_features", (0, 8, 80)),
        ("encoder_states", (1, 0, 12)),
        ("encoder_states", (0, 40, 12)),
    ],
)
@pytest.mark.parametrize("masked", [True, False])
def test_clips_without_frames_and_batches_without_clips_are_refused(name, shape, masked):
    model, clips = tiny_model(), {name: torch.zeros(shape)}
    mask_name, frames = ("encoder_mask", shape[1]) if name == "encoder_states" else ("input_features_mask", shape[2])
    if masked:
        clips[mask_name] = torch.ones(shape[0], frames)
    ids = torch.tensor([[3, AUDIO]])
    for call in (
        lambda: model(input_ids=ids, **clips),
        lambda: model.generate(input_ids=ids, max_new_tokens=2, **clips),
        lambda: model.get_audio_features(**clips),
        lambda: ctc_model_of(model)(**clips),
    ):
        with pytest.raises(
            ValueError, match=rf"`{name}` has shape {re.escape(str(shape))}; .*, each 1 or more. Leave"
        ):
            call()


@pytest.mark.parametrize("rows", [[[0] * 20], [[0, 1] * 10]], ids=["no true frame", "gaps"])
def test_a_mask_of_encoder_states_is_checked_as_that_of_features_is(rows):
    states, mask = torch.zeros(1, 20, 12), torch.tensor(rows)
    for call in (tiny_model().get_audio_features, ctc_model_of(tiny_model())):
        with pytest.raises(ValueError, match="`encoder_mask` of clip 0 is not ones and then zeros: a clip needs at"):
            call(encoder_states=states, encoder_mask=mask)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": [[3, 4]]}, "`input_ids` arrived as list; expected a tensor: .*`torch.as_tensor.input_ids.`"),
        ({"input_ids": np.array([[3, 4]])}, "`input_ids` arrived as ndarray; expected a tensor"),
        ({"input_ids": torch.tensor([3, 4])}, r"`input_ids` has shape \(2,\); expected .* write `input_ids\[None\]`"),
        ({"input_ids": torch.zeros(1, 0, dtype=torch.long)}, r"`input_ids` has shape \(1, 0\); .*each 1 or more"),
        ({"input_ids": torch.zeros(0, 2, dtype=torch.long)}, r"`input_ids` has shape \(0, 2\); .*each 1 or more"),
        ({"input_ids": torch.tensor([[3.0, 4.0]])}, "`input_ids` arrived as torch.float32; expected ids, as in"),
        ({"attention_mask": [[1, 1]]}, "`attention_mask` arrived as list; expected a tensor"),
        ({"attention_mask": np.ones((1, 2))}, "`attention_mask` arrived as ndarray; expected a tensor"),
        ({"position_ids": [[0, 1]]}, "`position_ids` arrived as list; expected a tensor"),
        ({"input_ids": None, "inputs_embeds": np.ones((1, 2, 16))}, "`inputs_embeds` arrived as ndarray"),
        ({"input_ids": None, "inputs_embeds": torch.ones(1, 0, 16)}, r"`inputs_embeds` has shape \(1, 0, 16\)"),
    ],
)
def test_a_prompt_that_is_no_tensor_of_its_shape_is_refused(change, message):
    model = tiny_model()
    inputs = {"input_ids": torch.tensor([[3, 4]]), **change}
    for call in (model, model.model, lambda **given: model.generate(max_new_tokens=2, **given)):
        with pytest.raises(ValueError, match=message):
            call(**inputs)


def test_negative_prompts_that_are_no_tensors_are_refused():
    given = {"guidance_scale": 2.0, "negative_prompt_ids": [[3]], "max_new_tokens": 2}
    with pytest.raises(ValueError, match="`negative_prompt_ids` arrived as list; expected a tensor"):
        tiny_model().generate(torch.tensor([[3, 4]]), **given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [[3, 4]]}, "`labels` arrived as list; expected a tensor"),
        ({"labels": torch.tensor([3, 4])}, r"`labels` has shape \(2,\); expected \(batch, tokens\)"),
        ({"ctc_labels": [[3]]}, "`ctc_labels` arrived as list; expected a tensor"),
        ({"ctc_labels": torch.tensor([3])}, r"`ctc_labels` has shape \(1,\); .* write `ctc_labels\[None\]`"),
        ({"ctc_labels": torch.tensor([[3.0]])}, "`ctc_labels` arrived as torch.float32; expected ids"),
        ({"ctc_candidates": [3]}, "`ctc_candidates` arrived as list; expected a tensor"),
        ({"ctc_mask": [True]}, "`ctc_mask` arrived as list; expected a tensor"),
        ({"ctc_mask": torch.tensor([True, False])}, "`ctc_mask` has 2 rows for 1 clips: give one row for each"),
    ],
)
def test_targets_that_are_no_tensors_of_their_shape_are_refused(change, message):
    inputs = {"input_ids": torch.tensor([[3, AUDIO]]), "input_features": make_clips([80])[0]}
    with pytest.raises(ValueError, match=message):
        tiny_model()(**inputs, **{"ctc_labels": torch.tensor([[3]]), **change})
    if "labels" not in change:
        with pytest.raises(ValueError, match=message):
            ctc_model_of(tiny_model())(inputs["input_features"], **{"labels": torch.tensor([[3]]), **change})


def test_a_clip_without_a_true_frame_is_refused():
    features, mask = make_clips([80, 0])
    with pytest.raises(ValueError, match="`input_features_mask` of clip 1 is not ones and then zeros: a clip needs"):
        tiny_model().get_audio_features(features, mask)


def test_a_clip_padded_on_the_left_is_refused():
    features, mask = make_clips([80, 51])
    with pytest.raises(ValueError, match="of clip 1 is not ones and then zeros: .* is padded on the right"):
        tiny_model().get_audio_features(features, mask.flip(1))


def test_features_of_other_mel_bins_are_refused():
    with pytest.raises(ValueError, match=r"shape \(1, 10, 80\) and the encoder has 8 mel bins"):
        tiny_model().get_audio_features(torch.zeros(1, 10, 80))


@pytest.mark.parametrize("wrong", [VOCABULARY, -1])
def test_an_id_outside_the_vocabulary_is_refused(wrong):
    model, ids = tiny_model(), torch.tensor([[3, wrong, AUDIO]])
    message = f"`input_ids` holds id {wrong} and the LLM's vocabulary has 32 ids: use the processor"
    with pytest.raises(ValueError, match=message):
        model(input_ids=ids, input_features=make_clips([80])[0])
    with pytest.raises(ValueError, match=message):
        model(input_ids=ids[:, :2])


def test_a_label_outside_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match="`labels` holds id 40 and the LLM's vocabulary has 32 ids"):
        tiny_model()(input_ids=torch.tensor([[3, 4]]), labels=torch.tensor([[-100, 40]]))


def test_labels_and_masks_of_another_length_are_refused():
    model, ids, features = tiny_model(), torch.tensor([[3, AUDIO, 4]]), make_clips([80])[0]
    with pytest.raises(
        ValueError, match=r"`labels` has shape \(1, 9\), which differs from that of .*: give one label"
    ):
        model(input_ids=ids, input_features=features, labels=torch.zeros(1, 9, dtype=torch.long))
    with pytest.raises(ValueError, match=r"`attention_mask` has shape \(1, 9\) and `input_ids` \(1, 3\): give one"):
        model(input_ids=ids, input_features=features, attention_mask=torch.ones(1, 9))


def test_the_encoder_alone_refuses_more_than_its_window():
    features = torch.zeros(1, MEL_BINS, WINDOW + 2)
    with pytest.raises(ValueError, match=r"has 82 mel frames and the encoder's window is 80 \(0.8 s\). Cut"):
        tiny_model().model.encode(features)


def test_a_prompt_longer_than_the_llms_context_is_refused():
    model = tiny_model(text_fields={"max_position_embeddings": 6})
    inputs = {"input_ids": torch.tensor([[3, AUDIO, 4]]), "input_features": make_clips([80])[0]}
    message = r"has \d+ positions with its clips .*, and the LLM's context is 6 \(`max_position_embeddings`\): cut"
    with pytest.raises(ValueError, match=message):
        model(**inputs)
    with pytest.raises(ValueError, match=message):
        model.generate(**inputs, max_new_tokens=2)
    prefixed = {**inputs, "input_ids": torch.tensor([[3, 3, 3, 3, 3, AUDIO]]), "shared_prefix": 5}
    with pytest.raises(ValueError, match=message):
        model(**prefixed)


@pytest.mark.parametrize("wrong", [VOCABULARY, -1, AUDIO])
def test_a_ctc_label_that_is_no_token_is_refused(wrong):
    with pytest.raises(ValueError, match=rf"holds id {wrong}; expected ids 0..31 other than the blank \(31\)"):
        tiny_model().get_audio_features(*make_clips([80]), ctc_labels=torch.tensor([[1, wrong]]))


@pytest.mark.parametrize("wrong", [VOCABULARY, -1])
def test_a_candidate_outside_the_vocabulary_is_refused(wrong):
    model, batch, candidates = tiny_model(), mixed_batch(), torch.tensor([3, wrong])
    message = f"`ctc_candidates` holds id {wrong} and the LLM's vocabulary has 32 ids: use the processor"
    with pytest.raises(ValueError, match=message):
        model(**batch, ctc_labels=CTC_LABELS, ctc_candidates=candidates)
    with pytest.raises(ValueError, match=message):
        ctc_model_of(model)(batch["input_features"], ctc_candidates=candidates)


def test_ctc_labels_for_other_clips_are_refused():
    with pytest.raises(ValueError, match="`ctc_labels` has 1 rows for 2 clips: give one row for each"):
        tiny_model().get_audio_features(*make_clips([80, 80]), ctc_labels=torch.tensor([[1, 2]]))


def test_a_gap_between_ctc_labels_is_refused():
    labels = torch.tensor([[5, -100, -100], [-100, 5, -100]])
    with pytest.raises(ValueError, match="`ctc_labels` of clip 1 has a target after -100: put targets first"):
        tiny_model().get_audio_features(*make_clips([80, 80]), ctc_labels=labels)


def test_a_misspelt_argument_is_refused_with_the_near_one():
    model, batch, labels = tiny_model(), mixed_batch(), CTC_LABELS
    message = "`forward` got an unknown argument `ctc_lables`. Did you mean `ctc_labels`?"
    with pytest.raises(ValueError, match=re.escape(message)):
        model(**batch, ctc_lables=labels)
    with pytest.raises(ValueError, match=re.escape(message)):
        ctc_model_of(model)(batch["input_features"], batch["input_features_mask"], ctc_lables=labels)
    with pytest.raises(ValueError, match="unknown argument `input_feature_mask`. Did you mean `input_features_mask`"):
        model.get_audio_features(batch["input_features"], input_feature_mask=batch["input_features_mask"])
    with pytest.raises(ValueError, match="unknown argument `num_ctc_clip`. Did you mean `num_ctc_clips`"):
        model(**batch, ctc_labels=labels, num_ctc_clip=8)
    with pytest.raises(
        ValueError, match="unknown argument `output_hidden_state`. Did you mean `output_hidden_states`"
    ):
        model(**batch, output_hidden_state=True)


def test_close_names_are_searched_once_for_each_unknown_argument_and_never_for_known_ones(monkeypatch):
    model, batch, searched = tiny_model(), mixed_batch(), []

    def search(name, *args, **kwargs):
        searched.append(name)
        return []

    monkeypatch.setattr("soundwave_hf.modeling.inputs_soundwave.difflib.get_close_matches", search)
    for _ in range(2):
        model(**batch, ctc_labels=CTC_LABELS, num_ctc_clips=2, output_attentions=False)
    assert searched == []
    for _ in range(2):
        model(**batch, a_thing_of_the_llm=1)
    assert searched == ["a_thing_of_the_llm"] * 2  # once by the whole model, once by its base


@torch.no_grad()
def test_arguments_of_the_llm_are_passed_on():
    model, batch = tiny_model(), mixed_batch()
    output = model(**batch, output_hidden_states=True, output_router_logits=False)
    assert len(output.hidden_states) == 3


def test_clips_without_ids_are_refused():
    with pytest.raises(ValueError, match="`input_ids` was not given: pass the prompt's ids, with one audio token for"):
        tiny_model()(input_features=make_clips([80])[0])


# ---- Stage I as a model of the ForCTC kind


def test_labels_and_ctc_labels_are_two_names_of_one_argument():
    stage_one = ctc_model_of(tiny_model())
    features, mask = make_clips([80, 51])
    targets = torch.tensor([[3, 4, 5], [6, -100, -100]])
    expected = stage_one(features, mask, ctc_labels=targets)
    for given in ({"labels": targets}, {"labels": targets, "ctc_labels": targets.clone()}):
        output = stage_one(features, mask, **given)
        assert output.loss == expected.loss == output.ctc_loss > 0
    assert stage_one(features, mask).loss is None
    with pytest.raises(ValueError, match=r"`labels` of shape \(2, 3\) and `ctc_labels` .* differ. Both are names"):
        stage_one(features, mask, labels=targets, ctc_labels=targets + 1)
    with pytest.raises(ValueError, match="`ctc_labels` holds id 31"):
        stage_one(features, mask, labels=targets.clamp(max=3) + 28)


@pytest.mark.parametrize("tied", [True, False])
def test_stage_one_gives_logits_on_request_alone(tied):
    stage_one = ctc_model_of(tiny_model(tie_ctc_head=tied))
    features, mask = make_clips([80, 51])
    assert stage_one(features, mask, labels=torch.tensor([[3], [4]])).logits is None
    output = stage_one(features, mask, output_ctc_logits=True)
    assert output.logits.shape == (2, 20, VOCABULARY)
    assert output.ctc_logits is output.logits
    for clip, frames in enumerate(output.num_frames.tolist()):  # without a margin, labels are the arg max
        assert torch.equal(output.logits[clip, :frames].argmax(dim=-1), output.ctc_best[clip, :frames])
    scores = output.logits.log_softmax(dim=-1).transpose(0, 1)
    targets = torch.tensor([[3, 4], [5, 6]])
    losses = torch.nn.functional.ctc_loss(
        scores, targets, output.num_frames, torch.tensor([2, 2]), blank=AUDIO, reduction="none"
    )
    expected = (losses / 2).mean()
    torch.testing.assert_close(stage_one(features, mask, labels=targets).loss, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_stage_one_returns_states_and_attentions_of_the_encoder_on_request():
    model, asked = tiny_model(), {"output_hidden_states": True, "output_attentions": True}
    model.set_attn_implementation("eager")
    clips = make_clips([80, 51])
    expected, output = model.get_audio_features(*clips, **asked), ctc_model_of(model)(*clips, **asked)
    for of_whole, of_stage_one in (
        (expected.hidden_states, output.hidden_states),
        (expected.attentions, output.attentions),
    ):
        assert len(of_whole) == len(of_stage_one)
        assert all(map(torch.equal, of_whole, of_stage_one))
    assert ctc_model_of(model)(*clips).hidden_states is None
    assert ctc_model_of(model)(*make_clips([WINDOW + 2]), **asked).hidden_states is None


@pytest.mark.parametrize(
    "given",
    [
        {"inputs_embeds": torch.ones(1, 2, 4)},
        {"position_limits": PositionLimits(max_positions_per_second=3)},
        {"use_cache": True},
        {"past_key_values": DynamicCache()},
        {"logits_to_keep": 1},
    ],
    ids=lambda given: next(iter(given)),
)
def test_stage_one_refuses_what_is_for_the_llm(given):
    message = f"`{next(iter(given))}` was given, and `SoundwaveForCTC` has no LLM: leave it out, or load the whole"
    with pytest.raises(ValueError, match=message):
        ctc_model_of(tiny_model())(*make_clips([80]), **given)


@torch.no_grad()
def test_stage_one_takes_what_a_trainer_adds_and_what_asks_for_nothing():
    stage_one, clips, labels = ctc_model_of(tiny_model()), make_clips([80, 51]), torch.tensor([[3, 4], [5, -100]])
    expected = stage_one(*clips, labels=labels).loss
    assert stage_one(*clips, labels=labels, num_items_in_batch=3, use_cache=False, shared_prefix=0).loss == expected


@torch.no_grad()
def test_stage_one_takes_all_that_the_processor_returns():
    stage_one, (features, mask) = ctc_model_of(tiny_model()), make_clips([80])
    prompt = {"input_ids": torch.tensor([[3, AUDIO]]), "attention_mask": torch.ones(1, 2, dtype=torch.long)}
    inputs = {"input_features": features, "input_features_mask": mask, "is_transcription": torch.tensor([True])}
    assert torch.equal(stage_one(**inputs, **prompt).ctc_best, stage_one(features, mask).ctc_best)


def test_plain_trainer_evaluates_stage_one_on_labels(tmp_path):
    features, mask = make_clips([80, 51])
    rows = [
        {"input_features": features[clip], "input_features_mask": mask[clip], "labels": torch.tensor([3, 4])}
        for clip in range(2)
    ]
    arguments = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True, max_steps=1, disable_tqdm=True)
    trainer = Trainer(ctc_model_of(tiny_model()), arguments, train_dataset=rows, eval_dataset=rows)
    before = trainer.evaluate()["eval_loss"]
    assert trainer.train().training_loss > 0
    assert trainer.evaluate()["eval_loss"] != before


# ---- Values that are no numbers


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_features_that_are_not_finite_are_refused_with_the_clip(value):
    model = tiny_model()
    batch = pad_batch([[3, AUDIO, 4, AUDIO]], [80, 51])
    batch["input_features"][1, 2, 7] = value
    clips = {name: batch[name] for name in ("input_features", "input_features_mask")}
    stage_one = ctc_model_of(model)
    for call in (
        lambda: model(**batch),
        lambda: model.generate(**batch, max_new_tokens=2),
        lambda: model.get_audio_features(**clips),
        lambda: stage_one(**clips, labels=torch.tensor([[3], [4]])),
        lambda: model.train()(**batch),  # on the CPU it costs nothing
    ):
        with pytest.raises(
            ValueError, match=r"`input_features` of clip 1 holds (nan|inf|-inf); expected finite values"
        ):
            call()


def test_encoder_states_that_are_not_finite_are_refused():
    model = tiny_model()
    states = torch.zeros(1, 20, 12)
    states[0, 3, 4] = torch.nan
    with pytest.raises(ValueError, match="`encoder_states` of clip 0 holds nan"):
        model.generate(torch.tensor([[3, AUDIO]]), encoder_states=states, max_new_tokens=2)


# ---- Whether there is speech


def test_silence_noise_and_tones_may_not_be_a_word_and_a_short_change_may():
    frames = 60
    silence = torch.full((80, frames), -1.5)
    noise = torch.randn(80, frames) * 0.14  # 5.6 dB, as the log-mel of noise has
    tone = torch.full((80, frames), -0.9)
    tone[10:14] = 1.0
    word = silence.clone()
    word[:30, 10:35], word[30:, 35:50] = 0.9, 0.6  # low and then high, a quarter of a second each
    music = word.repeat(1, 8)
    clips = [silence, noise, tone, word]
    assert may_be_words(torch.stack(clips)).tolist() == [False, False, False, True]
    assert not may_be_word(music)
    padded = torch.stack([torch.nn.functional.pad(word, (0, 40), value=5.0)])
    assert may_be_words(padded, (torch.arange(100) < 60).long()[None]).tolist() == [True]


def test_encoder_states_of_a_long_clip_alone_are_judged_silent():
    model = tiny_model(no_speech_threshold=0.5)
    audio = SoundwaveAudioOutput(no_speech_probs=torch.tensor([0.9, 0.9, 0.4]), num_frames=torch.tensor([37, 38, 50]))
    assert model.model.judge_silence(audio).tolist() == [False, True, False]  # 1.48, 1.52 and 2 s
    model.config.no_speech_threshold = None
    assert not model.model.judge_silence(audio).any()


@pytest.mark.parametrize("encoder_dtype", [torch.float16, torch.float32])
def test_a_joined_model_is_loaded_in_the_dtype_of_its_llm(tmp_path, monkeypatch, encoder_dtype):
    warnings = []
    monkeypatch.setattr(modeling_soundwave.logger, "warning_once", warnings.append)
    whisper, llm = save_tiny_whisper(tmp_path / "whisper"), save_tiny_llm(tmp_path / "llm")
    WhisperForConditionalGeneration.from_pretrained(whisper, dtype=encoder_dtype).save_pretrained(whisper)
    language = AutoModelForCausalLM.from_pretrained(llm, dtype=torch.bfloat16)
    with torch.no_grad():
        language.get_input_embeddings().weight[0, 0] = 1e5  # more than float16 holds
    language.save_pretrained(llm)
    model = SoundwaveForConditionalGeneration.from_backbones(whisper, llm, warm_start=False)
    assert model.dtype == torch.bfloat16
    model.save_pretrained(tmp_path / "joined")
    assert any("will load all of them in that of the LLM, torch.bfloat16" in warning for warning in warnings)
    found = SoundwaveForConditionalGeneration.from_pretrained(tmp_path / "joined")
    assert {value.dtype for value in found.parameters()} == {torch.bfloat16}
    assert torch.equal(found.get_input_embeddings().weight, model.get_input_embeddings().weight)
    exact = SoundwaveForConditionalGeneration.from_pretrained(tmp_path / "joined", dtype=torch.float32).state_dict()
    assert all(torch.equal(exact[name], value.float()) for name, value in model.state_dict().items())
