"""A recipe (YAML or a dict) and overrides -> typed arguments, with every key checked."""

import inspect
import numbers
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from peft import LoraConfig
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from ..adapters import resolve_adapter
from ..data.backbones import resolve_backbone
from ..data.sources import Source, list_sources
from ..keys import read_yaml, read_yaml_documents, refuse_unknown
from ..modeling.backbones_soundwave import settable_fields
from ..modeling.configuration_soundwave import SoundwaveConfig
from ..modeling.encoder_lora_soundwave import has_encoder_lora
from ..modeling.folders_soundwave import trained_backbone
from ..paths import expand_path, find_weights, is_there, shipped, soundwave_home
from ..secret_values import refuse_secrets
from .arguments import SoundwaveTrainingArguments
from .augment import Augmentation
from .encoder_cache import EncoderCache
from .mixture import Mixture
from .stages import STAGES


# The class that reads each section of a recipe, and the keys that the section may hold.
SECTION_CLASSES = {
    "model": SoundwaveConfig,
    "lora": LoraConfig,
    "encoder_lora": LoraConfig,
    "augment": Augmentation,
    "encoder_cache": EncoderCache,
    "mixture": Mixture,
}
SECTIONS = {
    "model": settable_fields(),
    # Tests show that a LoRA with these keys is loaded as it was trained.
    "lora": {
        *("r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "rank_pattern", "alpha_pattern"),
        *("init_lora_weights", "use_rslora", "use_dora"),
    },
    # What may differ between two modules of one LoRA: stage `shrink` puts the encoder's and the LLM's into one.
    "encoder_lora": {"r", "lora_alpha", "lora_dropout", "target_modules"},
    "augment": {f.name for f in fields(Augmentation)},
    "encoder_cache": {"gigabytes", "variants"},
    "mixture": {f.name for f in fields(Mixture)},
}
# Keys of PEFT's `LoraConfig` that a recipe cannot set, and why. Others are for methods that were not tried here.
LORA_OVERRULED = {
    **dict.fromkeys(("bias", "modules_to_save", "trainable_token_indices"), "only the LoRA trains"),
    **dict.fromkeys(
        ("layers_to_transform", "layers_pattern"),
        r"PEFT takes it only with a list of modules, and an expression finds those of the LLM. To leave layers out, "
        r"give `exclude_modules: '.*layers\.(0|1)\..*'`",
    ),
    "lora_bias": "merging the LoRA would need a bias in each module, which few LLMs have",
    "fan_in_fan_out": "PEFT sees it from the modules",
    "task_type": "the LLM always writes text",
}
# How a LoRA may start. `pissa` and `olora` change the LLM's own weights, and loading repeats that. `pissa_niter_N`
# draws random numbers, so that loading gives another model. The others need a step before the training.
LORA_STARTS = (True, False, "gaussian", "orthogonal", "pissa", "olora")
# Keys of transformers and TRL that a recipe cannot set, and why.
OVERRULED = {
    "hub_token": "it would be written down; log in with `hf auth login`, or set `HF_TOKEN`",
    "dataloader_persistent_workers": "workers that outlive an epoch would repeat its augmentation",
    "dataset_kwargs": "the collator prepares the data",
    "label_names": "the stage decides which labels there are",
    "max_length": "no token is ever cut off",
    "remove_unused_columns": "the collator reads every column",
    **dict.fromkeys(("assistant_only_loss", "completion_only_loss"), "the collator labels the answers"),
    "logging_nan_inf_filter": "a loss that is NaN or infinite ends the run",
    **dict.fromkeys(("dataset_text_field", "dataset_num_proc"), "the columns have fixed names"),
    "chat_template_path": (
        "who loads the adapters reads the chat template of the LLM. To train with another, name as `llm` a copy of "
        "its folder with this `chat_template.jinja`"
    ),
    "eos_token": (
        "who loads the adapters ends answers as the LLM does. To train with another end, name as `llm` a copy of "
        "its folder with this token in tokenizer_config.json and generation_config.json"
    ),
    "save_only_model": "a run could not continue exactly from a checkpoint without the optimizer's state",
    "ignore_data_skip": "a run continues with the rows that it has not seen",
    "resume_from_checkpoint": "a run continues from the last checkpoint in its `output_dir`",
}
OTHER_NAMES = {"steps": "max_steps", "gradient_checkpointing": "activation_checkpointing"}
# Keys that hold a path if their value is text. Relative paths start at the current folder.
ONCE_AT_HOME = ("data", "start_from", "output_dir")
PATHS = (*ONCE_AT_HOME, "eval_data", "encoder", "llm")
PATHS += ("deepspeed", "fsdp_config", "accelerator_config")  # files of settings
NEEDS_EVAL_DATA = ("eval_strategy", "eval_steps", "eval_on_start", "eval_samples", "load_best_model_at_end")
NEEDS_EVAL_DATA += ("metric_for_best_model", "early_stopping_patience", "early_stopping_threshold")
OF_ONE_RECIPE = ("stage", "start_from", "output_dir")  # keys that differ between the recipes of one file
NOT_KEYS = {"written"}
# Types of fields whose values are checked here, and what to give.
KINDS = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "text"}


