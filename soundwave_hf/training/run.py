"""`soundwave-hf train RECIPE`: one function runs any stage from a YAML recipe."""

import difflib
import inspect
import os
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import PartialState
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import HfArgumentParser, PreTrainedConfig, TrainingArguments, set_seed
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING
from trl import SFTConfig

from ..data.backbones import resolve_backbone, soundwave_home
from ..data.card import count_rows
from ..data.tiny import TINY_DATA, make_folder, write_tiny_data
from ..modeling.backbones_soundwave import TRAINED_FILE, adapter_fields, load_adapter, load_lora, refuse_other_fields
from ..modeling.configuration_soundwave import SoundwaveConfig
from ..modeling.folders_soundwave import backbone_name
from ..modeling.modeling_soundwave import SoundwaveForConditionalGeneration, SoundwaveForCTC
from ..processing.processing_soundwave import SoundwaveProcessor
from .arguments import SoundwaveTrainingArguments
from .augment import Augmentation
from .checkpoints import PREEMPTED, PreemptionCallback, last_checkpoint
from .collator import SoundwaveCollator
from .encoder_cache import EncoderCache
from .manifests import find_manifests, open_streams, read_lines, read_rows
from .mixture import LengthGroups, Mixture, MixtureStream
from .record import describe_run
from .stages import ADAPTERS, STAGES, Stage, freeze_all_but, lora_targets
from .trainer import SoundwaveSFTTrainer, SoundwaveTrainer
from .watch import PaceCallback


# What the mappings of a recipe may hold; the other fields follow from the backbones and the stage's table.
SECTIONS = {
    "model": {f.name for f in fields(SoundwaveConfig)}
    - {f.name for f in fields(PreTrainedConfig)}
    - {"audio_config", "text_config", "audio_token_id", "tie_word_embeddings"},
    # Exactly the LoRA trains: no bias beside it, and no more modules.
    "lora": {f.name for f in fields(LoraConfig)} - {"bias", "modules_to_save", "trainable_token_indices"},
    "augment": {f.name for f in fields(Augmentation)},
    "encoder_cache": {"gigabytes", "variants"},
    "mixture": {f.name for f in fields(Mixture)},
}
# Keys of the library that would be overruled, or that it does not read.
OVERRULED = {
    "dataloader_persistent_workers": "workers that outlive an epoch draw its augmentation again",
    "dataset_kwargs": "the collator prepares the data",
    "label_names": "the stage has its labels",
    "max_length": "nothing is ever cut",
    "remove_unused_columns": "the collator reads every column",
    **dict.fromkeys(("assistant_only_loss", "completion_only_loss"), "the collator labels the answers"),
    **dict.fromkeys(("dataset_text_field", "dataset_num_proc"), "the rows have columns of their own"),
    "resume_from_checkpoint": "a run goes on from the last checkpoint in its `output_dir`",
}
# Keys in which the recipes of one file differ.
OF_ONE_RECIPE = ("stage", "start_from", "output_dir")


# Keys of TRL that the trainer of stages I and II does not read.
SFT_KEYS = {f.name for f in fields(SFTConfig)} - {f.name for f in fields(TrainingArguments)} - OVERRULED.keys()
NOT_KEYS = {"written"}
STREAM_ROWS = 20_000  # of a stream among which they are shuffled and put side by length; they hold no audio


