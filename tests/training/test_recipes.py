import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config, WhisperFeatureExtractor
from transformers.trainer import TRAINER_STATE_NAME

from soundwave_hf import cli
from soundwave_hf.data.backbones import SHIPPED_BACKBONES, resolve_backbone
from soundwave_hf.data.tiny import TINY_BACKBONES, byte_tokenizer
from soundwave_hf.keys import read_yaml
from soundwave_hf.modeling.backbones_soundwave import TRAINED_FILE
from soundwave_hf.training.arguments import SoundwaveTrainingArguments
from soundwave_hf.training.augment import Augmentation
from soundwave_hf.training.mixture import Mixture
from soundwave_hf.training.plan import Gpus, Plan
from soundwave_hf.training.recipe import find_recipe
from soundwave_hf.training.run import read_recipe, read_recipes, read_rows, run_recipe, train
from tests.tiny_models import save_tiny_whisper
from tests.training.workspace import write_manifest


RECIPES = Path(__file__).parents[2] / "recipes"
OF_SMALL = RECIPES.parent / "examples" / "soundwave-small" / "recipes"
SHIPPED = sorted(path for path in RECIPES.rglob("*.yaml") if path.parent.name != "accelerate")
SHIPPED += sorted(OF_SMALL.glob("*.yaml"))
PAPER = "whisper-large-v3_llama-3.1-8b"
PAIRS = ("whisper-large-v3-turbo_qwen3-1.7b", "whisper-small_qwen2.5-0.5b")  # for one GPU
LAUNCH = "accelerate launch --config_file recipes/accelerate/ddp.yaml -m soundwave_hf.cli"
ROW = {"audio": "clips/0.wav", "text": "Yes.", "seconds": 1.0, "source": "a"}


@pytest.fixture
def write(workspace, tmp_path):
    """Writes a recipe of the given stage and changes; a change to `None` leaves its key out."""

    def make(stage: str = "align", **changes) -> Path:
        recipe = workspace.recipe(stage, tmp_path / "out") | changes
        recipe = {key: value for key, value in recipe.items() if value is not None}
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        return path

    return make


@pytest.mark.parametrize(
    ("name", "stage", "start"),
    [
        ("1_align", "align", None),
        ("1_align_encoder", "align", "1_align"),
        ("1_align_more", "align", "1_mean"),
        ("2_shrink", "shrink", "head"),
        ("2_shrink_more", "shrink", "2_shrink"),
        ("3_instruct", "instruct", "2_llm"),
    ],
)
def test_shipped_recipes_are_read(monkeypatch, tmp_path, name, stage, start):
    monkeypatch.setenv("SOUNDWAVE_HOME", str(tmp_path))
    recipe, arguments = read_recipe(OF_SMALL / f"{name}.yaml")
    assert recipe.stage == stage
    assert {recipe.encoder, recipe.llm} == set(SHIPPED_BACKBONES)
    assert recipe.start_from == (start and str(tmp_path / "runs" / start))
    assert arguments.output_dir == str(tmp_path / "runs" / name)
    assert isinstance(arguments, SoundwaveTrainingArguments)
    assert 0 < arguments.learning_rate < 0.1
    assert arguments.train_sampling_strategy == "group_by_length"
    assert recipe.augment.speed == 0.15


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_shipped_recipe_begins_with_the_command_that_runs_it(path):
    command = LAUNCH if path.parent.name == PAPER else "soundwave-hf"
    options = " --data my.csv --output_dir runs/mine" if path.stem == "finetune" else ""
    inside = path.is_relative_to(RECIPES)
    name = path.relative_to(RECIPES).with_suffix("") if inside else path.relative_to(RECIPES.parent)
    assert path.read_text().splitlines()[0] == f"# {command} train {name}{options}"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_key_of_a_shipped_recipe_is_read(path, monkeypatch, tmp_path):
    monkeypatch.setenv("SOUNDWAVE_HOME", str(tmp_path))
    its_own = {"data": "my.csv", "output_dir": str(tmp_path / "runs" / "mine")} if path.stem == "finetune" else {}
    for recipe, arguments in read_recipes(path, its_own):
        assert recipe.stage in path.stem or path.stem in ("tiny", "finetune")
        assert arguments.max_steps > 0 or path.stem == "finetune"  # ten times through whatever data there is
        assert Path(arguments.output_dir).is_relative_to(tmp_path / "runs")


