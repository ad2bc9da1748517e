"""Clips longer than the encoder's window: cut at quiet places, encoded piece by piece, joined before shrinking."""

import pytest
import torch

from soundwave_hf.modeling.segments_soundwave import PIECES_AT_ONCE, cut_at_quiet
from tests.tiny_models import AUDIO, WINDOW, make_clips, tiny_model


UNIT = 4  # mel frames of an aligned frame


def features_with_pauses(length: int, pauses: list[int]) -> torch.Tensor:
    """Loud noise `(1, mel_bins, length)`, quiet at some frames."""
    features = 2 + make_clips([length])[0]
    features[:, :, pauses] = -9
    return features


@pytest.mark.parametrize(
    ("pauses", "places"),
    [
        # A window of 80 is searched from frame 53 on; a cut is rounded down to a whole aligned frame.
        ([70], [(0, 68), (68, 130)]),
        ([53], [(0, 52), (52, 130)]),
        ([79], [(0, 76), (76, 130)]),
        ([10, 60, 100], [(0, 60), (60, 130)]),
    ],
)
def test_a_clip_is_cut_where_it_is_quietest_in_the_last_third_of_a_window(pauses, places):
    energy = features_with_pauses(130, pauses)[0].mean(dim=0)
    assert cut_at_quiet(energy, WINDOW, UNIT) == places


def test_a_cut_moves_on_even_where_an_aligned_frame_is_most_of_a_window():
    assert cut_at_quiet(torch.zeros(40), 16, 14) == [(0, 14), (14, 28), (28, 40)]


@pytest.mark.parametrize("length", [WINDOW + 1, 200, 1001])
def test_pieces_are_the_whole_clip_and_none_is_longer_than_the_window(length):
    places = cut_at_quiet(torch.randn(length), WINDOW, UNIT)
    begins, ends = zip(*places, strict=True)
    assert (begins[0], ends[-1]) == (0, length)
    assert begins[1:] == ends[:-1]
    assert all(begin % UNIT == 0 and 0 < end - begin <= WINDOW for begin, end in places)


def test_two_tenths_of_a_second_of_a_real_window_are_quieter_than_a_click():
    energy = torch.zeros(4000)
    energy[2500:2520] = -3  # a pause of 0.2 s
    energy[2800] = -30  # one frame
    assert cut_at_quiet(energy, 3000, UNIT)[0] == (0, 2508)