@dataclass
class RecipeArguments:
    """What a recipe says beside the keys of `SoundwaveTrainingArguments`."""

    stage: str = field(metadata={"help": "align, shrink or instruct"})
    encoder: str = field(metadata={"help": "Whisper model: hub name or folder"})
    llm: str = field(metadata={"help": "causal LM: hub name or folder"})
    data: str = field(
        metadata={
            "help": "manifest (JSON lines), or a pattern of several in one folder (`data/train-*.jsonl`); a relative "
            "path begins at $SOUNDWAVE_HOME"
        }
    )
    start_from: str | None = field(default=None, metadata={"help": "output folder of the stage before"})
    allow_other_backbones: bool = field(
        default=False,
        metadata={"help": "whether `start_from` may have been trained on other backbones, of the same widths"},
    )
    model: dict[str, Any] = field(default_factory=dict, metadata={"help": "fields of SoundwaveConfig"})
    lora: dict[str, Any] = field(default_factory=dict, metadata={"help": "fields of PEFT's LoraConfig"})
    quantization: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": "the frozen LLM's, as in transformers (`{quant_method: bitsandbytes, load_in_4bit: true}`)"},
    )
    attn_implementation: Any = field(
        default=None, metadata={"help": "attention of all parts, or a mapping (`{text_config: eager}`)"}
    )
    warm_start: bool | None = field(
        default=None, metadata={"help": "whether fresh adapters begin at what Whisper's own decoder reads; true"}
    )
    ctc_negatives: int | None = field(
        default=None,
        metadata={
            "help": "CTC over the tokens of the data's transcripts and this many others, drawn for each batch; by "
            "default over the whole vocabulary, which is what a small data set wants"
        },
    )
    augment: dict[str, float] = field(default_factory=dict, metadata={"help": "fields of Augmentation"})
    repeat: dict[str, int] = field(default_factory=dict, metadata={"help": "times a row of this source counts"})
    encoder_cache: dict[str, Any] | None = field(
        default=None,
        metadata={
            "help": "keep the encoder's states in `$SOUNDWAVE_HOME/encoder_states`: at most so many `gigabytes`, and "
            "so many augmented `variants` of each clip, one an epoch by turns; by default they are computed anew in "
            "every epoch"
        },
    )
    mixture: dict[str, float] = field(
        default_factory=dict,
        metadata={
            "help": "fields of Mixture: shares of tasks, epoch by epoch; by default each row comes once an epoch"
        },
    )
    max_batch_seconds: float | None = field(
        default=None, metadata={"help": "audio of a batch, padding counted; it has at most the batch size's clips"}
    )
    streaming: bool = field(
        default=False,
        metadata={
            "help": "read rows as they are trained on, each process its share, in place of holding all in memory; a "
            "run is then of `max_steps`, its batches of clips of like length, and manifests are best in random order"
        },
    )

    written: dict[str, Any] = field(default_factory=dict, metadata={"help": "the keys as they were read"})

    def __post_init__(self):
        if self.stage not in STAGES:
            raise ValueError(f"`stage` is {self.stage!r}; it must be one of {', '.join(STAGES)}.")
        if self.stage == "instruct" and self.start_from is None:
            raise ValueError("Stage `instruct` trains the LoRA of stage `shrink`: name its folder as `start_from`.")
        for name in ("warm_start", "streaming", "allow_other_backbones"):
            if (value := getattr(self, name)) not in (None, True, False):
                raise ValueError(f"`{name}` is {value!r}; give true or false.")
        for source, times in self.repeat.items():
            if not isinstance(times, int) or times < 1:
                raise ValueError(f"`repeat` has {times!r} for `{source}`; give a whole number, 1 or more.")
        if self.encoder_cache is not None:
            self._check_cache()
        if self.streaming and self.repeat:
            raise ValueError("`repeat` is given, and a stream gives each row once: weigh tasks with `mixture`.")
        if self.warm_start is not None and self.start_from is not None:
            raise ValueError("`warm_start` is given, and `start_from` holds trained adapters: leave one of them out.")
        if self.quantization and not STAGES[self.stage].has_llm:
            raise ValueError(f"`quantization` is given, and stage `{self.stage}` has no LLM: leave it out.")
        if self.ctc_negatives is not None and "ctc" not in STAGES[self.stage].losses:
            raise ValueError(f"`ctc_negatives` is given, and stage `{self.stage}` takes no CTC loss: leave it out.")
        Mixture(**self.mixture)  # which checks its values

    def _check_cache(self):
        variants = EncoderCache(Path(), **self.encoder_cache).variants  # which checks its values
        augments = any(self.augment.values())
        if self.streaming:
            raise ValueError(
                "`encoder_cache` is given, and encoding all clips beforehand is what `streaming` avoids: leave one of "
                "them out."
            )
        if augments and "variants" not in self.encoder_cache:
            raise ValueError(
                "`augment` draws anew in every epoch, and `encoder_cache` keeps what it drew: say with "
                "`encoder_cache.variants` how many versions of each clip, 1 if every epoch is to hear the same."
            )
        if variants > 1 and not augments:
            raise ValueError(
                f"`encoder_cache` has `variants` {variants}, and without `augment` all versions of a clip are one: "
                "leave it out."
            )

    @cached_property
    def backbones(self) -> tuple[str, str]:
        """Folders of the encoder and the LLM, made or downloaded at the first call."""
        return resolve_backbone(self.encoder), resolve_backbone(self.llm)

    @property
    def start_folder(self) -> str | None:
        return None if self.start_from is None else str(_at_home(self.start_from))

    @property
    def manifest(self) -> Path:
        return _at_home(self.data)


