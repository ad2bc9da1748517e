"""Runs that read their rows as streams, and batches by audio seconds, by one process and by two."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset, load_dataset

from soundwave_hf.data import sources
from soundwave_hf.data.sources import find_files
from soundwave_hf.data.tiny import SECONDS
from soundwave_hf.modeling.modeling_soundwave import SoundwaveForCTC
from soundwave_hf.processing.processing_soundwave import SoundwaveProcessor
from soundwave_hf.training.arguments import SoundwaveTrainingArguments
from soundwave_hf.training.collator import SoundwaveDataCollator
from soundwave_hf.training.mixture import GivenRows, LengthGroups, Mixture, MixtureStream, StreamBatchSampler
from soundwave_hf.training.run import read_recipe, read_rows, run_recipe
from soundwave_hf.training.trainer import SoundwaveTrainer
from tests.training.workspace import (
    EVERY_AUGMENTATION,
    Trained,
    Workspace,
    everything_in,
    train,
    without_dropout,
    write_manifest,
)


PAPER = {"temperature": 1, "step": 5}
REPOSITORY = Path(__file__).parents[2]


def open_streams(path, by_task: bool) -> tuple[dict, dict]:
    """A stream of each task's rows, and how many it has."""
    opened = sources.open_streams(str(path), by_task)
    return opened.streams, opened.sizes


def in_shards(workspace: Workspace, folder: Path, count: int, name: str = "train.jsonl", shards: int = 2) -> str:
    """The first rows of a manifest, dealt out to several. Returns the pattern that fits them."""
    folder.mkdir()
    rows = [json.loads(line) for line in (workspace.data / name).read_text().splitlines()[:count]]
    rows = [row | {"audio": str(workspace.data / row["audio"])} for row in rows]
    for shard in range(shards):
        write_manifest(folder / f"part-{shard}.jsonl", rows[shard::shards])
    return str(folder / "part-*.jsonl")


@pytest.fixture
def heard(monkeypatch) -> list[list[tuple[str, int]]]:
    """Clip and draw of each row of each batch that a collator of this process makes."""
    batches, collate = [], SoundwaveDataCollator.__call__

    def collated(collator, rows):
        batches.append([(row["audio"], row["row"]) for row in rows])
        return collate(collator, rows)

    monkeypatch.setattr(SoundwaveDataCollator, "__call__", collated)
    return batches


# ---- manifests ----


def test_streams_are_the_rows_of_each_task_and_manifests_their_shards(workspace, tmp_path):
    path = Path(in_shards(workspace, tmp_path / "data", count=12))
    streams, sizes = open_streams(path, by_task=True)
    assert sizes == {"asr": 9, "sound": 3}
    assert [path.name for path in find_files(path)] == ["part-0.jsonl", "part-1.jsonl"]
    # Every fourth row is a sound: all of them are in the first manifest.
    assert {task: stream.num_shards for task, stream in streams.items()} == {"asr": 2, "sound": 1}
    texts = {task: {row["text"] for row in stream} for task, stream in streams.items()}
    rows = read_rows(path, {})
    assert texts["sound"] == {row["text"] for row in rows if row["task"] == "sound"}
    assert texts["asr"] == {row["text"] for row in rows if row["task"] == "asr"}
    (whole,), sizes = (list(each.values()) for each in open_streams(path, by_task=False))
    assert [row["text"] for row in whole] == rows["text"]
    assert sizes == [12]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"audio": "a.wav"}', r"line 2 of .*part-1.jsonl` lacks \['text'\]"),
        ('{"audio": "a.wav", "text": "x", "seconds": 1}', "line 2 of .*part-1.jsonl` has neither `task` nor `source`"),
    ],
)
def test_a_line_that_is_no_row_is_named_before_the_first_step(workspace, tmp_path, line, message):
    path = Path(in_shards(workspace, tmp_path / "data", count=2))
    with open(path.parent / "part-1.jsonl", "a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=message):
        open_streams(path, by_task=True)


def test_a_pattern_that_fits_nothing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no file `.*part-\*.jsonl`"):
        find_files(tmp_path / "part-*.jsonl")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_steps": -1}, "streams have no end: say with `max_steps` how long to train"),
        ({"streaming": "perhaps"}, "`streaming` is 'perhaps'; give true or false"),
        ({"repeat": {"s0": 2}}, "`repeat` is given, and a stream gives each row once: weigh tasks with `mixture`"),
        (
            {"encoder_cache": {}},
            "`encoder_cache` encodes all clips first, and `streaming` does not",
        ),
        ({"train_sampling_strategy": "sequential"}, "is 'sequential', and `streaming` draws the clips itself"),
        ({"streaming": False, "train_sampling_strategy": "sequential", "mixture": PAPER}, "`mixture` draws the clips"),
    ],
)
def test_what_a_stream_cannot_do_is_refused(workspace, tmp_path, changes, message):
    recipe = workspace.recipe("align", tmp_path / "out", streaming=True) | changes
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(ValueError, match=message):
        read_recipe(tmp_path / "recipe.yaml")


