"""A recipe: YAML files and `--key value` overrides -> two typed argument classes, every key checked."""

import difflib
import inspect
import os
import re
from dataclasses import dataclass, field, fields
from functools import cached_property
from glob import glob
from pathlib import Path
from typing import Any

import yaml
from peft import LoraConfig
from transformers import HfArgumentParser, PreTrainedConfig, TrainingArguments
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING
from trl import SFTConfig

from ..adapters import resolve_adapter
from ..data.backbones import resolve_backbone
from ..data.sources import Source, list_sources
from ..modeling.configuration_soundwave import SoundwaveConfig
from ..modeling.folders_soundwave import trained_backbone
from ..paths import expand_path, soundwave_home
from .arguments import SoundwaveTrainingArguments
from .augment import Augmentation
from .encoder_cache import EncoderCache
from .mixture import Mixture
from .secret_values import hide_secrets, refuse_secrets
from .stages import STAGES


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
    "hub_token": "it would be written down; log in with `hf auth login`, or set `HF_TOKEN`",
    "dataloader_persistent_workers": "workers that outlive an epoch draw its augmentation again",
    "dataset_kwargs": "the collator prepares the data",
    "label_names": "the stage has its labels",
    "max_length": "nothing is ever cut",
    "remove_unused_columns": "the collator reads every column",
    **dict.fromkeys(("assistant_only_loss", "completion_only_loss"), "the collator labels the answers"),
    "logging_nan_inf_filter": "a loss that is no number ends the run",
    **dict.fromkeys(("dataset_text_field", "dataset_num_proc"), "the rows have columns of their own"),
    "resume_from_checkpoint": "a run goes on from the last checkpoint in its `output_dir`",
}
# Keys that are paths where they are text: relative ones begin at the current folder.
ONCE_AT_HOME = ("data", "start_from", "output_dir")
PATHS = (*ONCE_AT_HOME, "eval_data", "encoder", "llm")
PATHS += ("deepspeed", "fsdp_config", "accelerator_config", "chat_template_path")  # files of settings
NEEDS_EVAL_DATA = ("eval_strategy", "eval_steps", "eval_on_start", "eval_samples", "load_best_model_at_end")
NEEDS_EVAL_DATA += ("metric_for_best_model", "early_stopping_patience", "early_stopping_threshold")
# Keys in which the recipes of one file differ.
OF_ONE_RECIPE = ("stage", "start_from", "output_dir")


# Keys of TRL that the trainer of stages I and II does not read.
SFT_KEYS = {f.name for f in fields(SFTConfig)} - {f.name for f in fields(TrainingArguments)} - OVERRULED.keys()
NOT_KEYS = {"written"}