def read_recipes(path: str | os.PathLike, overrides: dict[str, str] | None = None) -> list[tuple]:
    """A YAML file of one recipe, or of several apart by `---`, and `--key value` overrides (`--augment.speed 0.1` for
    a nested one) -> the two argument classes of each.

    Raises: `FileNotFoundError`; `ValueError` for a file that is no recipe and for a key that nobody reads.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"There is no recipe `{path}`; the repository's own are in `recipes/`.")
    documents = _read_yaml(Path(path).read_text(encoding="utf-8"), f"`{path}`", yaml.safe_load_all) or [None]
    several = len(documents) > 1
    if several and (one := [key for key in OF_ONE_RECIPE if key in (overrides or {})]):
        raise ValueError(
            f"`{path}` holds {len(documents)} recipes, and `--{one[0]}` would be that of each: change the file."
        )
    names = [f"recipe {number} of `{path}`" if several else f"`{path}`" for number in range(1, len(documents) + 1)]
    return [_check_recipe(values, name, overrides or {}) for values, name in zip(documents, names, strict=True)]


def read_recipe(path: str | os.PathLike, overrides: dict[str, str] | None = None) -> tuple:
    """As `read_recipes`, of a file that holds one."""
    recipes = read_recipes(path, overrides)
    if len(recipes) > 1:
        raise ValueError(f"`{path}` holds {len(recipes)} recipes and one was expected: give them a file each.")
    return recipes[0]


def _check_recipe(values, path: str, overrides: dict[str, str]) -> tuple:
    """The keys of one recipe, of the name `path`, -> its two argument classes."""
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no `key: value` lines; see `recipes/1_align.yaml` for one that does.")
    for key, value in overrides.items():
        _override(values, key, _read_yaml(value, f"`--{key}`"))
    known = {f.name for c in (RecipeArguments, SoundwaveTrainingArguments) for f in fields(c)} - NOT_KEYS
    if values.get("stage") != "instruct":
        known -= SFT_KEYS
    _refuse_unknown(values, known, path, f"See the fields of {SoundwaveTrainingArguments.__name__}.")
    for section, its_known in SECTIONS.items():
        section_name = f"`{section}` of {path}"
        _refuse_unknown(values.get(section, {}), its_known, section_name, f"Its keys are {sorted(its_known)}.")
    _check_quantization(values.get("quantization", {}), f"`quantization` of {path}")
    if isinstance(attention := values.get("attn_implementation"), dict):
        # The library passes over any other part.
        parts = {"audio_config", "text_config"}
        _refuse_unknown(attention, parts, f"`attn_implementation` of {path}", f"Its keys are {sorted(parts)}.")
    for key in set(values) & set(OVERRULED):
        raise ValueError(f"{path} sets `{key}`, which a recipe cannot: {OVERRULED[key]}. Leave it out.")
    missing = [name for name in ("stage", "encoder", "llm", "data", "output_dir") if name not in values]
    if missing:
        raise ValueError(f"{path} lacks {missing}: a recipe needs them.")
    written = dict(values)
    values["output_dir"] = str(_at_home(values["output_dir"]))
    ours = {f.name: values.pop(f.name) for f in fields(RecipeArguments) if f.name in values}
    for section, section_class in (
        ("augment", Augmentation),
        ("model", SoundwaveConfig),
        ("lora", LoraConfig),
        ("mixture", Mixture),
        ("encoder_cache", EncoderCache),
    ):
        if section in ours:
            ours[section] = _typed(ours[section], section_class)
    recipe = RecipeArguments(**_typed(ours, RecipeArguments), written=written)
    (arguments,) = HfArgumentParser(SoundwaveTrainingArguments).parse_dict(
        _typed(values, SoundwaveTrainingArguments), allow_extra_keys=False
    )
    _check_sampling(recipe, arguments)
    return recipe, arguments


def _check_quantization(given: dict, name: str):
    """Raise `ValueError` for a key that the quantizer's config in transformers would pass over."""
    if given == {}:
        return
    known = {"quant_method", "load_in_4bit", "load_in_8bit"}
    if isinstance(given, dict):
        bits = next((f"_{bits}bit" for bits in (4, 8) if given.get(f"load_in_{bits}bit")), "")
        method = "bitsandbytes" + bits if bits else given.get("quant_method")
        if method not in AUTO_QUANTIZATION_CONFIG_MAPPING:
            methods = sorted(AUTO_QUANTIZATION_CONFIG_MAPPING.keys() - {"bitsandbytes_4bit", "bitsandbytes_8bit"})
            raise ValueError(
                f"{name} has the `quant_method` {method!r}: give `load_in_4bit: true` or `load_in_8bit: true` for "
                f"bitsandbytes, or a method of {methods}."
            )
        parameters = inspect.signature(AUTO_QUANTIZATION_CONFIG_MAPPING[method].__init__).parameters
        known = {"quant_method", *parameters} - {"self", "kwargs"}
    _refuse_unknown(given, known, name, f"Its keys are {sorted(known)}.")