@pytest.mark.parametrize(
    ("name", "steps", "rate", "clips"),
    [("1_align", 6000, 1e-4, 32 * 8), ("2_shrink", 6000, 3e-5, 16 * 8), ("3_instruct", 4000, 3e-5, 8 * 4)],
)
def test_the_recipes_of_llama_have_the_values_of_the_paper(name, steps, rate, clips):
    recipe, arguments = read_recipe(RECIPES / PAPER / f"{name}.yaml")
    assert (recipe.encoder, recipe.llm) == ("openai/whisper-large-v3", "meta-llama/Llama-3.1-8B-Instruct")
    assert (arguments.max_steps, arguments.learning_rate) == (steps, rate)
    assert arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps == clips
    assert recipe.mixture == Mixture(1, 5)
    if name == "2_shrink":
        assert recipe.model["ctc_loss_weight"] == 0.3
        assert (recipe.lora["r"], recipe.lora["lora_alpha"]) == (64, 16)
        assert recipe.lora["target_modules"] == ["q_proj", "k_proj", "v_proj", "o_proj"]


@pytest.fixture(scope="module")
def tiny_home(tmp_path_factory):
    """An empty home, after the tiny recipe has run there."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOUNDWAVE_HOME", str(home))
        assert cli.main(["train", str(RECIPES / "tiny.yaml"), "--disable_tqdm", "true", "--use_cpu", "true"]) == 0
    return home


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["1_align", "2_shrink", "3_instruct"])
def test_the_tiny_recipe_trains_each_stage_and_downloads_nothing(tiny_home, stage):
    folder = tiny_home / "runs" / "tiny" / stage
    history = json.loads((folder / TRAINER_STATE_NAME).read_text())["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert losses[-1] < losses[0]
    weights = load_file(folder / (TRAINED_FILE if stage == "1_align" else "adapter_model.safetensors"))
    assert all(torch.isfinite(weight).all() for weight in weights.values())


def test_what_the_tiny_recipe_made_is_made_again_alike(tiny_home, monkeypatch, tmp_path):
    monkeypatch.setenv("SOUNDWAVE_HOME", str(tmp_path))
    before = torch.random.get_rng_state()
    for name in TINY_BACKBONES:
        again = load_file(Path(resolve_backbone(name)) / "model.safetensors")
        first = load_file(tiny_home / "backbones" / name / "model.safetensors")
        assert all(torch.equal(first[key], again[key]) for key in first.keys() | again.keys())
    assert torch.equal(torch.random.get_rng_state(), before)  # a run on fresh backbones is the run on kept ones


@pytest.mark.parametrize("key", ["output_dir", "stage", "start_from"])
def test_what_the_recipes_of_one_file_differ_in_is_not_overridden(key):
    with pytest.raises(ValueError, match=f"`.*tiny.yaml` holds 3 recipes, and `{key}` would be the same in each"):
        read_recipes(RECIPES / "tiny.yaml", {key: "x"})


def test_a_mistake_in_one_of_several_recipes_names_it(tmp_path):
    path = tmp_path / "several.yaml"
    path.write_text((RECIPES / "tiny.yaml").read_text().replace("mixture:", "mixtur:"))
    with pytest.raises(ValueError, match="recipe 2 of `.*several.yaml` has the key `mixtur`, .* mean `mixture`?"):
        read_recipes(path)
    with pytest.raises(ValueError, match="tiny.yaml` holds 3 recipes and one was expected"):
        read_recipe(RECIPES / "tiny.yaml")


def test_numbers_of_a_recipe_are_numbers_however_they_are_written(write):
    assert read_recipe(write(ctc_negatives="1e3"))[0].ctc_negatives == 1000
    assert read_recipe(write(), {"ctc_negatives": "40.0"})[0].ctc_negatives == 40
    with pytest.raises(ValueError, match="`warm_start` is 'perhaps'; give true or false"):
        read_recipe(write(warm_start="perhaps"))


def test_the_shipped_recipes_are_these():
    names = {str(path.relative_to(RECIPES)) for path in SHIPPED if path.is_relative_to(RECIPES)}
    stages = {"1_align.yaml", "2_shrink.yaml", "3_instruct.yaml"}
    pairs = {f"{pair}/{name}" for pair in (PAPER, *PAIRS) for name in stages}
    assert names == pairs | {"tiny.yaml", "finetune.yaml"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage": "algin"}, "`stage` is 'algin'; it must be one of align, shrink, instruct"),
        ({"stage": None}, r"lacks \['stage'\]: a recipe needs them"),
        ({"llm": None, "data": None}, r"lacks \['llm', 'data'\]"),
        ({"learning_rat": 1e-3}, "has the key `learning_rat`, which does not exist. Did you mean `learning_rate`?"),
        ({"agument": {"speed": 0.1}}, "has the key `agument`, which does not exist. Did you mean `augment`?"),
        ({"zzzz": 1}, "has the key `zzzz`, which does not exist. See the fields of SoundwaveTrainingArguments"),
        ({"packing": True}, "has the key `packing`, which does not exist"),  # TRL's, for stage III alone
        ({"augment": {"sped": 0.1}}, "`augment` of .* has the key `sped`, .* Did you mean `speed`?"),
        ({"augment": {"speed": 1.5}}, "augmentation `speed` is 1.5; give a share of 0 to 1"),
        ({"stage": "shrink", "lora": {"lora_alfa": 1}}, "`lora` of .* the key `lora_alfa`, .* you mean `lora_alpha`?"),
        (
            {"stage": "shrink", "lora": {"modules_to_save": ["lm_head"]}},
            "`lora` of .* sets `modules_to_save`, which a recipe cannot: only the LoRA trains. Leave it out",
        ),
        *(
            (
                {"stage": "shrink", "lora": {"init_lora_weights": start}},
                f"has `init_lora_weights` {start!r}; give true,",
            )
            for start in ("pissa_niter_2", "mica", "eva", "corda", "loftq", "lora_ga", "true", 1)
        ),
        (
            {"stage": "shrink", "lora": {"layers_to_transform": [1]}},
            "`layers_to_transform`, .* give `exclude_modules: ",
        ),
        (
            {"stage": "shrink", "lora": {"layers_pattern": "layers"}},
            "`layers_pattern`, .*: PEFT takes it only with a l",
        ),
        ({"stage": "shrink", "lora": {"lora_bias": True}}, "sets `lora_bias`, .*: merging the LoRA would need a bias"),
        (
            {"stage": "shrink", "lora": {"layer_replication": [[0, 2]]}},
            "sets `layer_replication`, .*: no test shows that",
        ),
        ({"model": {"lok_back": "all"}}, "`model` of .* has the key `lok_back`, .* Did you mean `look_back`?"),
        ({"model": {"dtype": "float16"}}, "`model` of .* has the key `dtype`, which does not exist. Its keys are"),
        ({"attn_implementation": {"text_confg": "eager"}}, "the key `text_confg`, .* Did you mean `text_config`?"),
        ({"mixture": {"temprature": 1}}, "`mixture` of .* has the key `temprature`, .* Did you mean `temperature`?"),
        ({"mixture": {"temperature": 0}}, "`mixture` has `temperature` 0 and `step` 5.0: the first"),
        (
            {"stage": "shrink", "quantization": {"load_in_4bit": True, "bnb_4bit_quant_typ": "nf4"}},
            "`quantization` of .* the key `bnb_4bit_quant_typ`, .* Did you mean `bnb_4bit_quant_type`?",
        ),
        (
            {"stage": "shrink", "quantization": {"quant_method": "torchao", "quant_type": "int8", "zzzz": 1}},
            "the key `zzzz`, .* Its keys are .*'modules_to_not_convert', 'quant_method', 'quant_type'",
        ),
        (
            {"stage": "shrink", "quantization": {"load_in_4bits": True}},
            "`quantization` of .* has the `quant_method` None: give `load_in_4bit: true` or `load_in_8bit: true`",
        ),
        (
            {"stage": "shrink", "quantization": {"quant_method": "bitsandbytes"}},
            "has the `quant_method` 'bitsandbytes': give `load_in_4bit: true` or .* or a method of .*'torchao'",
        ),
        ({"stage": "shrink", "quantization": 4}, "`quantization` of .* is 4; give `key: value` pairs"),
        ({"encoder_cache": {"variants": 0}}, "`encoder_cache` has `variants` 0; give a whole number, 1 or more"),
        ({"encoder_cache": {"gigabytes": "0.0"}}, "`encoder_cache` has `gigabytes` 0.0; give what the disk may hold"),
        (
            {"encoder_cache": {"variants": 2}},
            "has `variants` 2, and without `augment` all versions of a clip are the same",
        ),
        (
            {"encoder_cache": {}, "augment": {"spec_augment": 0.5}},
            "`augment` changes clips anew in every epoch, and `encoder_cache` .* set `encoder_cache.variants` to",
        ),
        ({"repeat": {"s0": 0}}, "`repeat.s0` is 0; give a whole number, 1 or more"),
        ({"augment": 0.1}, "`augment` of .* is 0.1; give `key: value` pairs"),
        ({"stage": "instruct"}, "Stage `instruct` trains the LoRA of stage `shrink`: name its folder as `start_from`"),
        ({"repeat": {"s0": 2, "absent": 3}}, r"names \['absent'\], but the sources of the rows are \['s0', 's1'\]"),
        ({"learning_rate": "fast"}, "`learning_rate` is 'fast', and a number was expected"),
        ({"learning_rate": [1e-3]}, r"`learning_rate` is \[0.001\], and a number was expected"),
        ({"max_steps": True}, "`max_steps` is True, and a number was expected"),
        ({"bf16": "false"}, "`bf16` is 'false'; give true or false"),
        ({"bf16": 0}, "`bf16` is 0; give true or false"),
        (
            {"load_best_model_at_end": "false", "eval_data": "x.jsonl"},
            "`load_best_model_at_end` is 'false'; give true or false",
        ),
        ({"stage": "shrink", "lora": {"use_dora": "no"}}, "`use_dora` is 'no'; give true or false"),
        ({"model": {"keep_blanks": "no"}}, "`keep_blanks` is 'no'; give true or false"),
        (
            {"stage": "shrink", "quantization": {"load_in_4bit": "false"}},
            "`load_in_4bit` in `quantization` of .* is 'false'; give true or false",
        ),
        (
            {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"min_lr": 1e-5}},
            "The schedule `cosine` cannot be made with `lr_scheduler_kwargs` {'min_lr': 1e-05}: .* 'min_lr'",
        ),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "`cosine_with_min_lr` cannot be made with .* {}: .*min_lr"),
        (
            {"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"min_lr": 1e-5}},
            "`lr_scheduler_kwargs` is {'min_lr': 1e-05}, and the schedule `constant` takes none",
        ),
        ({"max_steps": "1.5"}, "`max_steps` is '1.5', and a whole number was expected"),
        ({"augment": {"speed": "some"}}, "`speed` is 'some', and a number was expected"),
        ({"dataloader_persistent_workers": True}, "sets `dataloader_persistent_workers`, which a recipe cannot"),
        (
            {"resume_from_checkpoint": "x"},
            "sets `resume_from_checkpoint`, which a recipe cannot: a run continues from",
        ),
        (
            {"stage": "instruct", "start_from": "x", "chat_template_path": "t.jinja"},
            "sets `chat_template_path`, which a recipe cannot: .* reads the chat template of the LLM. To train",
        ),
        (
            {"stage": "instruct", "start_from": "x", "eos_token": "<|endoftext|>"},
            "sets `eos_token`, which a recipe cannot: .* ends answers as the LLM does. To train",
        ),
        ({"stage": "instruct", "start_from": "x", "max_length": 99}, "sets `max_length`, .*: no token is ever cut"),
    ],
)
def test_a_mistake_in_a_recipe_is_refused_and_nothing_is_written(write, tmp_path, changes, message):
    stage = changes.get("stage") or "align"
    with pytest.raises(ValueError, match=message):
        run_recipe(write(**{"stage": stage, **changes}))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "nowhere.jsonl"}, r"There is no file `.*nowhere.jsonl` \(current folder"),
        ({"encoder": "no/encoder"}, "No backbone `no/encoder`"),
        ({"llm": "no/llm"}, "No backbone `no/llm`"),
        ({"stage": "shrink", "start_from": "no_run"}, "There is no folder `.*no_run` with trained adapters"),
    ],
)
def test_what_is_not_there_is_named_and_nothing_is_written(write, tmp_path, changes, message):
    stage = changes.get("stage", "align")
    with pytest.raises(FileNotFoundError, match=message):
        run_recipe(write(**{"stage": stage, **changes}))
    assert not (tmp_path / "out").exists()


def test_a_missing_recipe_is_named():
    with pytest.raises(
        FileNotFoundError,
        match="no recipe `nowhere.yaml`: give a YAML file, or one of finetune, tiny, whisper-large-v3",
    ):
        read_recipe("nowhere.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no `key: value` lines"),
        ("- stage: align", "holds no `key: value` lines"),
        ("stage: [align", "recipe.yaml` cannot be read as YAML"),
        ("stage: align\naugment:\n", "`augment` of .* is None; give `key: value` pairs, or leave it out"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_recipe(path)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("learning_rate", "a number"),
        ("seed", "a whole number"),
        ("bf16", "true or false"),
        ("warmup_steps", "a number"),
        ("train_sampling_strategy", "text"),
        ("augment.speed", "a number"),
        ("lora.r", "a whole number"),
    ],
)
def test_a_key_without_a_value_is_named(write, key, expected):
    with pytest.raises(ValueError, match=f"`{key.rpartition('.')[2]}` has no value; give {expected}, or leave the"):
        read_recipe(write("shrink"), {key: ""})


def test_a_key_without_a_value_is_taken_where_none_is_a_value(write):
    overrides = dict.fromkeys(("save_total_limit", "max_batch_seconds", "model.keep_blanks", "run_name"), "")
    recipe, arguments = read_recipe(write("shrink"), overrides)
    assert (arguments.save_total_limit, recipe.max_batch_seconds, recipe.model) == (None, None, {"keep_blanks": None})


@pytest.mark.parametrize("text", ["f", "0", "'true'"])
def test_the_command_line_takes_only_true_and_false_for_a_choice_of_two(write, text):
    with pytest.raises(ValueError, match="`bf16` is .*; give true or false"):
        read_recipe(write(), {"bf16": text})
    assert not read_recipe(write(), {"bf16": "off"})[1].bf16  # false in YAML


def test_options_of_a_schedule_are_read_as_numbers(write):
    # YAML reads 1e-5 as text.
    options = {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": "1e-5"}}
    assert read_recipe(write(**options))[1].lr_scheduler_kwargs == {"min_lr": 1e-5}


@pytest.mark.parametrize(
    ("lines", "key", "line"),
    [
        ("seed: 1\nseed: 2\n", "seed", 2),
        ("augment: {speed: 0.1}\nseed: 1\naugment: {noise: 0.2}\n", "augment", 3),
        ("augment:\n  speed: 0.1\n  speed: 0.2\n", "speed", 3),
    ],
)
def test_a_key_that_is_written_twice_is_refused(tmp_path, lines, key, line):
    path = tmp_path / "recipe.yaml"
    path.write_text(lines)
    with pytest.raises(ValueError, match=f"`{key}` is written twice in line {line}"):
        read_recipe(path)


def test_merged_lines_may_be_merged_again():
    text = "m:\n  a: &a {x: 1}\n  b: &b {<<: *a, x: 2}\ne: {<<: *b}\n"
    assert read_yaml(text, "the text") == {"m": {"a": {"x": 1}, "b": {"x": 2}}, "e": {"x": 2}}


def test_lines_of_another_mapping_may_be_merged_and_replaced(write):
    merged = {"model": "{<<: {adapter_heads: 4, blank_margin: 0.5}, adapter_heads: 2}"}
    assert read_recipe(write(), merged)[0].model == {"adapter_heads": 2, "blank_margin": 0.5}


def test_overrides_replace_values_and_nested_ones(write):
    path = write("shrink", augment={"speed": 0.3, "noise": 0.2})
    overrides = {"augment.speed": "0.1", "augment.room": "1e-1", "lora.r": "7", "max_steps": "9", "seed": "3"}
    recipe, arguments = read_recipe(path, overrides | {"learning_rate": "1e-4", "report_to": "none"})
    assert recipe.augment == Augmentation(speed=0.1, noise=0.2, room=0.1)
    assert recipe.lora["r"] == 7
    assert (arguments.max_steps, arguments.seed, arguments.learning_rate) == (9, 3, 1e-4)


def test_numbers_in_scientific_notation_are_numbers(write):
    # YAML reads 1e3 as text.
    path = write("shrink", max_steps="1e3", learning_rate="5e-4", lora={"r": "1e1", "lora_dropout": "1e-1"})
    recipe, arguments = read_recipe(path)
    assert (arguments.max_steps, arguments.learning_rate) == (1000, 5e-4)
    assert isinstance(arguments.max_steps, int)
    assert recipe.lora == {"r": 10, "lora_dropout": 0.1}
    assert isinstance(recipe.lora["r"], int)


def test_an_override_may_begin_a_section(write):
    recipe, _ = read_recipe(write(), {"augment.speed": "0.1", "repeat.s0": "2", "model.ctc_loss_weight": "5e-1"})
    assert recipe.augment == Augmentation(speed=0.1)
    assert (recipe.repeat, recipe.model) == ({"s0": 2}, {"ctc_loss_weight": 0.5})


@pytest.mark.parametrize("section", ["repeat", "model", "lora", "augment", "columns", "quantization"])
@pytest.mark.parametrize("value", ["null", "3", "[a]"])
def test_a_section_that_is_no_mapping_is_refused(write, section, value):
    """`repeat:` without a value is null in YAML."""
    with pytest.raises(ValueError, match=rf"`{section}`.* is .*; give `key: value` pairs"):
        read_recipe(write(stage="shrink"), {section: value})


def test_an_override_may_replace_a_whole_section(write):
    recipe, _ = read_recipe(write(augment={"speed": 0.3}), {"augment": "{noise: 0.5}"})
    assert recipe.augment == Augmentation(noise=0.5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"augment.sped": "0.1"}, "`augment` of .* has the key `sped`, .* Did you mean `speed`?"),
        ({"seed.x": "1"}, "`seed.x` is given, and `seed` is the single value 4: give `seed`"),
        ({"max_step": "1"}, "has the key `max_step`, .* Did you mean `max_steps`?"),
        ({"lr": "1e-5"}, "has the key `lr`, .* Did you mean `learning_rate`?"),
        ({"epochs": "1"}, "has the key `epochs`, .* Did you mean `num_train_epochs`?"),
        ({"batch-size": "1"}, "has the key `batch-size`, .* Did you mean `per_device_train_batch_size`?"),
        ({"grad_accum": "1"}, "has the key `grad_accum`, .* Did you mean `gradient_accumulation_steps`?"),
        ({"augment": "{speed: 0.1"}, "`--augment` cannot be read as YAML"),
    ],
)
def test_a_mistake_in_an_override_is_refused(write, overrides, message):
    with pytest.raises(ValueError, match=message):
        read_recipe(write(seed=4), overrides)


# ---- manifests ----


def test_rows_of_a_source_are_repeated_and_told_apart(tmp_path):
    rows = [ROW | {"text": "one"}, ROW | {"text": "two", "source": "b"}, ROW | {"text": "three"}]
    found = read_rows(write_manifest(tmp_path / "rows.jsonl", rows), {"a": 2})
    assert found["text"] == ["one", "one", "two", "three", "three"]
    assert found["row"] == [0, 1, 2, 3, 4]


def test_columns_that_only_later_rows_have_are_kept(tmp_path):
    rows = [ROW, ROW | {"question": "Who?", "answer": "I.", "task": "who"}]
    found = read_rows(write_manifest(tmp_path / "rows.jsonl", rows), {})
    assert found["answer"] == [None, "I."]
    assert found["task"] == [None, "who"]


def test_rows_need_no_source_unless_it_is_repeated(tmp_path):
    row = {"audio": "a.wav", "text": "Yes.", "seconds": 1.0}
    path = write_manifest(tmp_path / "rows.jsonl", [row])
    assert len(read_rows(path, {})) == 1
    with pytest.raises(ValueError, match=r"`repeat` names \['a'\]"):
        read_rows(path, {"a": 2})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "rows.jsonl` is empty: it needs one JSON object a line"),
        ('{"audio": "a.wav", "text": "x", "seconds": 1}\n{"audio": ', "line 2 of .*rows.jsonl` is not JSON"),
        ('{"audio": "a.wav"}\n', r"line 1 of .*rows.jsonl` lacks \['text'\]"),
        (
            '{"audio": "a.wav", "text": "x", "seconds": 1, "question": "Who?"}\n',
            r"line 1 of .*rows.jsonl` has a `question` .'Who\?'. and no `answer`: give both",
        ),
        ('["a.wav", "x"]\n', r"line 1 of .*rows.jsonl` is \['a.wav', 'x'\]; expected an object"),
    ],
)
def test_a_manifest_that_cannot_be_read_names_the_line(tmp_path, text, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_rows(path, {})


# ---- from the command line ----


def test_the_command_trains_a_recipe(write, tmp_path, capsys):
    assert cli.main(["train", str(write()), "--max_steps", "1", "--augment.speed=0.1"]) == 0
    assert (tmp_path / "out" / "trained.safetensors").is_file()
    assert "Stage align: 0.01 M parameters on CTC loss, 12 clips (0.0 h), 4 a step" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes",
    [{"model": {"look_back": "al"}}, {"model": {"lok_back": "all"}}, {"augment": {"sped": 1}}, {"data": "no"}],
)
def test_the_command_answers_a_mistake_without_a_traceback(write, tmp_path, capsys, changes):
    assert cli.main(["train", str(write(**changes))]) == 2
    printed = capsys.readouterr().err
    assert "soundwave-hf train: " in printed and "Traceback" not in printed
    assert not (tmp_path / "out").exists()


# A tiny LLM of the family of each pair's LLM, and the mel bins of its encoder.
TINY_OF_PAIR = {
    PAPER: (LlamaConfig, 128),
    "whisper-large-v3-turbo_qwen3-1.7b": (Qwen3Config, 128),
    "whisper-small_qwen2.5-0.5b": (Qwen2Config, 80),
}


def tiny_backbones_of(pair: str, folder: Path) -> dict[str, str]:
    """`encoder` and `llm` of a pair's families, of width 32, with random weights."""
    config_class, mel_bins = TINY_OF_PAIR[pair]
    encoder = save_tiny_whisper(
        folder / "encoder", num_mel_bins=mel_bins, d_model=32, encoder_ffn_dim=64, max_source_positions=1500
    )
    WhisperFeatureExtractor(feature_size=mel_bins).save_pretrained(encoder)
    tokenizer = byte_tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 1024}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "eos_token_id": tokenizer.eos_token_id}
    sizes |= {"head_dim": 8} if pair != "whisper-small_qwen2.5-0.5b" else {}
    tied = pair != PAPER
    config = config_class(vocab_size=len(tokenizer), tie_word_embeddings=tied, initializer_range=0.5, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / "llm")
    tokenizer.save_pretrained(folder / "llm")
    return {"encoder": encoder, "llm": str(folder / "llm")}