@dataclass
class RecipeArguments:
    """The keys of a recipe that are not training arguments."""

    stage: str  # align, shrink or instruct
    encoder: str  # Whisper model: hub name or folder
    llm: str  # causal LM: hub name or folder
    # a file of rows (JSON lines, CSV, Parquet, tar) or a pattern of several, a folder, the name of a data set on the
    # hub, a mapping (`{path: ..., split: ...}`), or a list of these
    data: Any
    # `their_name: our_name`, as of `rename_columns`: `{sentence: text}`
    columns: dict[str, Any] = field(default_factory=dict)
    check_audio: Any = None  # true: read every clip first and refuse bad ones; `skip`: leave them out and list them
    start_from: str | None = None  # trained adapters to go on from: output folder of a stage, or a hub name
    # whether `start_from` may have been trained on other backbones, of the same widths
    allow_other_backbones: bool = False
    model: dict[str, Any] = field(default_factory=dict)  # fields of SoundwaveConfig
    lora: dict[str, Any] = field(default_factory=dict)  # fields of PEFT's LoraConfig
    # of a LoRA on the encoder, which the paper does not have: `r`, `lora_alpha`, `lora_dropout`, `target_modules`
    encoder_lora: dict[str, Any] | None = None
    # of the frozen LLM, as in transformers (`{quant_method: bitsandbytes, load_in_4bit: true}`)
    quantization: dict[str, Any] = field(default_factory=dict)
    attn_implementation: Any = None  # attention of all parts, or a mapping (`{text_config: eager}`)
    warm_start: bool | None = None  # whether new adapters start from Whisper's own decoder; true by default
    # CTC over the tokens of the data's transcripts and this many others, drawn for each batch; by default over the
    # whole vocabulary, which suits a small data set
    ctc_negatives: int | None = None
    augment: Augmentation = field(default_factory=Augmentation)  # fields of Augmentation
    repeat: dict[str, int] = field(default_factory=dict)  # times a row of this source counts
    # keep the encoder's states in `$SOUNDWAVE_HOME/encoder_states`: at most so many `gigabytes`, and so many augmented
    # `variants` of each clip, one per epoch in turn; by default every epoch computes them
    encoder_cache: EncoderCache | None = None
    # fields of Mixture: each task's share of an epoch; by default each row comes once an epoch
    mixture: Mixture | None = None
    # most seconds of audio in a batch, padding counted; the batch size stays the most clips
    max_batch_seconds: float | None = None
    # read rows while training, each process its share, and do not hold them all in memory; needs `max_steps`; a batch
    # has clips of similar length; put the rows of a manifest in random order
    streaming: bool = False
    eval_data: Any = None  # what to evaluate on: as `data`, or a mapping of several (`{clean: ...}`)
    eval_samples: int = 100  # rows of each set for which the model writes a text that is scored
    # consecutive evaluations without a better `metric_for_best_model` that end the run
    early_stopping_patience: int | None = None
    early_stopping_threshold: float = 0.0  # smallest improvement that counts
    license: str | None = None  # license of the trained weights, for the model card
    written: dict[str, Any] = field(default_factory=dict)  # the keys as they were read

    def __post_init__(self):
        if self.stage not in STAGES:
            raise ValueError(f"`stage` is {self.stage!r}; it must be one of {', '.join(STAGES)}.")
        if self.stage == "instruct" and self.start_from is None:
            raise ValueError("Stage `instruct` trains the LoRA of stage `shrink`: name its folder as `start_from`.")
        if self.check_audio not in (None, True, False, "skip"):
            raise ValueError(f"`check_audio` is {self.check_audio!r}; give true, false or `skip`.")
        for name in ("columns", "repeat"):
            if not isinstance(value := getattr(self, name), dict):
                raise ValueError(f"`{name}` is {value!r}; give `key: value` pairs, or leave it out.")
        counts = {name: getattr(self, name) for name in ("eval_samples", "early_stopping_patience")}
        for name, value in {**counts, **{f"repeat.{source}": times for source, times in self.repeat.items()}}.items():
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"`{name}` is {value!r}; give a whole number, 1 or more.")
        self.sources = self._read_sources()
        self._check_conflicts()
        if self.encoder_cache is not None:
            self._check_cache()

    def _read_sources(self) -> list[Source]:
        """The sources of `data`. If one is to be streamed, all are."""
        sources = list_sources(self.data, self.columns)
        wishes = {source.streaming for source in sources} - {None}
        if len(wishes) > 1 or (self.streaming and False in wishes):
            raise ValueError("`streaming` is true of some sources and false of others: give one value for all.")
        self.streaming = bool(self.streaming or True in wishes)
        return sources

    def _check_conflicts(self):
        """Raise `ValueError` if two keys exclude each other, or the stage does not use a key."""
        stage = STAGES[self.stage]
        if self.streaming and self.check_audio:
            raise ValueError(
                "`check_audio` reads all clips first, and `streaming` does not: run `soundwave-hf data check` once, "
                "or leave one of them out."
            )
        if self.streaming and self.repeat:
            raise ValueError("`repeat` is given, and a stream gives each row once: weigh tasks with `mixture`.")
        if self.warm_start is not None and self.start_from is not None:
            raise ValueError("`warm_start` is given, and `start_from` holds trained adapters: leave one of them out.")
        if self.quantization and not stage.has_llm:
            raise ValueError(f"`quantization` is given, and stage `{self.stage}` has no LLM: leave it out.")
        if self.encoder_lora is not None and self.stage != "align":
            raise ValueError(
                f"`encoder_lora` is given, and stage `{self.stage}` does not train the encoder: give it in stage "
                "`align`. Later stages keep the LoRA of the encoder that `start_from` holds."
            )
        if self.ctc_negatives is not None and "ctc" not in stage.losses:
            raise ValueError(f"`ctc_negatives` is given, and stage `{self.stage}` has no CTC loss: leave it out.")

    def _check_cache(self):
        augments = any(vars(self.augment).values())
        if self.encoder_lora is not None:
            raise ValueError(
                "`encoder_cache` encodes each clip once, and `encoder_lora` changes the encoder at each step: leave "
                "one of them out."
            )
        if self.streaming:
            raise ValueError(
                "`encoder_cache` encodes all clips first, and `streaming` does not: leave one of them out."
            )
        if augments and "variants" not in self.written.get("encoder_cache", {}):
            raise ValueError(
                "`augment` changes clips anew in every epoch, and `encoder_cache` keeps what it computed once: set "
                "`encoder_cache.variants` to the number of versions of each clip, 1 for the same version every epoch."
            )
        if self.encoder_cache.variants > 1 and not augments:
            raise ValueError(
                f"`encoder_cache` has `variants` {self.encoder_cache.variants}, and without `augment` all versions of "
                "a clip are the same: leave it out."
            )

    @cached_property
    def backbones(self) -> tuple[str, str]:
        """Folders of the encoder and the LLM, made or downloaded at the first call."""
        return resolve_backbone(self.encoder), resolve_backbone(self.llm)

    @cached_property
    def start_folder(self) -> str | None:
        """Local folder of `start_from`; a hub name is downloaded at the first call."""
        if self.start_from is None or os.path.isdir(self.start_from):
            return self.start_from
        return resolve_adapter(self.start_from)

    @cached_property
    def trains_encoder(self) -> bool:
        """Whether a LoRA of the encoder trains: a new one, or, in stage `align`, that of `start_from`."""
        if self.stage != "align":
            return False
        return self.encoder_lora is not None or (self.start_from is not None and has_encoder_lora(self.start_folder))

    @property
    def evaluated(self) -> dict[str, Any]:
        """The data sets of `eval_data` by name; a single one without a name is `""`."""
        if self.eval_data is None:
            return {}
        several = isinstance(self.eval_data, dict) and not {"path", "name"} & self.eval_data.keys()
        return self.eval_data if several else {"": self.eval_data}

    @property
    def manifest(self) -> Path:
        """The file, pattern or folder of the first source."""
        return Path(self.sources[0].path)


