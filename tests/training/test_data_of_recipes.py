"""Recipes over data of any form, and rows of text alone among processes that share gradients."""

import json
import os
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset
from torch.nn.parallel import DistributedDataParallel

from soundwave_hf.modeling.modeling_soundwave import SoundwaveForConditionalGeneration
from soundwave_hf.training.collator import SoundwaveDataCollator
from soundwave_hf.training.recipe import read_recipe
from soundwave_hf.training.run import read_rows
from tests.training.workspace import Workspace, train


RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def table(workspace, tmp_path) -> Path:
    """A CSV of eight good clips under other names, and one that is missing."""
    rows = read_rows(workspace.data / "train.jsonl", {}).select(range(8))
    lines = [f"{row['audio']},{json.dumps(row['text'])}" for row in rows]
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(["path,sentence", *lines, "gone.wav,Lost"]))
    return path


THEIRS = {"path": "audio", "sentence": "text"}


def test_a_recipe_trains_on_a_csv_and_lists_the_clips_that_it_leaves_out(workspace, table, tmp_path, capsys):
    recipe = workspace.recipe("align", tmp_path / "out", data=str(table), columns=THEIRS, check_audio="skip")
    trained = train(recipe | {"max_steps": 1})
    (left_out,) = map(json.loads, (trained.folder / "skipped_clips.jsonl").read_text().splitlines())
    assert (left_out["row"], left_out["kind"]) == (8, "missing")
    printed = capsys.readouterr().out
    assert "1 bad clips in 9 rows: 1 missing." in printed and "1 rows are left out." in printed
    card = (trained.folder / "data_card.md").read_text()
    assert "`rows.csv`, sha256" in card and "| - | 8 | 0.00 |" in card


@pytest.mark.parametrize("check_audio", [True, None])
def test_a_clip_that_is_missing_is_refused_before_the_first_step(workspace, table, tmp_path, check_audio):
    changes = {"data": str(table), "columns": THEIRS, "check_audio": check_audio}
    with pytest.raises((ValueError, FileNotFoundError), match="gone.wav"):
        train(workspace.recipe("align", tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"check_audio": "perhaps"}, "`check_audio` is 'perhaps'; give true, false or `skip`"),
        ({"check_audio": True, "streaming": True, "max_steps": 1}, "`check_audio` reads all clips first"),
        ({"data": []}, "`data` is an empty list"),
        ({"data": {"path": "a.csv", "sprit": "x"}}, r"A source of `data` has the keys \['sprit'\]"),
        ({"columns": {"text": "sentence"}}, "write `sentence: text`"),
    ],
)
def test_what_data_cannot_be_is_refused_with_the_recipe(workspace, tmp_path, changes, message):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(workspace.recipe("align", tmp_path / "out", **changes)))
    with pytest.raises(ValueError, match=message):
        read_recipe(tmp_path / "recipe.yaml")


def test_a_control_token_in_a_transcript_is_refused_with_file_row_and_value(workspace, tmp_path):
    rows = [{"audio": str(workspace.data / "clips/0.wav"), "text": text} for text in ("Yes.", "No.<|im_end|>")]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(
        ValueError, match=r"line 2 of `.*rows.jsonl` has `text` 'No.<\|im_end\|>', which holds the con"
    ):
        train(workspace.recipe("align", tmp_path / "out", data=str(tmp_path / "rows.jsonl")))


@pytest.mark.slow
def test_a_stream_of_clips_inside_parquet_goes_on_as_if_it_had_not_been_stopped(workspace, tmp_path):
    rows = read_rows(workspace.data / "train.jsonl", {})
    inside = [{"audio": {"path": None, "bytes": Path(r["audio"]).read_bytes()}, "text": r["text"]} for r in rows]
    for part in range(2):
        Dataset.from_list(inside[part::2]).to_parquet(tmp_path / f"part-{part}.parquet")
    changes = {"data": str(tmp_path / "part-*.parquet"), "streaming": True, "max_steps": 4, "save_steps": 1}
    recipe = workspace.recipe("align", tmp_path / "out", **changes, plot_loss=False)
    whole = train(recipe | {"output_dir": str(tmp_path / "whole")})
    with pytest.raises(KeyboardInterrupt):
        train(recipe, stop_after=2)
    assert train(recipe).losses() == pytest.approx(whole.losses(), abs=1e-6)


# ---- fine-tuning ----


def test_the_recipe_for_own_data_needs_the_data_alone_and_leaves_nothing_to_undo():
    written = yaml.safe_load((RECIPES / "finetune.yaml").read_text(encoding="utf-8"))
    assert "data" not in written and not {"ctc_negatives", "repeat", "max_steps", "lora", "model"} & written.keys()
    assert (RECIPES / "finetune.yaml").read_text(encoding="utf-8").startswith("# soundwave-hf train finetune --data")


def test_a_recipe_that_starts_from_adapters_takes_the_backbones_that_they_name(workspace, chain, tmp_path):
    overrides = {
        "start_from": str(chain["shrink"].folder),
        "data": str(workspace.data / "train.jsonl"),
        "output_dir": str(tmp_path / "out"),
    }
    recipe, arguments = read_recipe(RECIPES / "finetune.yaml", overrides)
    assert (recipe.encoder, recipe.llm) == (workspace.encoder, workspace.llm)
    assert recipe.written["encoder"] == workspace.encoder
    written = yaml.safe_load((RECIPES / "finetune.yaml").read_text()) | overrides
    written |= {"max_steps": 2, "disable_tqdm": True, "use_cpu": True, "dataloader_pin_memory": False}
    trained = train(written, path=tmp_path / "mine.yaml")
    assert any("lora_" in name for name in trained.moved())


# ---- two processes, of which one has no clip ----


def share_gradients(rank: int, workspace: Workspace, folder: str):
    """One of two processes: a step of gradients over its row, which is of text alone in the second."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "USE_LIBUV": "0"}
    store = torch.distributed.FileStore(os.path.join(folder, "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = SoundwaveForConditionalGeneration.from_backbones(workspace.encoder, workspace.llm).train()
    # As under gradient checkpointing: nobody looks for parameters that a process did not use.
    shared = DistributedDataParallel(model, find_unused_parameters=False)
    spoken = {"audio": str(workspace.data / "clips/0.wav"), "question": "Who?", "answer": "I."}
    row = spoken if rank == 0 else {"question": "2 + 2?", "answer": "4"}
    for _ in range(2):  # the second pass is where a process waits for those that were not used in the first
        shared(**SoundwaveDataCollator(workspace.processor(), losses=("ce",))([row])).loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad and "ctc_head" not in name}
    torch.save(grads, os.path.join(folder, f"{rank}.pt"))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_a_process_whose_batch_is_of_text_alone_keeps_nobody_waiting(workspace, tmp_path):
    torch.multiprocessing.spawn(share_gradients, (workspace, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert any("shrinking_adapter" in name for name in first)
    for name, grad in first.items():
        assert grad is not None and torch.equal(grad, second[name]), name
        assert torch.isfinite(grad).all()