def _check_sampling(recipe: RecipeArguments, arguments: SoundwaveTrainingArguments):
    """Raise `ValueError` where keys of the library ask for another order than those of the recipe."""
    strategy = arguments.train_sampling_strategy
    wanting = [name for name in ("streaming", "mixture", "max_batch_seconds") if getattr(recipe, name)]
    if wanting and strategy not in ("random", "group_by_length"):
        raise ValueError(
            f"`train_sampling_strategy` is {strategy!r}, and `{wanting[0]}` draws the clips itself: leave it out, or "
            "give `group_by_length`."
        )
    if recipe.streaming and arguments.max_steps <= 0:
        raise ValueError("`streaming` is given, and streams have no end: say with `max_steps` how long to train.")


def _read_yaml(text: str, name: str, load=yaml.safe_load):
    try:
        values = load(text)
        return list(values) if load is yaml.safe_load_all else values
    except yaml.YAMLError as error:
        raise ValueError(f"{name} cannot be read as YAML: {error}") from error


def _override(values: dict, key: str, value):
    """Put the value of `--key` or `--section.key` into a recipe."""
    outer, _, inner = key.partition(".")
    if not inner:
        values[outer] = value
    elif isinstance(values.setdefault(outer, {}), dict):
        values[outer][inner] = value
    else:
        raise ValueError(f"`--{key}` arrived and `{outer}` is {values[outer]!r}, one value: give `--{outer} VALUE`.")


def _refuse_unknown(given: dict, known: set[str], name: str, otherwise: str):
    """Raise `ValueError` for a key that is not known, with a near one that is."""
    if not isinstance(given, dict):
        raise ValueError(f"{name} is {given!r}; give `key: value` pairs, or leave it out.")
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"Did you mean `{near[0]}`?" if near else otherwise
            raise ValueError(f"{name} has the key `{key}`, which nobody reads. {hint}")


def _typed(values: dict, owner: type) -> dict:
    """Values for the fields of a dataclass, numbers as numbers: YAML reads `1e-4` as text, and 1e3 steps are 1000."""
    kinds = {f.name: str(f.type) for f in fields(owner)}
    return {key: _as_number(key, value, kinds.get(key, "")) for key, value in values.items()}


def _as_number(key: str, value, kind: str):
    if "str" in kind or not isinstance(value, str | float) or not ("int" in kind or "float" in kind):
        return value
    try:
        number = float(value)
    except ValueError:
        raise ValueError(f"`{key}` is {value!r}, and a number was expected.") from None
    if "float" not in kind and not number.is_integer():
        raise ValueError(f"`{key}` is {value!r}, and a whole number was expected.")
    return number if "float" in kind else int(number)