# ---- where recipes come from ----


def find_recipe(name: str | os.PathLike) -> Path:
    """The file of a recipe: a path, or the name of a recipe of this package (`finetune`,
    `whisper-small_qwen2.5-0.5b/1_align`).

    Raises: `FileNotFoundError` that lists the names.
    """
    path = Path(name)
    if path.is_file():
        return path
    folder = shipped("recipes")
    ours = {
        found.relative_to(folder).with_suffix("").as_posix(): found
        for found in sorted(folder.rglob("*.yaml"))
        if found.parent.name != "accelerate"  # those are for `accelerate launch`
    }
    wanted = path.as_posix().removeprefix("recipes/").removesuffix(".yaml")
    if wanted.startswith("llama-3.1-8b/"):  # the name in version 0.1.0
        wanted = f"whisper-large-v3_{wanted}"
    if wanted in ours:
        return ours[wanted]
    moved = (
        f" That of the shipped weights is now `examples/soundwave-small/recipes/{wanted}.yaml`."
        if wanted in ("1_align", "2_shrink", "3_instruct")
        else ""
    )
    raise FileNotFoundError(f"There is no recipe `{name}`: give a YAML file, or one of {', '.join(ours)}.{moved}")


def load_recipes(recipe: str | os.PathLike | Mapping, overrides: Mapping[str, Any] | None = None) -> list[tuple]:
    """A recipe -> `RecipeArguments` and training arguments; a file may hold several recipes, separated by `---`.

    Args:
        recipe: a YAML file, the name of a recipe of this package, or a mapping.
        overrides: values that replace those of the recipe; `augment.speed` replaces one value of a section.

    Raises: `FileNotFoundError`; `ValueError` for a file that is no recipe, an unknown key and a bad value.
    """
    overrides = dict(overrides or {})
    if isinstance(recipe, Mapping):
        return [check_recipe(recipe, "the recipe", overrides)]
    path = find_recipe(recipe)
    documents = read_yaml_documents(path) or [None]
    several = len(documents) > 1
    if several and (one := [key for key in OF_ONE_RECIPE if key in overrides]):
        raise ValueError(
            f"`{path}` holds {len(documents)} recipes, and `{one[0]}` would be the same in each: change the file."
        )
    names = [f"recipe {number} of `{path}`" if several else f"`{path}`" for number in range(1, len(documents) + 1)]
    return [check_recipe(values, name, overrides) for values, name in zip(documents, names, strict=True)]