@dataclass
class RecipeArguments:
    """What a recipe says beside the keys of `SoundwaveTrainingArguments`."""

    stage: str = field(metadata={"help": "align, shrink or instruct"})
    encoder: str = field(metadata={"help": "Whisper model: hub name or folder"})
    llm: str = field(metadata={"help": "causal LM: hub name or folder"})
    data: Any = field(
        metadata={
            "help": "a file of rows (JSON lines, CSV, Parquet, tar) or a pattern of several, a folder, the name of a "
            "data set on the hub, a mapping (`{path: ..., split: ...}`), or a list of these"
        }
    )
    columns: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "`their_name: our_name`, as of `rename_columns`: `{sentence: text}`"}
    )
    check_audio: Any = field(
        default=None,
        metadata={"help": "true: read every clip first and refuse bad ones; `skip`: leave them out and list them"},
    )
    start_from: str | None = field(
        default=None, metadata={"help": "trained adapters to go on from: output folder of a stage, or a hub name"}
    )
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

    eval_data: Any = field(
        default=None, metadata={"help": "what to evaluate on: as `data`, or a mapping of several (`{clean: ...}`)"}
    )
    eval_samples: int = field(
        default=100, metadata={"help": "rows of each set that the model is asked, for the scores of what it writes"}
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "evaluations on end without a better `metric_for_best_model` that end the run"}
    )
    early_stopping_threshold: float = field(default=0.0, metadata={"help": "least that counts as better"})
    license: str | None = field(default=None, metadata={"help": "of what is trained, for its model card"})

    written: dict[str, Any] = field(default_factory=dict, metadata={"help": "the keys as they were read"})

    def __post_init__(self):
        if self.stage not in STAGES:
            raise ValueError(f"`stage` is {self.stage!r}; it must be one of {', '.join(STAGES)}.")
        if self.stage == "instruct" and self.start_from is None:
            raise ValueError("Stage `instruct` trains the LoRA of stage `shrink`: name its folder as `start_from`.")
        for name in ("warm_start", "streaming", "allow_other_backbones"):
            if (value := getattr(self, name)) not in (None, True, False):
                raise ValueError(f"`{name}` is {value!r}; give true or false.")
        if self.check_audio not in (None, True, False, "skip"):
            raise ValueError(f"`check_audio` is {self.check_audio!r}; give true, false or `skip`.")
        self.sources = self._read_sources()
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
        for name in ("eval_samples", "early_stopping_patience"):
            if (value := getattr(self, name)) is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"`{name}` is {value!r}; give a whole number, 1 or more.")
        Mixture(**self.mixture)  # which checks its values

    def _read_sources(self) -> list[Source]:
        """The sources of `data`; one that is to be streamed makes all streams."""
        sources = list_sources(self.data, self.columns)
        wishes = {source.streaming for source in sources} - {None}
        if len(wishes) > 1 or (self.streaming and False in wishes):
            raise ValueError("`streaming` is true of some sources and false of others: give one for all.")
        self.streaming = bool(self.streaming or True in wishes)
        if self.streaming and self.check_audio:
            raise ValueError(
                "`check_audio` is given, and reading all clips beforehand is what `streaming` avoids: run "
                "`soundwave-hf data check` once, or leave one of them out."
            )
        return sources

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

    @cached_property
    def start_folder(self) -> str | None:
        """Local folder of `start_from`, downloaded at the first call where that is a name of the hub."""
        if self.start_from is None or os.path.isdir(self.start_from):
            return self.start_from
        return resolve_adapter(self.start_from)

    @property
    def evaluated(self) -> dict[str, Any]:
        """The data sets of `eval_data` by name; one that has none is `""`."""
        if self.eval_data is None:
            return {}
        several = isinstance(self.eval_data, dict) and not {"path", "name"} & self.eval_data.keys()
        return self.eval_data if several else {"": self.eval_data}

    @property
    def manifest(self) -> Path:
        """The file, pattern or folder of the first source."""
        return Path(self.sources[0].path)


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
    return [check_recipe(values, name, overrides or {}) for values, name in zip(documents, names, strict=True)]


def read_recipe(path: str | os.PathLike, overrides: dict[str, str] | None = None) -> tuple:
    """As `read_recipes`, of a file that holds one."""
    recipes = read_recipes(path, overrides)
    if len(recipes) > 1:
        raise ValueError(f"`{path}` holds {len(recipes)} recipes and one was expected: give them a file each.")
    return recipes[0]


def check_recipe(values, path: str, overrides: dict[str, str]) -> tuple:
    """The keys of one recipe, of the name `path`, -> its two argument classes."""
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no `key: value` lines; see `recipes/1_align.yaml` for one that does.")
    refuse_secrets(values, path)
    for key, value in overrides.items():
        refuse_secrets({key: value}, "The command line")
        _override(values, key, _read_yaml(value, f"`--{key}`"))
    known = {f.name for c in (RecipeArguments, SoundwaveTrainingArguments) for f in fields(c)} - NOT_KEYS
    if values.get("stage") != "instruct":
        known -= SFT_KEYS
    _refuse_unknown(values, known, path, f"See the fields of {SoundwaveTrainingArguments.__name__}.")
    for section, its_known in SECTIONS.items():
        section_name = f"`{section}` of {path}"
        _refuse_unknown(values.get(section, {}), its_known, section_name, f"Its keys are {sorted(its_known)}.")
    names = ("activation_checkpointing", "gradient_checkpointing")
    if len({values[name] for name in names if name in values}) > 1:
        raise ValueError(f"{path} has two values: `{names[1]}` is the older name of `{names[0]}`. Keep one.")
    _check_quantization(values.get("quantization", {}), f"`quantization` of {path}")
    if isinstance(attention := values.get("attn_implementation"), dict):
        # The library passes over any other part.
        parts = {"audio_config", "text_config"}
        _refuse_unknown(attention, parts, f"`attn_implementation` of {path}", f"Its keys are {sorted(parts)}.")
    for key in set(values) & set(OVERRULED):
        raise ValueError(f"{path} sets `{key}`, which a recipe cannot: {OVERRULED[key]}. Leave it out.")
    _name_backbones(values)
    missing = [name for name in ("stage", "encoder", "llm", "data", "output_dir") if name not in values]
    if missing:
        raise ValueError(f"{path} lacks {missing}: a recipe needs them.")
    written = dict(values)
    for key in ("eval_strategy", "save_strategy", "logging_strategy"):
        if values.get(key) is False:
            values[key] = "no"  # which YAML reads as false
    _plan_evaluation(values, path)
    _expand_paths(values)
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