def _at_home(path: str) -> Path:
    return Path(path) if Path(path).is_absolute() or path.startswith(".") else soundwave_home() / path


def build_model(recipe: RecipeArguments, dtype: torch.dtype | None):
    """The model of a stage, with what the stage before trained, and exactly its own parameters set to train."""
    stage = STAGES[recipe.stage]
    encoder, llm = recipe.backbones
    start = recipe.start_folder
    start_fields = {} if start is None else adapter_fields(start, encoder, llm, recipe.allow_other_backbones)
    has_lora = start is not None and not os.path.isfile(os.path.join(start, TRAINED_FILE))
    _check_start(recipe, stage, start_fields, has_lora)
    model_fields = {**start_fields, **recipe.model}
    model_class = SoundwaveForConditionalGeneration if stage.has_llm else SoundwaveForCTC
    if recipe.quantization:
        model_fields["quantization_config"] = recipe.quantization
    model = model_class.from_backbones(
        encoder, llm, dtype=dtype, warm_start=recipe.warm_start is not False and start is None, **model_fields
    )
    if recipe.attn_implementation is not None:
        model.set_attn_implementation(recipe.attn_implementation)
    # Saved with what trains, so that it says which backbones it needs, not where they lay.
    model.config.audio_config._name_or_path = backbone_name(recipe.encoder)
    model.config.text_config._name_or_path = backbone_name(recipe.llm)
    for name in ADAPTERS:
        if (adapter := getattr(model.base_model, name, None)) is not None:
            adapter.float()
    if has_lora:
        model = load_lora(model, start, is_trainable=True)
    elif start is not None:
        load_adapter(model, start)
    if stage.has_llm and not has_lora:
        model = add_lora(model, recipe.lora)
    freeze_all_but(model, stage)
    return model


def add_lora(model: SoundwaveForConditionalGeneration, fields: dict):
    """Put a fresh LoRA, by the fields of a recipe, into the LLM of a model, and its adapters under PEFT's care."""
    targets = lora_targets(model.model.language_model, fields.get("target_modules"))
    return get_peft_model(
        model, LoraConfig(**{**fields, "target_modules": targets, "modules_to_save": list(ADAPTERS)})
    )


def _check_start(recipe: RecipeArguments, stage: Stage, start_fields: dict, has_lora: bool):
    """Raise `ValueError` where the recipe asks for what the weights it starts from cannot give."""
    if recipe.stage == "instruct" and not has_lora:
        raise ValueError(f"`start_from` is `{recipe.start_from}`, which holds no LoRA: name a stage `shrink` folder.")
    if has_lora and not stage.has_llm:
        raise ValueError(f"`start_from` is `{recipe.start_from}`, which holds LoRA: stage `align` has no LLM for it.")
    if recipe.lora and (has_lora or not stage.has_llm):
        reason = f"`{recipe.start_from}` holds a LoRA already" if has_lora else "the stage has no LLM"
        raise ValueError(f"`lora` is given, and {reason}: leave it out.")
    refuse_other_fields(recipe.model, start_fields, str(recipe.start_from))


def run_recipe(path: str | os.PathLike, overrides: dict[str, str] | None = None) -> str:
    """Train as a file of recipes says, one after the other, each from its last checkpoint if there is one; returns the
    last one's output folder."""
    recipes = read_recipes(path, overrides)
    return [run_stage(recipe, arguments) for recipe, arguments in recipes][-1]