def parse_overrides(texts: Mapping[str, str] | None) -> dict[str, Any]:
    """Overrides of the command line, which are YAML texts, as Python values."""
    return {key: read_yaml(text, f"`--{key}`") for key, text in (texts or {}).items()}


def read_recipes(path: str | os.PathLike, overrides: Mapping[str, str] | None = None) -> list[tuple]:
    """`load_recipes` with the overrides of the command line."""
    return load_recipes(path, parse_overrides(overrides))


def read_recipe(path: str | os.PathLike, overrides: Mapping[str, str] | None = None) -> tuple:
    """As `read_recipes`, of a file that holds one."""
    recipes = read_recipes(path, overrides)
    if len(recipes) > 1:
        raise ValueError(f"`{path}` holds {len(recipes)} recipes and one was expected: give them a file each.")
    return recipes[0]


# ---- from values to arguments ----


def check_recipe(values, name: str, overrides: Mapping[str, Any] | None = None) -> tuple:
    """The values of one recipe, called `name` in errors -> `RecipeArguments`, training arguments."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{name} holds no `key: value` lines; `recipes/finetune.yaml` shows how a recipe looks.")
    values, overrides = _plain(values, name), _plain(overrides or {}, "The overrides")
    refuse_secrets(values, name)
    refuse_secrets(overrides, "An override")
    _use_one_name(values, name)
    _use_one_name(overrides, "The command or call")
    for key, value in overrides.items():
        _override(values, key, value)
    kind = arguments_class(values.get("stage"))
    _check_keys(values, kind, name)
    _name_backbones(values)
    missing = [key for key in ("stage", "encoder", "llm", "data", "output_dir") if key not in values]
    if missing:
        raise ValueError(f"{name} lacks {missing}: a recipe needs them.")
    written = dict(values)
    _plan_evaluation(values, name)
    _expand_paths(values)
    ours = {f.name: values.pop(f.name) for f in fields(RecipeArguments) if f.name in values}
    recipe = RecipeArguments(**_typed(_read_sections(ours), RecipeArguments), written=written)
    arguments = kind(**_typed(_with_schedule_numbers(values), kind))
    _check_sampling(recipe, arguments)
    _check_schedule(arguments)
    return recipe, arguments


def arguments_class(stage: str | None) -> type[SoundwaveTrainingArguments]:
    """The class of the training arguments of a stage. Only that of stage III needs TRL."""
    if stage != "instruct":
        return SoundwaveTrainingArguments
    from .sft import SoundwaveSFTConfig

    return SoundwaveSFTConfig


def _plain(value, name: str):
    """A copy of a Python value as YAML can hold it. Raises: `ValueError` for any other type."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each, f"`{key}`") for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, name) for each in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, numbers.Real):  # of numpy
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    raise ValueError(
        f"{name} is a {type(value).__name__}; give text, a number, true or false, a path, a list or a mapping."
    )


