"""Clips in memory, and their augmentation and log-mel on the device: `examples/soundwave-small/gpu_train.py`."""

import random

import gpu_train
import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor

from soundwave_hf import SoundwaveProcessor
from soundwave_hf.training.augment import Augmentation
from tests.tiny_models import byte_tokenizer


RATE = 16_000


@pytest.fixture(scope="module")
def processor():
    return SoundwaveProcessor(WhisperFeatureExtractor(), byte_tokenizer(), trailing_silence=0.1)


@pytest.fixture(scope="module")
def clips():
    rng = np.random.default_rng(0)
    lengths = (5_000, 16_000, 33_333, 47_999)
    return [(rng.standard_normal(n) * np.linspace(0.02, 0.15, n)).astype(np.float32) for n in lengths]


def padded(clips):
    lengths = torch.tensor([len(clip) for clip in clips])
    samples = torch.zeros(len(clips), int(lengths.max()))
    for place, clip in enumerate(clips):
        samples[place, : len(clip)] = torch.from_numpy(clip)
    return samples, lengths


def test_log_mel_of_a_batch_is_that_of_the_processor(processor, clips):
    expected = processor.log_mel(clips)
    made = gpu_train.log_mel(*padded(clips), processor.feature_extractor, processor.trailing_silence)
    np.testing.assert_allclose(made["input_features"].numpy(), expected["input_features"], atol=1e-5)
    np.testing.assert_array_equal(made["input_features_mask"].numpy(), expected["input_features_mask"])


def test_without_augmentation_samples_stay_as_they_are(clips):
    samples, lengths = padded(clips)
    changed, same = gpu_train.changed_samples(samples.clone(), lengths, Augmentation())
    torch.testing.assert_close(changed, samples, atol=1e-5, rtol=0)
    assert torch.equal(same, lengths)


def test_a_narrow_band_has_no_high_sounds(clips):
    samples, lengths = padded(clips)
    changed, _ = gpu_train.changed_samples(samples.clone(), lengths, Augmentation(narrow=1.0))
    power = torch.fft.rfft(changed[-1]).abs().square()
    high = int(7_200 / (RATE / 2) * len(power))
    assert power[high:].sum() < 0.01 * power.sum()
    before, after = (each[-1].square().mean().sqrt() for each in (samples, changed))
    torch.testing.assert_close(after, before, rtol=0.02, atol=0)  # as loud as before


def test_noise_stays_inside_its_clip_and_below_the_speech(clips):
    torch.manual_seed(0)
    samples, lengths = padded(clips)
    changed, _ = gpu_train.changed_samples(samples.clone(), lengths, Augmentation(noise=1.0))
    noise = changed - samples
    for place, length in enumerate(lengths):
        assert noise[place, length:].abs().max() < 1e-6 if length < samples.shape[1] else True
        ratio = noise[place, :length].square().mean() / samples[place, :length].square().mean()
        assert 10**-3.6 < ratio < 10**-0.4  # 35 to 5 dB


def test_another_speed_changes_the_lengths(clips):
    random.seed(1)
    samples, lengths = padded(clips)
    changed, new = gpu_train.changed_samples(samples.clone(), lengths, Augmentation(speed=0.15))
    ratios = new / lengths
    assert ratios.max() - ratios.min() < 1e-3 and not torch.equal(new, lengths)
    assert int(new.max()) <= changed.shape[1]


def test_masks_lie_inside_the_clips(processor, clips):
    batch = gpu_train.log_mel(*padded(clips), processor.feature_extractor, processor.trailing_silence)
    masked = gpu_train.masked_features(batch, 1.0)["input_features"]
    changed = (masked != batch["input_features"]).any(dim=1)
    assert changed.any(dim=1).all() and not (changed & ~batch["input_features_mask"].bool()).any()
    torch.testing.assert_close(gpu_train.masked_features(batch, 0.0)["input_features"], batch["input_features"])


def test_batches_have_clips_of_similar_length_and_repeated_sources_more_often():
    rows = [{"source": "a", "seconds": 1 + number / 100} for number in range(300)]
    rows += [{"source": "b", "seconds": 1 + number / 100} for number in range(300)]
    batches = gpu_train.draw_batches(rows, {"b": 3}, 16, random.Random(0))
    drawn = [row for batch in batches for row in batch]
    assert len(drawn) == 16 * gpu_train.POOL_BATCHES
    assert 0.65 < sum(row["source"] == "b" for row in drawn) / len(drawn) < 0.85
    assert max(batch[-1]["seconds"] - batch[0]["seconds"] for batch in batches) < 1.0


def test_a_manifest_that_is_being_written_is_read_to_its_last_whole_line(tmp_path):
    path = tmp_path / "manifest.jsonl"
    path.write_text('{"audio": "a.flac"}\n{"audio": "b.fl', encoding="utf-8")
    assert gpu_train.finished_rows(path) == [{"audio": "a.flac"}]
