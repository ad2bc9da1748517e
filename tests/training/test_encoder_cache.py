import json

import numpy as np
import pytest
import soundfile
import torch
from safetensors import safe_open

from soundwave_hf.data.tiny import RATE
from soundwave_hf.modeling.modeling_soundwave import SoundwaveForCTC
from soundwave_hf.training import encoder_cache
from soundwave_hf.training.augment import Augmentation
from soundwave_hf.training.collator import SoundwaveDataCollator
from soundwave_hf.training.encoder_cache import EncoderCache
from tests.training.workspace import EVERY_AUGMENTATION, train, without_dropout


@pytest.fixture(scope="module")
def model(workspace):
    return SoundwaveForCTC.from_backbones(workspace.encoder, workspace.llm, warm_start=False)


@pytest.fixture(scope="module")
def rows(workspace) -> list[dict]:
    lines = (workspace.data / "train.jsonl").read_text().splitlines()
    return [json.loads(line) | {"row": index} for index, line in enumerate(lines)]


@pytest.fixture
def collator(workspace):
    """A collator that reads from a cache of these options, and one that does not."""

    def make(cache: EncoderCache | None = None, **augmentation) -> SoundwaveDataCollator:
        return SoundwaveDataCollator(
            workspace.processor(), workspace.data, ("ctc",), Augmentation(**augmentation), encoder_cache=cache
        )

    return make


def shards_of(cache: EncoderCache) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in cache.folder.iterdir()}


@pytest.mark.parametrize("augmentation", [{}, EVERY_AUGMENTATION], ids=["as they are", "augmented"])
def test_states_are_those_that_the_encoder_gives(model, rows, collator, tmp_path, augmentation):
    cache = EncoderCache(tmp_path, variants=2)
    cached, fresh = collator(cache, **augmentation), collator(**augmentation)
    cache.fill(model, cached, rows)
    for epoch, variant in ((0, 0), (1, 1), (2, 0)):
        cached.epoch = epoch
        batch, expected = cached(rows[:5]), fresh(rows[:5])
        expected |= fresh.features(rows[:5], [fresh.clip_draw(row, variant) for row in rows[:5]])
        with torch.no_grad():
            states, mask = model.encode(expected["input_features"], expected["input_features_mask"])
        assert (batch["encoder_mask"] == mask).all()
        torch.testing.assert_close(batch["encoder_states"][mask], states[mask], rtol=1e-5, atol=1e-5)
        assert "input_features" not in batch
        assert (batch["ctc_labels"] == expected["ctc_labels"]).all()


def test_versions_differ_where_clips_are_augmented_and_are_one_where_not(model, rows, collator, tmp_path):
    cache = EncoderCache(tmp_path, variants=3)
    cache.fill(model, collator(cache), rows)
    assert len(cache.shards) == len(rows)
    cache.fill(model, collator(cache, speed=0.1), rows)
    assert len(cache.shards) == len(rows) + 3 * len(rows)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["align", "shrink"])