def _override(values: dict, key: str, value):
    """Put the value of `key` or `section.key` into a recipe."""
    outer, _, inner = key.partition(".")
    if not inner:
        values[outer] = value
    elif isinstance(values.setdefault(outer, {}), dict):
        values[outer][inner] = value
    else:
        raise ValueError(f"`{key}` is given, and `{outer}` is the single value {values[outer]!r}: give `{outer}`.")


def _use_one_name(values: dict, name: str):
    """Replace other names of a key by its own. Raises: `ValueError` for two values of one key."""
    for other, own in OTHER_NAMES.items():
        if other in values:
            value = values.pop(other)
            if values.setdefault(own, value) != value:
                raise ValueError(
                    f"{name} has two values of one setting: `{other}` is another name of `{own}`. Keep one."
                )


def _check_keys(values: dict, kind: type, name: str):
    """Raise `ValueError` for an unknown key, and for one that a recipe cannot set."""
    known = {f.name for owner in (RecipeArguments, kind) for f in fields(owner)} - NOT_KEYS | OVERRULED.keys()
    _refuse_unknown(values, known, name, f"See the fields of {kind.__name__}.")
    for key in values.keys() & OVERRULED:
        raise ValueError(f"{name} sets `{key}`, which a recipe cannot: {OVERRULED[key]}. Leave it out.")
    attention = values.get("attn_implementation")
    sections = {section: (values.get(section, {}), its_known) for section, its_known in SECTIONS.items()}
    if isinstance(attention, dict):  # transformers ignores any other part
        sections["attn_implementation"] = attention, {"audio_config", "text_config"}
    if (quantization := values.get("quantization", {})) != {}:
        sections["quantization"] = quantization, _quantization_keys(quantization, f"`quantization` of {name}")
    if isinstance(lora := values.get("lora"), dict):
        _check_lora(lora, name)
    for section, (given, its_known) in sections.items():
        _refuse_unknown(given, its_known, f"`{section}` of {name}", f"Its keys are {sorted(its_known)}.")