def test_a_clip_over_the_limit_is_found_before_the_first_step(workspace, tmp_path):
    recipe = workspace.recipe("align", tmp_path / "out", streaming=True, max_batch_seconds=1.35)
    with pytest.raises(ValueError, match="is 1.35, and 2 of the clips are longer, up to 1.5 s"):
        train(recipe)
    assert not (tmp_path / "out").exists()


# ---- batches of a stream ----


def sampler_of(num_batches: int, max_batch_seconds: float | None = None) -> StreamBatchSampler:
    rows = Dataset.from_dict({"text": [str(i) for i in range(10)], "seconds": [1.0 + i % 3 for i in range(10)]})
    groups = LengthGroups(4, pool=2, max_batch_seconds=max_batch_seconds)
    stream = MixtureStream({"asr": rows.to_iterable_dataset()}, {"asr": 10}, groups, Mixture())
    return StreamBatchSampler(stream, num_batches)


@pytest.mark.parametrize("max_batch_seconds", [None, 6.0])
@pytest.mark.parametrize("stop", [0, 1, 4, 7])
def test_batches_of_a_stream_go_on_after_those_that_were_taken(stop, max_batch_seconds):
    whole = list(sampler_of(9, max_batch_seconds))
    assert len(whole) == len(sampler_of(9)) == 9
    stopped = sampler_of(9, max_batch_seconds)
    read = iter(stopped)
    assert [next(read) for _ in range(stop + 2)] == whole[: stop + 2]  # the loader is two batches ahead
    stopped.take(stop)
    state = json.loads(json.dumps(stopped.state_dict()))
    resumed = sampler_of(9, max_batch_seconds)
    resumed.load_state_dict(state, num_passed=stop)
    assert resumed.state_dict() == state
    assert list(resumed) == [[]] * stop + whole[stop:]


# ---- one process ----


def recipe_of(workspace: Workspace, chain, stage: str, folder: Path, **changes) -> dict:
    """Six steps of two batches, over two epochs of twelve clips, with all that draws at random."""
    name = "instruct.jsonl" if stage == "instruct" else "train.jsonl"
    start = {"shrink": "align", "instruct": "shrink"}.get(stage)
    values = {
        "data": in_shards(workspace, folder / "data", count=12, name=name),
        "streaming": True,
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "save_steps": 1,
        "plot_loss": False,
        "augment": EVERY_AUGMENTATION,
        "mixture": PAPER,
    }
    start = {"start_from": str(chain[start].folder)} if start else {}
    return workspace.recipe(stage, folder / "out", **values | start | changes)


def assert_same_run(found: Trained, expected: Trained):
    assert found.losses() == pytest.approx(expected.losses(), abs=1e-6)
    assert [e["share/sound"] for e in found.logs] == [e["share/sound"] for e in expected.logs]
    for name, value in everything_in(expected.model).items():
        torch.testing.assert_close(everything_in(found.model)[name], value, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "changes"),
    [("align", {}), ("align", {"max_batch_seconds": 2.0}), ("shrink", {}), ("instruct", {})],
    ids=["align", "align by seconds", "shrink", "instruct"],
)
def test_a_run_from_streams_goes_on_as_if_it_had_not_been_stopped(workspace, chain, heard, tmp_path, stage, changes):
    recipe = recipe_of(workspace, chain, stage, tmp_path, **changes)
    whole = train(recipe | {"output_dir": str(tmp_path / "whole")})
    whole_heard = heard[:]
    assert len(whole_heard) == 12
    assert [entry["step"] for entry in whole.logs] == list(range(1, 7))
    assert len({round(loss, 4) for loss in whole.losses()}) == 6
    heard.clear()
    with pytest.raises(KeyboardInterrupt):
        train(recipe, stop_after=4)
    before, _ = heard[:8], heard.clear()
    resumed = train(recipe)
    assert resumed.trainer.state.global_step == 6
    assert resumed.moved()
    assert before + heard == whole_heard  # no clip but those of the two last steps was read again
    assert_same_run(resumed, whole)
    heard.clear()
    assert run_recipe(Path(recipe["output_dir"]).with_suffix(".yaml")) == recipe["output_dir"]  # finished already
    assert not heard