@pytest.mark.slow
@pytest.mark.parametrize("pair", TINY_OF_PAIR)
def test_the_stages_of_a_pair_train_tiny_backbones_of_its_families(pair, workspace, tmp_path, monkeypatch):
    monkeypatch.setenv("SOUNDWAVE_HOME", str(tmp_path))
    smaller = tiny_backbones_of(pair, tmp_path) | {"max_steps": 2, "warmup_steps": 1, "dataloader_num_workers": 0}
    smaller |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "bf16": False, "use_cpu": True}
    smaller |= {"logging_steps": 1, "disable_tqdm": True, "dataloader_pin_memory": False}
    for name in ("1_align", "2_shrink", "3_instruct"):
        rows = "instruct.jsonl" if name == "3_instruct" else "train.jsonl"
        folder = train(f"{pair}/{name}", **smaller, data=str(workspace.data / rows))
        state = json.loads((Path(folder) / TRAINER_STATE_NAME).read_text())
        losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
        assert len(losses) == 2 and all(math.isfinite(loss) and loss > 0 for loss in losses)


@pytest.mark.parametrize("pair", [PAPER, *PAIRS])
def test_the_recipes_of_a_pair_follow_each_other(pair, monkeypatch, tmp_path):
    monkeypatch.setenv("SOUNDWAVE_HOME", str(tmp_path))
    recipes = [read_recipe(RECIPES / pair / f"{name}.yaml") for name in ("1_align", "2_shrink", "3_instruct")]
    assert [recipe.stage for recipe, _ in recipes] == ["align", "shrink", "instruct"]
    assert len({(recipe.encoder, recipe.llm) for recipe, _ in recipes}) == 1
    assert [recipe.start_from for recipe, _ in recipes[1:]] == [options.output_dir for _, options in recipes[:2]]


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("gpus", ["1x24GB", "1x80GB"])
def test_the_recipes_for_one_gpu_fit_it(pair, gpus, monkeypatch, tmp_path):
    monkeypatch.setenv("SOUNDWAVE_HOME", str(tmp_path))
    for name in ("1_align", "2_shrink", "3_instruct"):
        assert Plan(*read_recipe(RECIPES / pair / f"{name}.yaml"), Gpus.read(gpus)).fits(sharded=False)


def test_the_name_of_version_0_1_finds_the_recipes_of_the_paper():
    for name in ("llama-3.1-8b/2_shrink", "recipes/llama-3.1-8b/2_shrink.yaml"):
        assert find_recipe(name) == find_recipe(f"{PAPER}/2_shrink")


def test_shipped_recipes_state_the_gain_of_clips_that_they_change():
    """A run of one that does not says that earlier versions changed the level."""
    stated = [each.get("augment") or {} for path in SHIPPED for each in yaml.safe_load_all(path.read_text())]
    assert sum("speed" in augment for augment in stated) > 10
    assert all("gain" in augment for augment in stated if "speed" in augment)