def _check_lora(given: dict, name: str):
    """Raise `ValueError` for an option of PEFT with which a loaded LoRA would not be the trained one."""
    other = {f.name for f in fields(LoraConfig)} - SECTIONS["lora"]
    for key in (key for key in given if key in other):
        reason = LORA_OVERRULED.get(key, "no test shows that a LoRA with it is loaded as it was trained")
        raise ValueError(f"`lora` of {name} sets `{key}`, which a recipe cannot: {reason}. Leave it out.")
    start = given.get("init_lora_weights", True)
    if not any(start is each or (isinstance(start, str) and start == each) for each in LORA_STARTS):
        raise ValueError(
            f"`lora` of {name} has `init_lora_weights` {start!r}; give true, false or one of "
            f"{', '.join(map(repr, LORA_STARTS[2:]))}. With PEFT's others, loading gives another model than the "
            "trained one, or a step before the training is missing."
        )


def _refuse_unknown(given: dict, known: set[str], name: str, otherwise: str):
    """Raise `ValueError` for an unknown key, with the closest known one."""
    if not isinstance(given, dict):
        raise ValueError(f"{name} is {given!r}; give `key: value` pairs, or leave it out.")
    refuse_unknown(given, known, name, otherwise)


def _quantization_keys(given, name: str) -> set[str]:
    """The keys that a quantizer's config in transformers reads; it ignores others."""
    if not isinstance(given, dict):
        return set()
    bits = next((f"_{bits}bit" for bits in (4, 8) if given.get(f"load_in_{bits}bit")), "")
    method = "bitsandbytes" + bits if bits else given.get("quant_method")
    if method not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        methods = sorted(AUTO_QUANTIZATION_CONFIG_MAPPING.keys() - {"bitsandbytes_4bit", "bitsandbytes_8bit"})
        raise ValueError(
            f"{name} has the `quant_method` {method!r}: give `load_in_4bit: true` or `load_in_8bit: true` for "
            f"bitsandbytes, or a method of {methods}."
        )
    parameters = inspect.signature(AUTO_QUANTIZATION_CONFIG_MAPPING[method].__init__).parameters
    for key, value in given.items():
        if key in parameters and isinstance(parameters[key].default, bool) and not isinstance(value, bool):
            raise ValueError(f"`{key}` in {name} is {value!r}; give true or false.")
    return {"quant_method", *parameters} - {"self", "kwargs"}


def _read_sections(values: dict) -> dict:
    """The keys of a recipe with its sections typed. Fields of `model` and `lora` stay a dict: later ones join them."""
    typed = {name: _typed(values[name], owner) for name, owner in SECTION_CLASSES.items() if name in values}
    if "augment" in typed:
        typed["augment"] = Augmentation(**typed["augment"])
    if "mixture" in typed:
        typed["mixture"] = Mixture(**typed["mixture"]) if typed["mixture"] else None
    if "encoder_cache" in typed:
        typed["encoder_cache"] = EncoderCache(soundwave_home() / "encoder_states", **typed["encoder_cache"])
    return {**values, **typed}