@pytest.mark.slow
def test_a_run_from_streams_that_is_killed_goes_on_as_if_it_had_not_been(workspace, chain, tmp_path):
    recipe = recipe_of(workspace, chain, "align", tmp_path)
    whole = train(recipe | {"output_dir": str(tmp_path / "whole")})
    (tmp_path / "out.yaml").write_text(yaml.safe_dump(recipe))
    runs = json.dumps([[str(tmp_path / "out.yaml"), "killed", 3]])
    command = [sys.executable, "-m", "tests.training.stopped_runs", runs]
    done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True)
    ((code, printed),) = json.loads(done.stdout.splitlines()[-1])
    assert code == -9, printed
    assert_same_run(train(recipe), whole)


def test_any_number_of_workers_makes_the_same_batches(workspace, chain, tmp_path):
    recipe = recipe_of(workspace, chain, "align", tmp_path, max_batch_seconds=2.0)
    alone = train(recipe | {"output_dir": str(tmp_path / "alone")})
    recipe["dataloader_num_workers"] = 2
    with pytest.raises(KeyboardInterrupt):
        train(recipe, stop_after=3)
    assert_same_run(train(recipe), alone)


def test_the_shares_of_a_streamed_mixture_are_logged(workspace, chain, tmp_path):
    recipe = recipe_of(workspace, chain, "align", tmp_path, max_steps=9, augment={})
    logs = train(recipe | {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}).logs
    epochs = [[entry["share/sound"] for entry in logs[start : start + 3]] for start in (0, 3, 6)]
    # As of rows in memory: 3 of 12 sounds, then 12 x 0.454 = 5.45 and 12 x 0.475 = 5.70.
    assert [sum(epoch) / 3 * 12 for epoch in epochs] == pytest.approx([3, 5, 6])
    assert all(entry["share/asr"] + entry["share/sound"] == pytest.approx(1) for entry in logs)


def test_without_a_mixture_each_row_comes_once_an_epoch_and_the_card_counts_them(workspace, chain, heard, tmp_path):
    recipe = recipe_of(workspace, chain, "align", tmp_path, mixture={})
    trained = train(recipe)
    clips = [audio for batch in heard for audio, _ in batch]
    assert len(set(clips[:12])) == len(set(clips[12:])) == 12
    assert len({draw for batch in heard for _, draw in batch}) == 24  # repeats are augmented apart
    assert not any(name.startswith("share/") for entry in trained.logs for name in entry)
    card = (trained.folder / "data_card.md").read_text()
    assert "`part-0.jsonl`, sha256" in card and "`part-1.jsonl`, sha256" in card
    assert "| s0 | 6 | 0.00 |" in card and "| s1 | 6 | 0.00 |" in card


def test_candidates_of_the_ctc_are_those_of_all_transcripts(workspace, chain, tmp_path):
    recipe = recipe_of(workspace, chain, "align", tmp_path, max_steps=1, ctc_negatives=4)
    collator = train(recipe).trainer.data_collator
    other = SoundwaveDataCollator(workspace.processor(), workspace.data, ("ctc",))
    other.set_negatives(read_rows(workspace.data / "train.jsonl", {})["text"], 4)
    assert torch.equal(collator.spoken_ids, other.spoken_ids)


# ---- the trainer with a stream of one's own ----