def run_stage(recipe: RecipeArguments, arguments: SoundwaveTrainingArguments) -> str:
    """Train one stage and write what it trained to `arguments.output_dir`; see `read_recipe`.

    Raises: `SystemExit` of code 143 after a SIGTERM, with a checkpoint; `OSError` where one cannot be written.
    """
    if arguments.n_gpu > 1:
        raise ValueError(
            f"One process would train on {arguments.n_gpu} GPUs: start one a GPU, `torchrun --nproc_per_node "
            f"{arguments.n_gpu} -m soundwave_hf.cli train ...`, or choose one with CUDA_VISIBLE_DEVICES."
        )
    stage = STAGES[recipe.stage]
    path = recipe.manifest
    # What is missing is made by one process: in the others the library's `save_pretrained` writes nothing.
    with PartialState().main_process_first():
        if not path.is_file() and path.parent == soundwave_home() / TINY_DATA:
            make_folder(write_tiny_data, path.parent)
        rows = _open_rows(recipe, arguments, path)
        recipe.backbones  # noqa: B018 (found or made at the first call)
    light = read_lines(path) if recipe.streaming else rows.select_columns({"source", "seconds"} & {*rows.column_names})
    counts = count_rows(
        ({"source": row.get("source") or "-", "seconds": row["seconds"]} for row in light), ("source",)
    )
    set_seed(arguments.seed)  # of fresh adapters; the trainer sets it again for the steps
    model = build_model(recipe, torch.bfloat16 if arguments.bf16 else None)
    processor = SoundwaveProcessor.from_backbones(*recipe.backbones, adapter=recipe.start_folder)
    collator = SoundwaveCollator(processor, path.parent, stage.losses, Augmentation(**recipe.augment), arguments.seed)
    if recipe.ctc_negatives is not None:
        texts = (row["text"] for row in read_lines(path)) if recipe.streaming else rows["text"]
        collator.set_negatives(texts, recipe.ctc_negatives)
    if recipe.encoder_cache is not None:
        collator.encoder_cache = EncoderCache(soundwave_home() / "encoder_states", **recipe.encoder_cache)
    trainer_class = SoundwaveSFTTrainer if recipe.stage == "instruct" else SoundwaveTrainer
    trainer = trainer_class(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=collator,
        processing_class=processor,
        stage=stage,
        mixture=Mixture(**recipe.mixture) if recipe.mixture and not recipe.streaming else None,
        max_batch_seconds=None if recipe.streaming else recipe.max_batch_seconds,
        record=describe_run(recipe.written, find_manifests(path), counts),
    )
    if trainer.is_world_process_zero():
        _announce(recipe, arguments, model, counts)
    if collator.encoder_cache is not None:
        collator.encoder_cache.fill(trainer.audio_model, collator, rows)
    trainer.add_callback(PaceCallback())
    with PreemptionCallback(trainer.accelerator) as preemption:
        trainer.add_callback(preemption)
        trainer.train(resume_from_checkpoint=last_checkpoint(arguments.output_dir))
    if preemption.stopped:
        print(
            f"SIGTERM: saved {last_checkpoint(arguments.output_dir)}; the same command goes on from there.", flush=True
        )
        raise SystemExit(PREEMPTED)
    trainer.save_model()
    trainer.save_state()
    trainer.accelerator.wait_for_everyone()  # the next stage begins with what one process has written
    return arguments.output_dir


def _open_rows(recipe: RecipeArguments, arguments: SoundwaveTrainingArguments, path: Path) -> Dataset | MixtureStream:
    """The recipe's data: all rows in memory, or this process's share of the streams."""
    if not recipe.streaming:
        return read_rows(path, recipe.repeat)
    batch_size, group = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
    pool = max(1, STREAM_ROWS // (batch_size * group))
    groups = LengthGroups(batch_size, group, pool, recipe.max_batch_seconds)
    if recipe.max_batch_seconds is not None:
        groups.check([row["seconds"] for row in read_lines(path)])
    streams, sizes = open_streams(path, by_task=bool(recipe.mixture))
    mixture = Mixture(**recipe.mixture) if recipe.mixture else Mixture(step=0)
    return MixtureStream(
        streams, sizes, groups, mixture, arguments.seed, arguments.process_index, arguments.world_size
    )


def _announce(recipe, arguments, model, counts):
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    clips, seconds = (sum(column) for column in zip(*counts.values(), strict=True))
    size = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    print(
        f"Stage {recipe.stage}: {trained / 1e6:.2f} M parameters on {' + '.join(STAGES[recipe.stage].losses)}, "
        f"{clips} clips ({seconds / 3600:.1f} h), {size} a step, to {arguments.output_dir}",
        flush=True,
    )


__all__ = [
    "RecipeArguments",
    "add_lora",
    "build_model",
    "last_checkpoint",
    "read_recipe",
    "read_recipes",
    "read_rows",
    "run_recipe",
    "run_stage",
]