def _typed(values: dict, owner: type) -> dict:
    """Values for the fields of a dataclass, numbers as numbers: YAML reads `1e-4` as text, and 1e3 steps are 1000.

    Raises: `ValueError` for a value that is no number, or not true or false, where the field is; for a missing value.
    """
    kinds = {f.name: _kinds(str(f.type)) for f in fields(owner)}
    return {key: _as_kind(key, value, kinds.get(key, set())) for key, value in values.items()}


def _kinds(annotation: str) -> set[str]:
    """The names in the type of a field: `{"int", "None"}` of `int | None` and of `Optional[int]`."""
    names = set(re.findall(r"\w+", annotation)) - {"class", "typing", "Union"}
    return names - {"Optional", "NoneType"} | {"None"} if names & {"Optional", "NoneType"} else names


def _as_kind(key: str, value, kinds: set[str]):
    """A value for a field of one of `KINDS`. Fields of other types take any value."""
    plain = kinds - {"None"}
    kind = "float" if plain == {"int", "float"} else next(iter(plain)) if len(plain) == 1 else ""
    if kind not in KINDS or (value is None and "None" in kinds):
        return value
    if value is None:
        raise ValueError(f"`{key}` has no value; give {KINDS[kind]}, or leave the key out.")
    if kind == "bool" and not isinstance(value, bool):
        raise ValueError(f"`{key}` is {value!r}; give {KINDS[kind]}.")
    return _as_number(key, value, kind) if kind in ("int", "float") else value


def _as_number(key: str, value, kind: str):
    try:
        number = None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = None
    if number is None:
        raise ValueError(f"`{key}` is {value!r}, and a number was expected.")
    if isinstance(value, int):
        return value
    if kind == "int" and not number.is_integer():
        raise ValueError(f"`{key}` is {value!r}, and a whole number was expected.")
    return number if kind == "float" else int(number)


# ---- values that follow from others ----


def _plan_evaluation(values: dict, name: str):
    """Set when to evaluate, if a recipe says only on what. Raises: `ValueError` if it says only when."""
    for key in ("eval_strategy", "save_strategy", "logging_strategy"):
        if values.get(key) is False:
            values[key] = "no"  # which YAML reads as false
    if values.get("eval_data") is None:
        for key in NEEDS_EVAL_DATA:
            if values.get(key) not in (None, False, "no"):
                raise ValueError(f"{name} sets `{key}` and there is no `eval_data`: say what to evaluate on.")
        return
    if values.get("eval_strategy") == "no":
        raise ValueError(f"{name} has `eval_data` and `eval_strategy` is `no`: leave one of them out.")
    by_epoch = values.get("save_strategy") == "epoch" and "eval_steps" not in values
    if values.setdefault("eval_strategy", "epoch" if by_epoch else "steps") == "steps":
        values.setdefault("eval_steps", values.get("save_steps", 500))  # transformers saves every 500 steps
    if values.get("early_stopping_patience") is not None or values.get("load_best_model_at_end"):
        values.setdefault("metric_for_best_model", "loss")
    for each in values["eval_data"] if isinstance(values["eval_data"], dict) else {}:
        if not re.fullmatch(r"\w+", each) or each in ("ctc", "ce", "exact"):
            raise ValueError(
                f"`eval_data` of {name} names a set {each!r}: give letters, digits and underscores, and not `ctc`, "
                "`ce` or `exact`, with which the names of metrics begin."
            )


