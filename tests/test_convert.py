"""`soundwave-hf convert`: streamed, continued after a kill, verified, and refused with one line."""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from huggingface_hub import metadata_load
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMultimodalLM

from soundwave_hf import cli, convert, published_files, shards
from soundwave_hf.convert import convert_published, describe_model, describe_unused, published_source
from tests.local_hub import local_hub
from tests.tiny_models import tiny_tokenizer


PUBLISHED = Path(__file__).parent / "fixtures" / "published"
SHARD = 200_000  # bytes: the 656,128 bytes of the fixture become 4 shards
SHARDS = [f"model-{number:05d}-of-00004.safetensors" for number in (1, 2, 3, 4)]


@pytest.fixture
def source(tmp_path):
    """The published checkpoint in a folder that a test may spoil."""
    return Path(shutil.copytree(PUBLISHED, tmp_path / "published"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted") / "native"
    convert_published(PUBLISHED, folder, max_shard_size=SHARD)
    return contents(folder)


def write_as(folder: Path, save, name: str, num_files: int):
    """Replace the weights of a checkpoint by `num_files` files of another format."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if num_files == 1:
        save(weights, folder / name)
        return
    stem, ending = name.rsplit(".", 1)
    weight_map = {
        tensor: f"{stem}-{1 + number % num_files:05d}-of-{num_files:05d}.{ending}"
        for number, tensor in enumerate(sorted(weights))
    }
    for shard in set(weight_map.values()):
        save({tensor: weights[tensor] for tensor in weights if weight_map[tensor] == shard}, folder / shard)
    total = sum(value.nbytes for value in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / f"{name}.index.json").write_text(json.dumps(index))


LAYOUTS = {
    "one PyTorch file": (torch.save, "pytorch_model.bin", 1),
    "three PyTorch files": (torch.save, "pytorch_model.bin", 3),
    "three safetensors files": (save_file, "model.safetensors", 3),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_of_the_source_gives_the_same_bytes(source, tmp_path, uninterrupted, layout):
    write_as(source, *LAYOUTS[layout])
    convert_published(source, tmp_path / "native", max_shard_size=SHARD)
    assert contents(tmp_path / "native") == uninterrupted


def test_shards_of_the_output_load_as_one_model(tmp_path, uninterrupted):
    convert_published(PUBLISHED, tmp_path / "native", max_shard_size=SHARD)
    convert_published(PUBLISHED, tmp_path / "single")
    assert sorted(name for name in uninterrupted if name.endswith(".safetensors")) == SHARDS
    found = AutoModelForMultimodalLM.from_pretrained(tmp_path / "native").state_dict()
    expected = load_file(tmp_path / "single" / "model.safetensors")
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


# ---- memory ----


def test_no_more_than_one_shard_is_saved_at_a_time_and_a_larger_tensor_is_alone(tmp_path, monkeypatch):
    sizes = []

    def spy(tensors, path, **kwargs):
        sizes.append((sum(each.nbytes for each in tensors.values()), len(tensors)))
        save_file(tensors, path, **kwargs)

    monkeypatch.setattr(shards, "save_file", spy)
    convert_published(PUBLISHED, tmp_path / "native", max_shard_size=30_000)
    assert sum(size for size, _ in sizes) == 656_128
    assert all(size <= 30_000 or number == 1 for size, number in sizes)
    assert max(size for size, _ in sizes) == 32_768  # a matrix of 64 x 128 in float32


# ---- killed runs ----


def die(*words, **keywords):
    os.kill(os.getpid(), signal.SIGKILL)


def kill(source: Path, destination: Path, place: str, number: int = 1):
    """Convert in another process that stops itself by SIGKILL, which no code can catch, at this shard."""
    if child := os.fork():
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        return
    try:
        count = 0

        def save(tensors, path, **keywords):
            nonlocal count
            count += 1
            save_file(tensors, path, **keywords)
            if count == number:
                os.truncate(path, os.path.getsize(path) // (2 if place == "half" else 1))
                die()

        if place == "unrecorded":
            shards.UnfinishedShards.finish = die
        elif place == "verify":
            convert.verify_shards = die
        else:
            shards.save_file = save
        convert_published(source, destination, max_shard_size=SHARD)
    finally:
        os._exit(1)


# place -> number of shards that the next run keeps
KEPT = {(place, number): number - 1 for place in ("half", "whole") for number in (1, 2, 3, 4)}
KEPT |= {("unrecorded", 1): 0, ("verify", 1): 4}


@pytest.mark.parametrize(("place", "number"), KEPT)
def test_a_killed_conversion_continues_and_gives_the_same_bytes(tmp_path, uninterrupted, capsys, place, number):
    destination = tmp_path / "native"
    kill(PUBLISHED, destination, place, number)
    assert not destination.exists()
    convert_published(PUBLISHED, destination, max_shard_size=SHARD)
    assert capsys.readouterr().out.count("Kept shard") == KEPT[place, number]
    assert contents(destination) == uninterrupted
    assert list(tmp_path.iterdir()) == [destination]


def test_a_killed_conversion_of_pytorch_shards_continues_too(source, tmp_path, uninterrupted, capsys):
    write_as(source, torch.save, "pytorch_model.bin", 2)
    kill(source, tmp_path / "native", "half", 3)
    convert_published(source, tmp_path / "native", max_shard_size=SHARD)
    assert capsys.readouterr().out.count("Kept shard") == 2
    assert contents(tmp_path / "native") == uninterrupted


@pytest.fixture
def stopped(source, tmp_path, monkeypatch):
    """A source and a destination whose conversion stopped after two shards, as on a full disk."""
    full_disk_at(monkeypatch, 3)
    with pytest.raises(OSError, match="2 finished shards stay in .*: run the same command again to continue"):
        convert_published(source, tmp_path / "native", max_shard_size=SHARD)
    monkeypatch.undo()
    return source, tmp_path / "native"


def full_disk_at(monkeypatch, number: int):
    """safetensors fails at the shard of this number as it does on a full disk, with half of a file written."""
    count = 0

    def save(tensors, path, **kwargs):
        nonlocal count
        count += 1
        if count == number:
            path.write_bytes(b"half")
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        save_file(tensors, path, **kwargs)

    monkeypatch.setattr(shards, "save_file", save)


def test_a_full_disk_leaves_finished_shards_and_the_next_run_continues(stopped, uninterrupted, capsys):
    source, destination = stopped
    left = destination.with_name(".native.part")
    assert sorted(path.name for path in left.glob("*.safetensors")) == SHARDS[:2]
    capsys.readouterr()
    convert_published(source, destination, max_shard_size=SHARD)
    assert capsys.readouterr().out.count("Kept shard") == 2
    assert contents(destination) == uninterrupted and not left.exists()


def test_a_full_disk_at_the_first_shard_leaves_nothing(tmp_path, monkeypatch):
    full_disk_at(monkeypatch, 1)
    with pytest.raises(OSError, match="No space left on device"):
        convert_published(PUBLISHED, tmp_path / "deep" / "native", max_shard_size=SHARD)
    assert list(tmp_path.iterdir()) == []


def test_a_finished_shard_that_was_damaged_is_written_again(stopped, uninterrupted, capsys):
    source, destination = stopped
    damaged = destination.with_name(".native.part") / SHARDS[1]
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    capsys.readouterr()
    convert_published(source, destination, max_shard_size=SHARD)
    assert capsys.readouterr().out.count("Kept shard") == 1
    assert contents(destination) == uninterrupted


def test_another_source_or_shard_size_begins_again_and_says_so(stopped, capsys):
    source, destination = stopped
    weights = load_file(source / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, source / "model.safetensors")
    convert_published(source, destination, max_shard_size=SHARD)
    printed = capsys.readouterr().out
    assert "was begun from other weights or another version: it is begun again" in printed
    assert "Kept shard" not in printed
    native = {name: value for shard in SHARDS for name, value in load_file(destination / shard).items()}
    assert torch.equal(native["model.language_model.norm.weight"], weights["model.norm.weight"])


# ---- verified ----


def test_a_bit_that_changes_on_disk_is_found_and_the_next_run_repairs_it(source, tmp_path, uninterrupted, monkeypatch):
    count = 0

    def save(tensors, path, **kwargs):
        nonlocal count
        count += 1
        save_file(tensors, path, **kwargs)
        if count == 2:
            content = bytearray(path.read_bytes())
            content[-1] ^= 1
            path.write_bytes(content)

    monkeypatch.setattr(shards, "save_file", save)
    message = rf"{SHARDS[1]}` was read again and 1 tensors differ from the source: .* The shard was deleted"
    with pytest.raises(OSError, match=message):
        convert_published(source, tmp_path / "native", max_shard_size=SHARD)
    convert_published(source, tmp_path / "native", max_shard_size=SHARD)
    assert contents(tmp_path / "native") == uninterrupted


def test_weights_that_are_not_a_number_are_equal_to_themselves(source, tmp_path):
    weights = load_file(source / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, source / "model.safetensors")
    convert_published(source, tmp_path / "native")
    assert load_file(tmp_path / "native" / "model.safetensors")["model.language_model.norm.weight"][0].isnan()


def test_each_part_of_a_published_tensor_is_used_once_or_named():
    model, _, _ = describe_model(PUBLISHED)
    sources = {name: published_source(name) for name in model.state_dict()}
    assert len(set(sources.values())) == len(sources) == 85
    layer = "model.asr_transformer_encoder.layers.0.self_attn.in_proj_"
    assert describe_unused(sources) == [f"query and key rows of {layer}weight", f"query and key rows of {layer}bias"]


def test_what_was_read_and_not_used_is_printed(tmp_path, capsys):
    convert_published(PUBLISHED, tmp_path / "native")
    printed = capsys.readouterr().out
    assert "Read 81 tensors (0.001 GB) of 1 files; the hub's sha256 is known for 0 of them" in printed
    assert "Not used: the query and key rows of model.asr_transformer" in printed
    assert "It was read again and equals the source." in printed


# ---- card and licences ----


def test_the_card_has_the_licence_of_the_source_and_its_licence_files_come_along(source, tmp_path):
    (source / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: [en, zh]\n---\n# Theirs\n")
    (source / "LICENSE.txt").write_text("the terms")
    convert_published(source, tmp_path / "native")
    data = metadata_load(tmp_path / "native" / "README.md")
    assert (data["license"], data["language"], data["library_name"]) == ("apache-2.0", ["en", "zh"], "transformers")
    text = (tmp_path / "native" / "README.md").read_text()
    assert "Licence: apache-2.0" in text and "0.2M parameters, float32" in text and "the folder `published`" in text
    assert (tmp_path / "native" / "LICENSE.txt").read_text() == "the terms"


def test_a_source_without_a_card_gives_a_card_that_claims_no_licence(tmp_path):
    convert_published(PUBLISHED, tmp_path / "native")
    assert "license" not in metadata_load(tmp_path / "native" / "README.md") or (PUBLISHED / "README.md").is_file()


# ---- refused: exit code 2, one line, nothing written ----


def edit_index(source: Path, **fields):
    index = json.loads((source / "model.safetensors.index.json").read_text())
    (source / "model.safetensors.index.json").write_text(json.dumps({**index, **fields}))


def sharded(source: Path):
    write_as(source, save_file, "model.safetensors", 3)


def lose_a_shard(source: Path):
    sharded(source)
    (source / "model-00002-of-00003.safetensors").unlink()


def lose_the_index(source: Path):
    sharded(source)
    (source / "model.safetensors.index.json").unlink()


def truncate(source: Path):
    os.truncate(source / "model.safetensors", 300_000)


def truncate_shard(source: Path):
    sharded(source)
    os.truncate(source / "model-00003-of-00003.safetensors", 5_000)


def truncate_pytorch(source: Path):
    write_as(source, torch.save, "pytorch_model.bin", 3)
    os.truncate(source / "pytorch_model-00002-of-00003.bin", 50_000)


def empty_file(source: Path):
    os.truncate(source / "model.safetensors", 0)


def pointer_of_lfs(source: Path):
    (source / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")


def add_tensor(source: Path):
    weights = load_file(source / "model.safetensors")
    save_file({**weights, "model.extra.weight": torch.zeros(3)}, source / "model.safetensors")


def drop_tensor(source: Path):
    weights = load_file(source / "model.safetensors")
    weights.pop("lm_head.weight")
    save_file(weights, source / "model.safetensors")


def twice(source: Path):
    sharded(source)
    first, second = (load_file(source / f"model-0000{number}-of-00003.safetensors") for number in (1, 2))
    save_file({**second, **dict([*first.items()][:1])}, source / "model-00002-of-00003.safetensors")


def another_index(source: Path):
    sharded(source)
    weight_map = json.loads((source / "model.safetensors.index.json").read_text())["weight_map"]
    weight_map["lm_head.weight"] = "model-00003-of-00003.safetensors"
    edit_index(source, weight_map=weight_map)


def another_total(source: Path):
    sharded(source)
    edit_index(source, metadata={"total_size": 5})


def broken_index(source: Path):
    sharded(source)
    (source / "model.safetensors.index.json").write_text('{"weight_map": ')


def broken_config(source: Path):
    (source / "config.json").write_text("[1, 2]")


def thirds_that_are_none(source: Path):
    weights = load_file(source / "model.safetensors")
    weights["model.lbm.encoder_attn.in_proj_weight"] = torch.zeros(64, 64)
    save_file(weights, source / "model.safetensors")


def one_tensor_in_half(source: Path):
    weights = load_file(source / "model.safetensors")
    weights["lm_head.weight"] = weights["lm_head.weight"].half()
    save_file(weights, source / "model.safetensors")


def another_dtype(source: Path):
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "torch_dtype": "float16"}))


def trainers_state(source: Path):
    weights = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    torch.save({"state_dict": weights, "step": 3}, source / "pytorch_model.bin")


def code_in_a_pickle(source: Path):
    weights = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    torch.save({**weights, "hook": Path("x")}, source / "pytorch_model.bin")


def broken_card(source: Path):
    (source / "README.md").write_text("---\nlicense: [\n---\n")


SPOILED = {
    lose_a_shard: "lacks 1 of the 3 shards that model.safetensors.index.json names: ['model-00002-of-00003.safet",
    lose_the_index: "'model-00002-of-00003.safetensors', 'model-00003-of-00003.safetensors'] and no index that names",
    truncate: "model.safetensors` cannot be read (",
    truncate_shard: "model-00003-of-00003.safetensors` cannot be read (",
    truncate_pytorch: "pytorch_model-00002-of-00003.bin` cannot be read (",
    empty_file: "model.safetensors` cannot be read (",
    pointer_of_lfs: "model.safetensors` cannot be read (",
    add_tensor: "lacks 0 of 81 tensors: []; 1 of its tensors are unknown: ['model.extra.weight']",
    drop_tensor: "lacks 1 of 81 tensors: ['lm_head.weight']",
    twice: "download the checkpoint again",
    another_index: "disagree on 2 entries: [('lm_head.weight', 'model-0000",
    another_total: "says 5 bytes and the tensors have",
    broken_index: "model.safetensors.index.json` is no JSON file (Expecting value",
    broken_config: "config.json` holds list and a JSON object was expected",
    thirds_that_are_none: "3 tensors do not fit config.json: model.lbm.encoder_attn.in_proj_weight gives",
    one_tensor_in_half: "'torch.float16': '1 tensors, such as lm_head.weight'",
    another_dtype: "have the dtypes {'torch.float32': '81 tensors, such as",
    trainers_state: "holds no dict of tensors: give the weights alone, without a trainer's state",
    code_in_a_pickle: "pytorch_model.bin` cannot be read (Weights only load failed",
    broken_card: "README.md` cannot be read (",
}


def assert_one_line(capsys, words: list[str], message: str):
    capsys.readouterr()
    assert cli.main(["convert", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("soundwave-hf convert: ") and error.count("\n") == 1
    assert message in error, error


@pytest.mark.parametrize("spoil", SPOILED, ids=lambda spoil: spoil.__name__)
def test_a_spoiled_source_is_refused_in_one_line(source, tmp_path, capsys, spoil):
    spoil(source)
    before = sorted(tmp_path.iterdir())
    assert_one_line(capsys, [str(source), str(tmp_path / "native")], SPOILED[spoil])
    assert sorted(tmp_path.iterdir()) == before


def test_a_used_destination_is_refused_in_one_line(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert_one_line(capsys, [str(PUBLISHED), str(tmp_path)], "exists and is not an empty folder")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_second_conversion_to_the_same_place_is_refused_in_one_line(tmp_path, capsys, monkeypatch, uninterrupted):
    def second(*words):
        assert cli.main(["convert", str(PUBLISHED), str(tmp_path / "native")]) == 2
        return write(*words)

    write = convert.write_description
    monkeypatch.setattr(convert, "write_description", second)
    convert_published(PUBLISHED, tmp_path / "native", max_shard_size=SHARD)
    printed = capsys.readouterr().err.strip()
    assert "Another process is writing" in printed and len(printed.splitlines()) == 1
    assert contents(tmp_path / "native") == uninterrupted
    assert list(tmp_path.iterdir()) == [tmp_path / "native"]


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(tmp_path, capsys, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=20_000_000)
    monkeypatch.setattr(published_files.shutil, "disk_usage", lambda folder: usage)
    # 656,128 bytes of weights and 50 MB for the other files
    assert_one_line(
        capsys, [str(PUBLISHED), str(tmp_path / "native")], "0.051 GB are needed and 0.020 GB of the disk are free"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_neither_a_folder_nor_of_the_hub_is_refused(tmp_path, capsys):
    words = ["no/such/folder", str(tmp_path / "native")]
    assert_one_line(capsys, words, "`no/such/folder` is neither a folder nor a hub name such as `Freedom")


def test_a_folder_has_no_revision(tmp_path, capsys):
    words = [str(PUBLISHED), str(tmp_path / "native"), "--revision", "v1"]
    assert_one_line(capsys, words, "is a folder and has no revision `v1`")


# ---- from the hub ----


@pytest.fixture
def hub(source, tmp_path):
    write_as(source, save_file, "model.safetensors", 3)
    (source / "picture.png").write_bytes(b"not needed")
    torch.save({}, source / "pytorch_model.bin")  # the same weights in another format
    # A hub has no subfolder of an encoder: its config is at the hub as well.
    shutil.move(source / "whisper_config", tmp_path / "whisper")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "audio_tower": "openai/whisper"}))
    repositories = {"someone/soundwave": source, "openai/whisper": tmp_path / "whisper"}
    with local_hub(tmp_path / "cache", tmp_path / "home", repositories) as server:
        yield server


def cached(hub_cache: Path, name: str) -> list[Path]:
    return list(hub_cache.glob(f"models--someone--soundwave/snapshots/*/{name}"))


def test_a_hub_name_is_downloaded_without_what_is_not_needed_and_converted(hub, tmp_path, uninterrupted):
    convert_published("someone/soundwave", tmp_path / "native", max_shard_size=SHARD)
    found = contents(tmp_path / "native")
    assert {name: found[name] for name in SHARDS} == {name: uninterrupted[name] for name in SHARDS}
    assert not cached(tmp_path / "cache", "picture.png") and not cached(tmp_path / "cache", "*.bin")
    data = metadata_load(tmp_path / "native" / "README.md")
    assert data["base_model"] == "someone/soundwave"


def test_a_hub_that_cannot_be_reached_is_refused_in_one_line(hub, tmp_path, capsys):
    hub.shutdown()
    hub.server_close()
    words = ["someone/soundwave", str(tmp_path / "native")]
    assert_one_line(capsys, words, "There is no folder `someone/soundwave`, and no such repository could be read from")
    assert not (tmp_path / "native").exists()


def test_without_the_hub_the_copy_in_the_cache_is_used_and_said_so(hub, tmp_path, capsys):
    convert_published("someone/soundwave", tmp_path / "native", max_shard_size=SHARD)
    hub.shutdown()
    hub.server_close()
    convert_published("someone/soundwave", tmp_path / "again", max_shard_size=SHARD)
    assert "The copy in the cache is used." in capsys.readouterr().out
    assert contents(tmp_path / "again") == contents(tmp_path / "native")


def test_a_repository_that_is_not_there_is_refused_in_one_line(hub, tmp_path, capsys):
    words = ["someone/nothing", str(tmp_path / "native")]
    assert_one_line(capsys, words, "no such repository could be read from the hub (")


def test_the_download_and_the_conversion_must_fit_on_the_disk(hub, tmp_path, capsys, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)  # 0.7 MB are downloaded and as much is written
    monkeypatch.setattr(published_files.shutil, "disk_usage", lambda folder: usage)
    assert_one_line(capsys, ["someone/soundwave", str(tmp_path / "native")], "0.002 GB are needed and 0.001 GB of")
    assert not cached(tmp_path / "cache", "*.safetensors")


def digest_note(source: Path, digest: str):
    note = source / ".cache" / "huggingface" / "download" / "model.safetensors.metadata"
    note.parent.mkdir(parents=True)
    note.write_text(f"{40 * '0'}\n{digest}\n{(source / 'model.safetensors').stat().st_mtime}\n")


def test_a_file_that_differs_from_the_hubs_checksum_is_refused(source, tmp_path, capsys):
    digest_note(source, 64 * "0")
    assert_one_line(
        capsys, [str(source), str(tmp_path / "native")], f"and the hub's file has {64 * '0'}: it is damaged. Delete"
    )


def test_a_file_that_has_the_hubs_checksum_is_counted(source, tmp_path, capsys):
    digest_note(source, published_files.sha256(source / "model.safetensors"))
    convert_published(source, tmp_path / "native")
    assert "of 1 files; the hub's sha256 is known for 1 of them, and equal." in capsys.readouterr().out


def test_the_blob_of_the_hubs_cache_names_its_checksum(tmp_path):
    blob = tmp_path / "blobs" / (digest := published_files.hashlib.sha256(b"weights").hexdigest())
    blob.parent.mkdir()
    blob.write_bytes(b"weights")
    (tmp_path / "model.safetensors").symlink_to(blob)
    assert published_files.known_sha256(tmp_path / "model.safetensors") == digest
    assert published_files.check_sha256([tmp_path / "model.safetensors"]) == 1
    blob.write_bytes(b"Weights")
    with pytest.raises(ValueError, match=f"the hub's file has {digest}: it is damaged. Delete `{blob}`"):
        published_files.check_sha256([tmp_path / "model.safetensors"])


# ---- docs/convert.md ----

GUIDE = (Path(__file__).parents[1] / "docs" / "convert.md").read_text(encoding="utf-8")


def test_the_guide_runs_from_the_command_to_the_model(hub, source, tmp_path, monkeypatch):
    words = tuple(f"x{number}" for number in range(62)) + ("<pad94>",)  # ids 32..94; the audio token comes next
    tiny_tokenizer(words).save_pretrained(source)
    hub.repositories["FreedomIntelligence/Soundwave"] = source
    (command,) = re.findall(r"```bash\nsoundwave-hf (.*)\n```", GUIDE)
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    assert cli.main(command.split()) == 0
    exec(code, known := {})
    assert known["model"].config.compat == "published" and known["model"].dtype == torch.float32
    assert known["processor"].audio_token == "<audio_patch>"