def _plan_evaluation(values: dict, path: str):
    """Say when to evaluate, where a recipe says on what alone. Raises: `ValueError` where it says only the other."""
    if values.get("eval_data") is None:
        for key in NEEDS_EVAL_DATA:
            if values.get(key) not in (None, False, "no"):
                raise ValueError(f"{path} sets `{key}` and there is no `eval_data`: say what to evaluate on.")
        return
    if values.get("eval_strategy") == "no":
        raise ValueError(f"{path} has `eval_data` and `eval_strategy` is `no`: leave one of them out.")
    saves = values.get("save_strategy")
    by_epoch = saves == "epoch" and "eval_steps" not in values
    strategy = values.setdefault("eval_strategy", "epoch" if by_epoch else "steps")
    if strategy == "steps" and "save_steps" in values:
        values.setdefault("eval_steps", values["save_steps"])
    if strategy == "steps":
        values.setdefault("eval_steps", 500)  # as often as the library saves
    if values.get("early_stopping_patience") is not None or values.get("load_best_model_at_end"):
        values.setdefault("metric_for_best_model", "loss")
    names = values["eval_data"] if isinstance(values["eval_data"], dict) else {}
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"\w+", name):
            raise ValueError(f"`eval_data` of {path} names a set {name!r}: give letters, digits and underscores.")
        if name in ("ctc", "ce", "exact"):
            raise ValueError(
                f"`eval_data` of {path} names a set `{name}`, with which metrics begin: name it otherwise."
            )


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
        # Its own text would show the line, and with it what a key may hide.
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or "no YAML"
        line = "" if mark is None else f" in line {mark.line + 1}"
        raise ValueError(f"{name} cannot be read as YAML: {hide_secrets(problem)}{line}.") from None


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


def _name_backbones(values: dict):
    """Where a recipe names no encoder or LLM, they are those of the adapters that it starts from."""
    lacking = [part for part in ("encoder", "llm") if part not in values]
    if not lacking or not isinstance(values.get("start_from"), str):
        return
    adapter = resolve_adapter(expand_path(values["start_from"], "`start_from`"))
    for part in lacking:
        if (name := trained_backbone(adapter, part).name) is not None:
            values[part] = name


def _expand_paths(values: dict):
    """Replace the paths of a recipe by what they stand for; see `expand_path`."""
    for key in PATHS:
        if isinstance(values.get(key), str):
            values[key] = expand_path(values[key], f"`{key}`")
    if not isinstance(values["output_dir"], str):
        raise ValueError(f"`output_dir` is {values['output_dir']!r}; give the path of a folder.")
    if isinstance(values.get("eval_data"), dict):
        values["eval_data"] = {
            name: expand_path(path, f"`eval_data.{name}`") if isinstance(path, str) else path
            for name, path in values["eval_data"].items()
        }
    refuse_secrets({key: values.get(key) for key in PATHS}, "The recipe")  # which a variable may hold
    for key in ONCE_AT_HOME:
        if isinstance(values.get(key), str):
            _refuse_only_at_home(key, values[key])


def _refuse_only_at_home(key: str, path: str):
    """Raise `ValueError` where a path is only found at `$SOUNDWAVE_HOME`, at which relative ones began once."""
    if not os.path.isabs(path) and not path.startswith(".") and not glob(path) and glob(str(soundwave_home() / path)):
        other = f", or `./{path}` for a new one in the current folder" if key == "output_dir" else ""
        raise ValueError(
            f"`{key}` is `{path}`, which is not in the current folder but in `{soundwave_home()}`: write "
            f"`$SOUNDWAVE_HOME/{path}`{other}."
        )


__all__ = ["RecipeArguments", "check_recipe", "read_recipe", "read_recipes"]