def _check_sampling(recipe: RecipeArguments, arguments: SoundwaveTrainingArguments):
    """Raise `ValueError` if `train_sampling_strategy` asks for an order that the recipe's other keys exclude."""
    strategy = arguments.train_sampling_strategy
    wanting = [name for name in ("streaming", "mixture", "max_batch_seconds") if getattr(recipe, name)]
    if wanting and strategy not in ("random", "group_by_length"):
        raise ValueError(
            f"`train_sampling_strategy` is {strategy!r}, and `{wanting[0]}` draws the clips itself: leave it out, or "
            "give `group_by_length`."
        )
    if recipe.streaming and arguments.max_steps <= 0:
        raise ValueError("`streaming` is given, and streams have no end: say with `max_steps` how long to train.")


def _with_schedule_numbers(values: dict) -> dict:
    """Values of `lr_scheduler_kwargs` as numbers where YAML reads them as text: `1e-5`."""
    if not isinstance(given := values.get("lr_scheduler_kwargs"), dict):
        return values
    return {**values, "lr_scheduler_kwargs": {key: _number_if(value) for key, value in given.items()}}


def _number_if(value):
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _check_schedule(arguments: SoundwaveTrainingArguments):
    """Raise `ValueError` if the schedule cannot be made of `lr_scheduler_kwargs`. Training would find out late."""
    name = str(getattr(arguments.lr_scheduler_type, "value", arguments.lr_scheduler_type))
    options = arguments.lr_scheduler_kwargs or {}
    try:
        arguments.learning_rate_schedule(arguments.max_steps if arguments.max_steps > 0 else 1000)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"The schedule `{name}` cannot be made with `lr_scheduler_kwargs` {options!r}: {error}."
        ) from error
    if options and name in ("constant", "constant_with_warmup"):  # which transformers makes without them
        raise ValueError(f"`lr_scheduler_kwargs` is {options!r}, and the schedule `{name}` takes none: leave it out.")


def _name_backbones(values: dict):
    """If a recipe names no encoder or LLM, take those of the adapters that it starts from."""
    lacking = [part for part in ("encoder", "llm") if part not in values]
    if not lacking or not isinstance(values.get("start_from"), str):
        return
    adapter = resolve_adapter(expand_path(values["start_from"], "`start_from`"))
    for part in lacking:
        if (name := trained_backbone(adapter, part).name) is not None:
            values[part] = name


def _expand_paths(values: dict):
    """Expand `~` and `$VARIABLES` in the paths of a recipe; see `expand_path`."""
    for key in PATHS:
        if isinstance(values.get(key), str):
            values[key] = expand_path(values[key], f"`{key}`")
    if isinstance(values.get("start_from"), str):
        values["start_from"] = find_weights(values["start_from"])
    if not isinstance(values["output_dir"], str):
        raise ValueError(f"`output_dir` is {values['output_dir']!r}; give the path of a folder.")
    if isinstance(values.get("eval_data"), dict):
        values["eval_data"] = {
            name: expand_path(path, f"`eval_data.{name}`") if isinstance(path, str) else path
            for name, path in values["eval_data"].items()
        }
    refuse_secrets({key: values.get(key) for key in PATHS}, "The recipe")  # a variable may hold one
    for key in ONCE_AT_HOME:
        if isinstance(values.get(key), str):
            _refuse_only_at_home(key, values[key])


def _refuse_only_at_home(key: str, path: str):
    """Raise `ValueError` if a path exists only in `$SOUNDWAVE_HOME`, where relative paths once started."""
    is_relative = not os.path.isabs(path) and not path.startswith(".")
    if is_relative and not is_there(path) and is_there(str(soundwave_home() / path)):
        other = f", or `./{path}` for a new one in the current folder" if key == "output_dir" else ""
        raise ValueError(
            f"`{key}` is `{path}`, which is not in the current folder but in `{soundwave_home()}`: write "
            f"`$SOUNDWAVE_HOME/{path}`{other}."
        )


__all__ = [
    "RecipeArguments",
    "arguments_class",
    "check_recipe",
    "find_recipe",
    "load_recipes",
    "parse_overrides",
    "read_recipe",
    "read_recipes",
]