def test_training_on_cached_states_is_training(workspace, tmp_path, stage):
    """Epochs, accumulation and data-loader workers included, losses are those of fresh states."""
    changes = {"num_train_epochs": 2, "max_steps": -1, "per_device_train_batch_size": 2}
    changes |= {"gradient_accumulation_steps": 2, "dataloader_num_workers": 1}
    home = {"SOUNDWAVE_HOME": str(tmp_path)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(*next(iter(home.items())))
        fresh = train(workspace.recipe(stage, tmp_path / "fresh", **changes), change=without_dropout)
        cached = train(
            workspace.recipe(stage, tmp_path / "cached", encoder_cache={"gigabytes": 1}, **changes),
            change=without_dropout,
        )
    assert len(cached.losses()) == 6
    np.testing.assert_allclose(cached.losses(), fresh.losses(), rtol=1e-5)
    assert list((tmp_path / "encoder_states").glob("*/*.safetensors"))


def test_masks_are_drawn_anew_in_every_epoch_and_come_back_where_they_are_cached(workspace, tmp_path, monkeypatch):
    """SpecAugment: epochs of one step, of the same weights."""
    monkeypatch.setenv("SOUNDWAVE_HOME", str(tmp_path))
    recipe = workspace.recipe("align", tmp_path / "fresh", max_steps=4, per_device_train_batch_size=12)
    recipe |= {"augment": {"spec_augment": 1.0}, "learning_rate": 0.0, "plot_loss": False}
    recipe["train_sampling_strategy"] = "sequential"
    fresh = train(recipe, change=without_dropout).losses()
    cached = recipe | {"output_dir": str(tmp_path / "cached"), "encoder_cache": {"variants": 2}}
    losses = train(cached, change=without_dropout).losses()
    assert len(set(fresh)) == 4
    assert losses[2:] == losses[:2]
    assert losses[0] != losses[1]


def test_what_is_there_is_not_computed_again(model, rows, collator, tmp_path, monkeypatch):
    monkeypatch.setattr(encoder_cache, "SHARD_BYTES", 1)
    monkeypatch.setattr(encoder_cache, "FRAMES_AT_ONCE", 200)
    cache = EncoderCache(tmp_path)
    cache.fill(model, collator(cache), rows[:6])
    first = shards_of(cache)
    assert len(first) > 2
    cache.fill(model, collator(cache), rows)
    both = shards_of(cache)
    assert both.items() > first.items()

    def refuse(*_):
        raise AssertionError("encoded again")

    monkeypatch.setattr(model, "encode", refuse)
    cache.fill(model, collator(cache), rows)
    assert shards_of(cache) == both


def test_a_fill_that_was_cut_off_goes_on(model, rows, collator, tmp_path, monkeypatch):
    monkeypatch.setattr(encoder_cache, "SHARD_BYTES", 1)
    monkeypatch.setattr(encoder_cache, "FRAMES_AT_ONCE", 200)
    cache = EncoderCache(tmp_path)
    save, written = encoder_cache.save_file, []

    def fail_in_the_third(states, path):
        save(states, path)
        written.append(path)
        if len(written) == 3:
            path.write_bytes(path.read_bytes()[:-8])
            raise OSError("No space left on device")

    monkeypatch.setattr(encoder_cache, "save_file", fail_in_the_third)
    with pytest.raises(OSError, match="No space left"):
        cache.fill(model, collator(cache), rows)
    assert len(shards_of(cache)) == 2
    monkeypatch.setattr(encoder_cache, "save_file", save)
    cache.fill(model, collator(cache), rows)
    names = [name for path in cache.folder.iterdir() for name in safe_open(path, "pt").keys()]  # noqa: SIM118
    assert len(names) == len(set(names)) == len(rows)


def test_a_broken_shard_is_named_and_its_clips_are_encoded_again_without_it(model, rows, collator, tmp_path):
    cache = EncoderCache(tmp_path)
    cache.fill(model, collator(cache), rows[:2])
    (shard,) = cache.folder.iterdir()
    shard.write_bytes(shard.read_bytes()[:20])
    with pytest.raises(ValueError, match=f"{shard.name}` is broken .*: remove it; its clips are encoded again"):
        cache.open(model.audio_tower)
    shard.unlink()
    cache.fill(model, collator(cache), rows[:2])
    assert [path.name for path in cache.folder.iterdir()] == [shard.name]


def test_another_encoder_has_another_folder(model, rows, collator, tmp_path):
    cache = EncoderCache(tmp_path)
    cache.fill(model, collator(cache), rows[:2])
    with torch.no_grad():
        weight = model.audio_tower.conv1.weight
        before = weight.clone()
        weight[0, 0, 0] += 1
    other = EncoderCache(tmp_path)
    other.fill(model, collator(other), rows[:2])
    with torch.no_grad():
        weight.copy_(before)
    assert other.folder != cache.folder
    assert set(other.shards) == set(cache.shards)


def test_another_content_of_a_file_is_another_clip(model, rows, collator, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(RATE, dtype=np.float32) + 0.1, RATE)
    row = {"audio": str(tmp_path / "a.wav"), "text": "a", "seconds": 1.0, "row": 0}
    first = collator().clip_name(row, 0)
    soundfile.write(tmp_path / "a.wav", np.zeros(RATE, dtype=np.float32) + 0.2, RATE)
    assert collator().clip_name(row, 0) != first
    assert collator(noise=0.5).clip_name(row, 0) != collator().clip_name(row, 0)


def test_clip_of_bytes_has_the_states_of_its_file(model, rows, collator, workspace, tmp_path):
    cache = EncoderCache(tmp_path)
    inside = rows[0] | {"audio": {"path": None, "bytes": (workspace.data / rows[0]["audio"]).read_bytes()}}
    assert collator().clip_name(inside, 0) == collator().clip_name(rows[0], 0)
    cached = collator(cache)
    cache.fill(model, cached, [inside])
    assert torch.equal(cached([inside])["encoder_states"], cached([rows[0]])["encoder_states"])


def test_states_that_do_not_fit_are_refused_before_the_first(model, rows, collator, tmp_path):
    cache = EncoderCache(tmp_path, gigabytes=1e-6)
    with pytest.raises(ValueError, match=r"12 clips.*`encoder_cache.gigabytes` is 1e-06: raise it"):
        cache.fill(model, collator(cache), rows)
    assert not cache.folder.exists()


def test_clip_beyond_the_encoders_window_is_refused(model, rows, collator, tmp_path):
    cache = EncoderCache(tmp_path)
    with pytest.raises(ValueError, match=r"is 31 s long and the encoder takes at most 30 s"):
        cache.fill(model, collator(cache), [rows[0] | {"seconds": 31.0}])


@pytest.mark.parametrize(
    ("options", "message"), [({"variants": 0}, "`variants` 0"), ({"gigabytes": 0}, "`gigabytes` 0")]
)
def test_options_out_of_range_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        EncoderCache(tmp_path, **options)