@pytest.mark.parametrize("fields", [{}, {"compat": "published"}, {"keep_blanks": False, "label_embeddings": True}])
@torch.no_grad()
def test_a_long_clip_is_its_pieces_joined_before_shrinking(fields):
    model = tiny_model(**fields).model
    features = features_with_pauses(190, [70, 128])
    pieces = [features[:, :, begin:end] for begin, end in ((0, 68), (68, 128), (128, 190))]
    aligned = torch.cat([model.alignment_adapter(model.encode(piece)[0], None)[0] for piece in pieces], dim=1)
    mask = torch.ones(aligned.shape[:2], dtype=torch.bool)
    best = model.label(aligned, mask, model.get_input_embeddings().weight).ctc_best
    keep = model.keep_mask(best, mask)
    expected = model.shrinking_adapter(aligned, mask, keep)
    if "label_embeddings" in fields:
        expected = expected + model.get_input_embeddings()(best[keep])
    found = model.get_audio_features(features)
    assert found.num_frames.tolist() == [48]  # 190 mel frames, four an aligned frame
    assert found.last_hidden_state.shape == (1, 95, 12)
    assert torch.equal(found.ctc_best, best)
    torch.testing.assert_close(found.pooler_output, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_long_and_short_clips_in_a_batch_give_what_each_gives_alone():
    model = tiny_model()
    frames = [80, (PIECES_AT_ONCE + 2) * WINDOW, 5, 171]  # the second is encoded in two groups
    features, mask = make_clips(frames)
    batch = model.get_audio_features(features, mask)
    rows = zip(features, frames, batch.num_positions.cumsum(0), batch.num_positions, batch.num_frames, strict=True)
    for clip, length, end, positions, num_frames in rows:
        alone = model.get_audio_features(clip[None, :, :length])
        assert int(num_frames) == int(alone.num_frames) == -(-length // UNIT)
        assert int(positions) == int(alone.num_positions)
        torch.testing.assert_close(batch.pooler_output[end - positions : end], alone.pooler_output, rtol=0, atol=1e-5)


def test_states_of_a_long_clip_are_not_taken_in_place_of_its_features():
    states = torch.zeros(1, WINDOW // 2 + 1, 12)
    with pytest.raises(ValueError, match="`encoder_states` has 41 frames and the encoder's window gives 40"):
        tiny_model().get_audio_features(encoder_states=states)


@torch.no_grad()
def test_a_long_clip_is_generated_from_and_trained_on():
    model = tiny_model()
    features, mask = make_clips([300, 40])
    inputs = {"input_ids": torch.tensor([[3, AUDIO, 4], [5, 6, AUDIO]]), "input_features": features}
    inputs["input_features_mask"] = mask
    ids = model.generate(**inputs, max_new_tokens=4, do_sample=False, suppress_tokens=[AUDIO])
    for row, length in enumerate((300, 40)):
        alone = {
            "input_ids": inputs["input_ids"][row : row + 1],
            "input_features": features[row : row + 1, :, :length],
        }
        found = model.generate(**alone, max_new_tokens=4, do_sample=False, suppress_tokens=[AUDIO])
        assert torch.equal(found[0], ids[row])
    with torch.enable_grad():
        loss = model(
            **inputs,
            labels=inputs["input_ids"].masked_fill(inputs["input_ids"] == AUDIO, -100),
            ctc_labels=torch.tensor([[1, 2, 3], [4, 5, -100]]),
        ).loss
        loss.backward()
    assert model.model.alignment_adapter.linear.weight.grad.abs().sum() > 0


@pytest.mark.slow
@torch.no_grad()
def test_ten_minutes_are_generated_from_and_encoded_a_few_pieces_at_once(monkeypatch):
    model = tiny_model(text_fields={"max_position_embeddings": 16_384})
    features = make_clips([60_000])[0]
    inputs = {"input_ids": torch.tensor([[3, AUDIO, 4]]), "input_features": features}
    options = {"max_new_tokens": 3, "do_sample": False, "suppress_tokens": [AUDIO], "return_dict_in_generate": True}
    audio = model.get_audio_features(features)
    groups: list[tuple[int, ...]] = []
    encode = model.model.audio_tower.forward
    monkeypatch.setattr(
        model.model.audio_tower,
        "forward",
        lambda clips, mask, **options: groups.append(clips.shape) or encode(clips, mask),
    )
    output = model.generate(**inputs, **options, output_logits=True)
    assert audio.num_frames.tolist() == [15_000]
    assert audio.num_positions.item() > 5000
    assert output.past_key_values.get_seq_length() == 2 + audio.num_positions.item() + 2
    assert all(pieces <= PIECES_AT_ONCE and length <= WINDOW for pieces, _, length in groups)
    assert len(groups) > 90  # of 750 pieces or more
    embed = model.get_input_embeddings()
    row = torch.cat([embed(torch.tensor([[3]])), audio.pooler_output[None], embed(torch.tensor([[4]]))], dim=1)
    last = model.lm_head(model.model.language_model(inputs_embeds=row).last_hidden_state[:, -1])
    torch.testing.assert_close(output.logits[0], last, rtol=0, atol=1e-4)


def test_more_than_the_context_holds_is_refused_with_both_numbers():
    features = make_clips([6_000])[0]
    positions = int(tiny_model().get_audio_features(features).num_positions)
    with pytest.raises(ValueError, match=rf"has {positions + 1} positions .* the LLM's context is 256 .*cut the clip"):
        tiny_model().generate(torch.tensor([[AUDIO, 4]]), input_features=features, max_new_tokens=3)
