"""Two processes on CPU (gloo) train what one does: data parallel, and with sharded parameters (FSDP2)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from safetensors.torch import load_file

from soundwave_hf.training.run import read_rows
from tests.training.workspace import SMALL_LORA, first_rows, train, without_dropout, write_manifest


pytestmark = pytest.mark.slow


REPOSITORY = Path(__file__).parents[2]
CONFIGS = REPOSITORY / "recipes" / "accelerate"
STAGES = ("align", "shrink", "instruct")
NO_DROPOUT = {**SMALL_LORA, "lora_dropout": 0.0}
# Batch and accumulation of one process; with two, both hold half of the eight clips of a step.
SHARES = {"ddp": {}, "ddp-accumulated": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}}
SHARES["fsdp"] = {"fsdp": "full_shard", "fsdp_config": {"version": 2, "reshard_after_forward": True}}


def recipe_of(workspace, chain, stage: str, folder: Path, **changes) -> dict:
    """Two steps of eight clips in the manifest's order, by SGD, whose step is the gradient."""
    start = {"shrink": "align", "instruct": "shrink"}.get(stage)
    return workspace.recipe(
        stage,
        folder,
        repeat={"s0": 2, "s1": 2},
        max_steps=2,
        optim="sgd",
        learning_rate=0.1,
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        save_strategy="no",
        **({"start_from": str(chain[start].folder)} if start else {}),
        **({"lora": NO_DROPOUT} if stage == "shrink" else {}),
        **{"per_device_train_batch_size": 4, **changes},
    )


def launch(config: str, *words: str, **environment: str):
    """`accelerate launch` of a module by one of the repository's configs, as two processes on CPU."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{config}.yaml")]
    command += ["--num_processes", "2", "--main_process_port", "0", "-m", *words]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", **environment}
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=900, env=environment)
    assert done.returncode == 0, done.stderr


def launch_cases(config: str, cases: dict[str, dict], folder: Path) -> dict[str, dict]:
    """What rank 0 of two saw of each case, all of them in one launch: to import the libraries takes the longest."""
    (folder / "cases.json").write_text(json.dumps(cases))
    launch(config, "tests.training.distributed", str(folder / "cases.json"), str(folder))
    return {name: torch.load(folder / f"{name}.pt", weights_only=True) for name in cases}


@pytest.fixture(scope="module")
def two_processes(workspace, chain, tmp_path_factory):
    """What rank 0 of two saw of each stage and share of the work, launched by the repository's config for DDP."""
    folder = tmp_path_factory.mktemp("distributed")
    cases = {
        f"{stage}-{share}": recipe_of(
            workspace, chain, stage, folder / f"{stage}-{share}", ddp_backend="gloo", **changes
        )
        for stage in STAGES
        for share, changes in SHARES.items()
    }
    return launch_cases("ddp", cases, folder)


@pytest.fixture(scope="module")
def one_process(workspace, chain, tmp_path_factory):
    """The same steps by one process: eight clips at once, and one by one."""
    folder = tmp_path_factory.mktemp("alone")
    runs = {}
    for stage in STAGES:
        for share, batch, accumulated in (("8x1", 8, 1), ("1x8", 1, 8)):
            recipe = recipe_of(
                workspace,
                chain,
                stage,
                folder / f"{stage}-{share}",
                per_device_train_batch_size=batch,
                gradient_accumulation_steps=accumulated,
            )
            trained = train(recipe, change=without_dropout)
            runs[stage, share] = {
                "logs": trained.logs,
                "weights": {n: p.detach() for n, p in trained.model.named_parameters() if p.requires_grad},
                "moved": trained.moved(),
            }
    return runs