@pytest.fixture
def trainer_of(workspace, chain, tmp_path):
    """A trainer of stage I over a stream with these options."""

    def make(rank: int = 0, world_size: int = 1, batch_size: int = 4, data_seed=None, **options) -> SoundwaveTrainer:
        streams, sizes = open_streams(workspace.data / "train.jsonl", by_task=True)
        stream = MixtureStream(streams, sizes, LengthGroups(batch_size), Mixture(), 0, rank, world_size)
        arguments = SoundwaveTrainingArguments(
            str(tmp_path), max_steps=1, per_device_train_batch_size=4, data_seed=data_seed
        )
        processor = SoundwaveProcessor.from_backbones(workspace.encoder, workspace.llm)
        collator = SoundwaveDataCollator(processor, workspace.data, ("ctc",))
        model = chain["align"].model
        return SoundwaveTrainer(model=model, args=arguments, train_dataset=stream, data_collator=collator, **options)

    return make


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 8}, "batches are of 8 clips and `per_device_train_batch_size` is 4: give the same number"),
        (
            {"rank": 1, "world_size": 2},
            "part 1 of 2 in process 0 of 1: give it the whole streams, `rank=arguments.process",
        ),
        ({"mixture": Mixture()}, "A `MixtureStream` has its own mixture and groups"),
        ({"max_batch_seconds": 9.0}, "A `MixtureStream` has its own mixture and groups"),
        ({"data_seed": 3}, "`data_seed` is 3, and the stream draws by its own `seed`, 0: give it only to the stream"),
    ],
)
def test_a_stream_that_says_other_than_the_trainer_is_refused(trainer_of, options, message):
    with pytest.raises(ValueError, match=message):
        trainer_of(**options).get_train_dataloader()


def test_a_loader_reads_what_the_sampler_gives(trainer_of):
    loader = trainer_of().get_train_dataloader()
    assert isinstance(loader.dataset, GivenRows)
    (batch,) = loader
    assert batch["input_features"].shape[0] == len(batch["task_ids"]) == 4


def test_clips_may_lie_inside_the_shards_of_a_data_set(workspace, tmp_path):
    """Parquet files as on the Hub, read as a stream, beside the same clips in files."""
    rows = read_rows(workspace.data / "train.jsonl", {}).select_columns(["audio", "text", "seconds"]).to_list()
    for shard in range(2):
        part = rows[shard::2]
        stored = [
            {**row, "audio": {"path": None, "bytes": (workspace.data / row["audio"]).read_bytes()}} for row in part
        ]
        Dataset.from_list(stored).to_parquet(tmp_path / f"part-{shard}.parquet")
        write_manifest(tmp_path / f"part-{shard}.jsonl", part)
    files = str(tmp_path / "part-*.parquet")
    inside = load_dataset("parquet", data_files=files, split="train", streaming=True, cache_dir=tmp_path / "cache")
    beside, _ = open_streams(tmp_path / "part-*.jsonl", by_task=False)
    losses = []
    for stream in (inside, *beside.values()):
        stream = MixtureStream({"asr": stream}, {"asr": 12}, LengthGroups(4, pool=3), Mixture())
        torch.manual_seed(0)
        model = SoundwaveForCTC.from_backbones(workspace.encoder, workspace.llm)
        arguments = SoundwaveTrainingArguments(
            str(tmp_path / "out"),
            max_steps=3,
            per_device_train_batch_size=4,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            plot_loss=False,
        )
        collator = SoundwaveDataCollator(workspace.processor(), workspace.data, ("ctc",))
        trainer = SoundwaveTrainer(model=model, args=arguments, train_dataset=stream, data_collator=collator)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert inside.num_shards == 2
    assert len(set(losses[0])) == 3
    assert losses[0] == losses[1]


def test_a_checkpoint_without_the_streams_is_refused(workspace, chain, tmp_path):
    recipe = recipe_of(workspace, chain, "align", tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, stop_after=1)
    (tmp_path / "out" / "checkpoint-1" / "stream_state_0.json").unlink()
    with pytest.raises(FileNotFoundError, match="stream_state_0.json`: the run did not read streams, or had fewer"):
        train(recipe)


# ---- two processes ----