def assert_same_training(result: dict, expected: dict):
    """Losses, what is logged beside them, and every trained weight."""
    for ours, theirs in zip(result["logs"], expected["logs"], strict=True):
        names = {"loss", "ce_loss", "ctc_loss", "grad_norm", "blank_share", "positions_per_second"} & theirs.keys()
        assert {name: ours[name] for name in names} == pytest.approx({name: theirs[name] for name in names}, rel=1e-5)
    assert result["weights"].keys() == expected["weights"].keys()
    for name, weight in result["weights"].items():
        torch.testing.assert_close(weight, expected["weights"][name], rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("stage", STAGES)
def test_one_by_one_is_eight_at_once(one_process, stage):
    assert one_process[stage, "8x1"]["moved"]
    assert_same_training(one_process[stage, "1x8"], one_process[stage, "8x1"])


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_are_one(one_process, two_processes, stage, share):
    result = two_processes[f"{stage}-{share}"]
    assert result["processes"] == 2
    assert any("FSDP" in base for base in result["wrapper"]) == (share == "fsdp")
    assert ("DistributedDataParallel" in result["wrapper"]) == (share != "fsdp")
    assert_same_training(result, one_process[stage, "8x1"])


# ---- processes that have other rows ----


@pytest.fixture(scope="module")
def uneven(workspace, tmp_path_factory):
    """One process and two with batches of a clip and a question of text alone, so that the second has no clip. The
    evaluation is also of a stream whose shards the two cannot share evenly. By case: logs and evaluations.
    """
    folder = tmp_path_factory.mktemp("uneven")
    clips = [json.loads(line) for line in (workspace.data / "train.jsonl").read_text().splitlines()]
    asked = {"question": "2 + 2?", "answer": "4"}
    mixed = [row for clip in clips[:6] for row in ({**clip, "audio": str(workspace.data / clip["audio"])}, asked)]
    common = {"data": str(write_manifest(folder / "mixed.jsonl", mixed)), "train_sampling_strategy": "sequential"}
    common |= {"eval_data": common["data"], "eval_steps": 1, "save_steps": 1, "eval_samples": 4}
    common |= {"max_steps": 2, "logging_steps": 2, "optim": "sgd", "lora": NO_DROPOUT}
    recipes = {
        batch: workspace.recipe(
            "shrink",
            folder / str(batch),
            **common,
            per_device_train_batch_size=batch,
            per_device_eval_batch_size=batch,
        )
        for batch in (1, 2)
    }
    alone = train(recipes[2], change=without_dropout)
    expected = [entry for entry in alone.trainer.state.log_history if "eval_loss" in entry]
    spoken = {"data": first_rows(workspace, 12, folder / "spoken.jsonl"), "num_shards": 3}
    expected.append(alone.trainer.evaluate(read_rows(Path(spoken["data"]), {})))
    case = recipes[1] | {"evaluate_stream": spoken, "ddp_backend": "gloo"}
    return {
        "one": {"logs": alone.logs, "evaluated": expected},
        "two": launch_cases("ddp", {"two": case}, folder)["two"],
    }


def losses_of(entries: list[dict]) -> list[dict]:
    return [{name: value for name, value in entry.items() if name.endswith("loss")} for entry in entries]


def test_a_process_without_clips_logs_what_one_process_does(uneven):
    found, expected = losses_of(uneven["two"]["logs"]), losses_of(uneven["one"]["logs"])
    assert [entry.keys() for entry in expected] == [{"loss", "ce_loss", "ctc_loss"}]
    assert found == [pytest.approx(entry, rel=1e-5) for entry in expected]
    (two,), (one,) = uneven["two"]["logs"], uneven["one"]["logs"]
    names = ("blank_share", "positions_per_second", "targets_per_frame", "ctc_skipped")
    assert [two[name] for name in names] == pytest.approx([one[name] for name in names], rel=1e-5)


def test_a_process_without_clips_evaluates_what_one_process_does(uneven):
    found, expected = losses_of(uneven["two"]["evaluated"][:2]), losses_of(uneven["one"]["evaluated"][:2])
    assert [entry.keys() for entry in expected] == [{"eval_loss", "eval_ce_loss", "eval_ctc_loss"}] * 2
    assert found == [pytest.approx(entry, rel=1e-5) for entry in expected]


def test_two_processes_evaluate_a_stream_as_one_evaluates_it_in_memory(uneven):
    *_, found = losses_of(uneven["two"]["evaluated"])
    *_, expected = losses_of(uneven["one"]["evaluated"])
    assert len(expected) == 3 and found == pytest.approx(expected, rel=1e-5)


# ---- the configs of `accelerate launch` ----


@pytest.fixture(scope="module")
def fsdp2(workspace, chain, tmp_path_factory):
    """What rank 0 of two saw, launched by the repository's config for sharded parameters."""
    folder = tmp_path_factory.mktemp("fsdp2")
    cases = {
        stage: recipe_of(workspace, chain, stage, folder / stage, ddp_backend="gloo") for stage in ("align", "shrink")
    }
    return {stage: found | {"folder": folder / stage} for stage, found in launch_cases("fsdp2", cases, folder).items()}


@pytest.mark.parametrize("stage", ["align", "shrink"])
def test_a_launch_by_the_config_for_fsdp2_trains_what_one_process_does(one_process, fsdp2, stage):
    result = fsdp2[stage]
    assert result["processes"] == 2
    assert any("FSDP" in base for base in result["wrapper"])
    assert_same_training(result, one_process[stage, "8x1"])


@pytest.mark.parametrize("stage", ["align", "shrink"])
def test_fsdp2_shares_out_all_but_the_encoder(fsdp2, stage):
    sharded = fsdp2[stage]["sharded"]
    assert not any("audio_tower" in name for name in sharded)
    assert fsdp2[stage]["weights"].keys() <= set(sharded)
    if stage == "shrink":
        assert any("language_model.layers" in name and "base_layer" in name for name in sharded)


def test_fsdp2_saves_whole_weights(fsdp2, one_process):
    saved = load_file(fsdp2["shrink"]["folder"] / "adapter_model.safetensors")
    trained = {
        name.replace(".default", "").replace(".modules_to_save", ""): weight
        for name, weight in one_process["shrink", "8x1"]["weights"].items()
    }
    assert saved.keys() == trained.keys()
    for name, weight in saved.items():
        torch.testing.assert_close(weight, trained[name], rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.slow
def test_the_command_line_is_launched_on_the_tiny_recipe(tmp_path):
    recipe = str(REPOSITORY / "recipes" / "tiny.yaml")
    changes = ["--max_steps", "2", "--use_cpu", "true", "--ddp_backend", "gloo", "--disable_tqdm", "true"]
    launch("ddp", "soundwave_hf.cli", "train", recipe, *changes, SOUNDWAVE_HOME=str(tmp_path))
    for stage in ("1_align", "2_shrink", "3_instruct"):
        state = json.loads((tmp_path / "runs" / "tiny" / stage / "trainer_state.json").read_text())
        assert state["global_step"] == 2


def environment_of(config: str) -> dict[str, str]:
    """What a launch by a config tells the processes."""
    arguments = launch_command_parser().parse_args(["--config_file", str(CONFIGS / f"{config}.yaml"), "train.py"])
    arguments, _, _ = _validate_launch_command(arguments)
    if arguments.use_deepspeed:
        arguments.deepspeed_fields_from_accelerate_config = ""  # which `accelerate launch` sets
        return prepare_deepspeed_cmd_env(arguments)[1]
    return prepare_multi_gpu_env(arguments)


@pytest.mark.parametrize(
    ("config", "kind", "told"),
    [
        ("ddp", "MULTI_GPU", {}),
        (
            "fsdp2",
            "FSDP",
            {
                "ACCELERATE_USE_FSDP": "true",
                "FSDP_VERSION": "2",
                "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
                "FSDP_RESHARD_AFTER_FORWARD": "true",
                "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
                "FSDP_IGNORED_MODULES": r"(.*\.)?audio_tower",
                "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
            },
        ),
        (
            "zero3",
            "DEEPSPEED",
            {
                "ACCELERATE_USE_DEEPSPEED": "true",
                "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
                "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false",
                "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true",
                "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "auto",
                "ACCELERATE_GRADIENT_CLIPPING": "auto",
            },
        ),
    ],
)
def test_accelerate_reads_a_config(config, kind, told):
    read = load_config_from_file(str(CONFIGS / f"{config}.yaml"))
    assert (read.distributed_type.value, read.num_processes, read.mixed_precision) == (kind, 8, "no")
    environment = environment_of(config)
    assert {name: environment.get(name) for name in told} == told
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no"  # the recipe says it


def test_every_config_is_tested_and_begins_with_its_command():
    assert {path.stem for path in CONFIGS.iterdir()} == {"ddp", "fsdp2", "zero3"}
    for path in CONFIGS.iterdir():
        command = f"# accelerate launch --config_file recipes/accelerate/{path.name} -m soundwave_hf.cli train RECIPE"
        assert path.read_text().splitlines()[0] == command