SGD = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant", "augment": {}, "mixture": {}}
FOUR_AT_ONCE = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
BY_SECONDS = {"max_batch_seconds": 3.0, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def cases(workspace, chain, folder) -> dict[str, dict]:
    """Recipes for two processes. Two steps of four clips each are two epochs of eight."""

    def case(name: str, stage: str = "align", count: int = 12, **changes) -> dict:
        (folder / name).mkdir()
        recipe = recipe_of(workspace, chain, stage, folder / name, ddp_backend="gloo", **changes)
        rows = "instruct.jsonl" if stage == "instruct" else "train.jsonl"
        return recipe | {"data": in_shards(workspace, folder / name / "some", count, rows)}

    whole_epochs = {"count": 8, "max_steps": 2, "save_strategy": "no"}
    cases = {
        stage: case(stage, stage, **whole_epochs) | SGD | FOUR_AT_ONCE for stage in ("align", "shrink", "instruct")
    }
    for streaming in (True, False):
        name = "stream" if streaming else "memory"
        cases[f"{name} by seconds"] = case(f"{name}_seconds") | BY_SECONDS | {"streaming": streaming}
        stopped = case(f"{name}_stopped") | BY_SECONDS | {"streaming": streaming}
        cases[f"{name} by seconds, stopped"] = stopped | {"data": cases[f"{name} by seconds"]["data"], "stop_after": 3}
    return cases


@pytest.fixture(scope="module")
def two_processes(cases, folder):
    """What both processes heard, and rank 0 saw, of each case."""
    (folder / "cases.json").write_text(json.dumps(cases))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0"]
    command += ["--standalone", "-m", "tests.training.distributed", str(folder / "cases.json"), str(folder)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-6000:]
    return {name: torch.load(folder / f"{name}.pt", weights_only=True) for name in cases}


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["align", "shrink", "instruct"])
def test_two_processes_read_their_own_shards_and_train_what_one_does_in_memory(cases, two_processes, tmp_path, stage):
    result = two_processes[stage]
    folder = Path(cases[stage]["data"]).parent
    shards = [{row["audio"] for row in read_rows(folder / f"part-{shard}.jsonl", {})} for shard in range(2)]
    for epoch in range(2):
        parts = [[clip for batch in rank[epoch : epoch + 1] for clip in batch] for rank in result["heard"]]
        assert [len(part) for part in parts] == [4, 4]
        assert sorted(map(sorted, parts)) == sorted(map(sorted, shards))
    alone = cases[stage] | {"streaming": False, "ddp_backend": None, "output_dir": str(tmp_path / "out")}
    alone |= {"per_device_train_batch_size": 8}
    expected = train({key: value for key, value in alone.items() if value is not None}, change=without_dropout)
    assert result["processes"] == 2
    for name in ("loss", "grad_norm", "positions_per_second", "blank_share"):
        found = [entry[name] for entry in result["logs"]]
        assert found == pytest.approx([entry[name] for entry in expected.logs], rel=1e-5), name
    for name, parameter in expected.model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(result["weights"][name], parameter.detach(), rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("data", ["stream", "memory"])
def test_two_processes_with_batches_by_seconds_go_on_as_if_they_had_not_been_stopped(two_processes, data):
    whole, stopped = two_processes[f"{data} by seconds"], two_processes[f"{data} by seconds, stopped"]
    seconds_of = dict(zip((f"{index}.wav" for index in range(12)), SECONDS, strict=True))
    for rank in whole["heard"]:
        assert all(
            len(batch) * max(seconds_of[Path(clip).name] for clip in batch) <= 3.0 and len(batch) <= 4
            for batch in rank
        )
    # The three steps after the stop; a process makes one batch more than it trains on.
    assert [rank[3:6] for rank in whole["heard"]] == [rank[:3] for rank in stopped["heard"]]
    for name in ("loss", "share/sound"):
        found, expected = ([entry[name] for entry in run["logs"]] for run in (stopped, whole))
        assert found == pytest.approx(expected, abs=1e-6)
    for name, weight in whole["weights"].items():
        torch.testing.assert_close(stopped["weights"][name], weight, rtol=0, atol=1e-6, msg=name)


def test_two_processes_with_batches_by_seconds_train_what_one_does(cases, two_processes, tmp_path):
    recipe = cases["memory by seconds"] | {"gradient_accumulation_steps": 2, "output_dir": str(tmp_path / "out")}
    del recipe["ddp_backend"]
    expected = train(recipe, change=without_dropout)
    result = two_processes["memory by seconds"]
    for name in ("loss", "grad_norm", "share/sound"):
        found = [entry[name] for entry in result["logs"]]
        assert found == pytest.approx([entry[name] for entry in expected.logs], rel=1e-5), name
