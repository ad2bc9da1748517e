"""`soundwave-hf plan RECIPE --gpus 8x80GB`: whether a recipe fits the GPUs, and how long it takes there.

Only the backbones' configs are loaded. Parameters are counted on the model without weights (PyTorch's meta device),
activations and operations with the formulas of `costs.py`. Communication between GPUs and waiting for data are not
counted.
"""

import copy
import math
import os
import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, LlamaConfig, PreTrainedConfig, Qwen2Config, Qwen3Config, WhisperConfig

from ..data.backbones import backbone_folder, resolve_backbone
from ..data.sources import looks_local, open_rows, transcripts_with_language
from ..data.tiny import TINY_BACKBONES
from ..modeling.backbones_soundwave import AUDIO_TOKEN, audio_token_place, settable_fields
from ..modeling.configuration_soundwave import SoundwaveConfig
from ..modeling.folders_soundwave import LORA_CONFIG
from ..modeling.modeling_soundwave import SoundwaveForConditionalGeneration, SoundwaveForCTC
from .arguments import SoundwaveTrainingArguments
from .build import add_lora, train_encoder
from .costs import FLOAT32, Batch, LoraSizes, Numerics, Part, batch_parts, cache_bytes
from .run import RecipeArguments, read_recipes
from .stages import ADAPTERS, STAGES, freeze_all_but, stage_of
from .watch import describe_duration


GIB = 2**30
KEPT_FREE = 0.08  # of a GPU's memory: for CUDA, NCCL and fragmentation
# Configs of the backbones of this package's recipes, so that they can be planned without the hub.
LARGE_ENCODER = WhisperConfig(
    num_mel_bins=128,
    d_model=1280,
    encoder_layers=32,
    encoder_attention_heads=20,
    encoder_ffn_dim=5120,
    dtype=torch.float16,
)
KNOWN_SIZES = {
    "openai/whisper-large-v3": LARGE_ENCODER,
    "openai/whisper-large-v3-turbo": LARGE_ENCODER,  # only its decoder is smaller
    "openai/whisper-small": WhisperConfig(
        d_model=768, encoder_layers=12, encoder_attention_heads=12, encoder_ffn_dim=3072, dtype=torch.float32
    ),
    "meta-llama/Llama-3.1-8B-Instruct": LlamaConfig(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=131_072,
        dtype=torch.bfloat16,
    ),
    "Qwen/Qwen3-1.7B": Qwen3Config(
        vocab_size=151_936,
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40_960,
        tie_word_embeddings=True,
        dtype=torch.bfloat16,
    ),
    "Qwen/Qwen2.5-0.5B-Instruct": Qwen2Config(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
        dtype=torch.bfloat16,
    ),
}
# Bytes of an optimizer's state for each trained number.
OPTIMIZER_BYTES = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_anyprecision"), 8),
    **dict.fromkeys(("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit"), 2),
    "sgd": 0,
}
# Assumptions without data: lengths of clips, and tokens in them.
USUAL_SECONDS, LONGEST_SECONDS = 8.0, 30.0  # the paper's data; Whisper's window
TRAILING_SILENCE = 0.3  # seconds that a processor adds to a clip
TARGETS_PER_SECOND = 4.0  # tokens of a transcript
POSITIONS_PER_SECOND = 5.0  # the paper's
PROMPT_TOKENS, SHARED_TOKENS = 64, 40  # before the answer; and of these, before the clip
ANSWER_TOKENS = 256  # of `generate`
PAPER_LORA = {"r": 64, "lora_alpha": 16}  # if stage `instruct` starts from a folder that does not exist yet


@dataclass(frozen=True)
class Gpus:
    """Number of GPUs, and what each has.

    Args: memory (`float`): bytes; tflops (`float`): of dense matrix products; utilisation (`float`): share of them
        that training reaches.
    """

    count: int
    memory: float
    tflops: float = 312.0
    utilisation: float = 0.4

    @classmethod
    def read(cls, text: str, **rest) -> "Gpus":
        """`8x80GB`. Raises: `ValueError` for another form."""
        found = re.fullmatch(r"([1-9]\d*)x(\d+(?:\.\d+)?)GB", text)
        if found is None:
            raise ValueError(
                f"`--gpus` is {text!r}; expected the number of GPUs and the memory of each, such as `8x80GB`."
            )
        return cls(int(found[1]), float(found[2]) * GIB, **rest)

    def __post_init__(self):
        if not (self.tflops > 0 and 0 < self.utilisation <= 1):
            raise ValueError(
                f"`--tflops` is {self.tflops:g} and `--utilisation` {self.utilisation:g}; expected more than 0, and a "
                "share of 0 to 1."
            )


# ---- what a recipe trains ----


def backbone_config(name: str) -> PreTrainedConfig:
    """The config of a backbone: from its folder, from the hub or its cache, or from `KNOWN_SIZES`.

    Raises: `FileNotFoundError` if none has it.
    """
    if (folder := _folder(name)) is not None:
        return AutoConfig.from_pretrained(folder)
    try:
        return AutoConfig.from_pretrained(name, local_files_only=name in KNOWN_SIZES)
    except (OSError, ValueError) as error:
        if name in KNOWN_SIZES:
            return copy.deepcopy(KNOWN_SIZES[name])
        raise FileNotFoundError(
            f"There is no config of `{name}`: it is no folder, the hub did not deliver it, and its sizes are not "
            f"among those known here, {sorted(KNOWN_SIZES)}. Give its folder, or fetch its config on a machine "
            f"that reaches the hub: `hf download {name} config.json`. The hub's error: {error}"
        ) from error


def _folder(name: str) -> str | None:
    """The folder of a backbone that is on this machine, or is made here."""
    if name in TINY_BACKBONES or Path(name).expanduser().is_dir() or backbone_folder(name).is_dir():
        return resolve_backbone(name)
    return None


def soundwave_config(recipe: RecipeArguments) -> SoundwaveConfig:
    """The config that a run would have, with the audio token in the LLM's vocabulary."""
    audio, text = backbone_config(recipe.encoder), backbone_config(recipe.llm)
    # Without the tokenizer, assume that the embedding table has no spare rows.
    audio_token_id, rows = text.vocab_size, text.vocab_size + 1
    if (folder := _folder(recipe.llm)) is not None:
        audio_token_id, rows = audio_token_place(folder, AUDIO_TOKEN, text.vocab_size)
    text.vocab_size = rows
    fields = {}
    if _starts_from(recipe, "config.json"):
        start = SoundwaveConfig.from_pretrained(recipe.start_folder)
        fields = {name: getattr(start, name) for name in settable_fields()}
    fields |= recipe.model
    return SoundwaveConfig(audio_config=audio, text_config=text, audio_token_id=audio_token_id, **fields)


def _starts_from(recipe: RecipeArguments, file: str) -> bool:
    return recipe.start_from is not None and os.path.isfile(os.path.join(recipe.start_from, file))


def skeleton(recipe: RecipeArguments, config: SoundwaveConfig) -> nn.Module:
    """The model of a run without its weights. Exactly the stage's parameters train."""
    stage = stage_of(recipe)
    with torch.device("meta"):
        model = (SoundwaveForConditionalGeneration if stage.has_llm else SoundwaveForCTC)(config)
        if recipe.trains_encoder:
            train_encoder(model, recipe)
        if _starts_from(recipe, LORA_CONFIG):
            model = get_peft_model(model, LoraConfig.from_pretrained(recipe.start_folder))
        elif stage.has_llm:
            model = add_lora(model, recipe.lora or (PAPER_LORA if recipe.stage == "instruct" else {}))
    freeze_all_but(model, stage)
    return model


@dataclass(frozen=True)
class Weights:
    """Numbers of trained and frozen parameters by part, and the bytes of the frozen ones."""

    trained: dict[str, int]
    frozen: dict[str, int]
    frozen_bytes: dict[str, float]

    @classmethod
    def count(cls, model: nn.Module, backbone_bytes: dict[str, float]) -> "Weights":
        """Args: backbone_bytes: per number of "encoder" and "LLM"; adapters are in float32."""
        trained, frozen, frozen_bytes = {}, {}, {}
        for name, parameter in model.named_parameters():
            part = part_of(name)
            numbers = trained if parameter.requires_grad else frozen
            numbers[part] = numbers.get(part, 0) + parameter.numel()
            if not parameter.requires_grad:
                size = backbone_bytes.get(part, FLOAT32)
                frozen_bytes[part] = frozen_bytes.get(part, 0.0) + parameter.numel() * size
        return cls(trained, frozen, frozen_bytes)


def part_of(name: str) -> str:
    """The part that the parameter of this name belongs to."""
    if ".original_module." in name:
        return "PEFT's copies of the adapters"
    if "audio_tower" in name and "lora_" in name:
        return "encoder LoRA"
    parts = {"lora_": "LoRA", "audio_tower": "encoder"} | {name: name.replace("_", " ") for name in ADAPTERS}
    return next((part for piece, part in parts.items() if piece in name), "LLM")


# ---- what a run works on ----


@dataclass(frozen=True)
class Speech:
    """Lengths of the clips of a run, in seconds, and where they are from."""

    mean: float
    longest: float
    clips: int | None
    words: int | None
    source: str

    @classmethod
    def of(cls, recipe: RecipeArguments) -> "Speech":
        name = ", ".join(f"`{source.path}`" for source in recipe.sources)
        try:
            if not all(looks_local(source.path) for source in recipe.sources):
                return cls(USUAL_SECONDS, LONGEST_SECONDS, None, None, f"assumed: {name} is not read for a plan")
            rows = open_rows(recipe.sources, repeat=recipe.repeat)
        except FileNotFoundError:
            return cls(USUAL_SECONDS, LONGEST_SECONDS, None, None, f"assumed: there is no {name} yet")
        seconds = rows["seconds"][:]
        words = {word for text, _ in transcripts_with_language(rows) for word in text.split()}
        return cls(statistics.fmean(seconds), max(seconds), len(rows), len(words), name)


def batch_of(recipe: RecipeArguments, clips: int, seconds: float, shares_prefix: bool) -> Batch:
    """A batch of clips of this length, with transcripts of usual length."""
    if recipe.max_batch_seconds is not None:
        clips = max(1, min(clips, int(recipe.max_batch_seconds / seconds)))
    targets = math.ceil(TARGETS_PER_SECOND * seconds)
    mel_frames = math.ceil(100 * (seconds + TRAILING_SILENCE))
    if not STAGES[recipe.stage].has_llm:
        return Batch(clips, mel_frames, targets)
    return Batch(
        clips,
        mel_frames,
        targets,
        positions=math.ceil(POSITIONS_PER_SECOND * seconds),
        tokens=PROMPT_TOKENS + 1 + targets + 1,
        prefix=SHARED_TOKENS if shares_prefix and recipe.stage == "shrink" else 0,
        scored=clips * (targets + 2),
    )


class Plan:
    """What one recipe needs of each GPU.

    `sharded` (`bool`) of its methods: whether the GPUs share the parameters (FSDP2) or each has all (DDP).
    """

    def __init__(self, recipe: RecipeArguments, arguments: SoundwaveTrainingArguments, gpus: Gpus):
        self.recipe, self.arguments, self.gpus = recipe, arguments, gpus
        self.stage, self.config, self.speech = stage_of(recipe), soundwave_config(recipe), Speech.of(recipe)
        self.model = skeleton(recipe, self.config)
        self.llm = llm_sizes(self.model) if self.stage.has_llm else {}
        self.encoder = lora_sizes(self.model.audio_tower) if recipe.trains_encoder else {}
        self.backbone_bytes = {"encoder": self._bytes_of("audio_config"), "LLM": self._bytes_of("text_config")}
        self.weights = Weights.count(self.model, self.backbone_bytes)
        if recipe.quantization:
            saved = self.backbone_bytes["LLM"] - quantized_bytes(recipe.quantization)
            self.weights.frozen_bytes["LLM"] -= self.llm["matrices"] * saved

    def _bytes_of(self, part: str) -> int:
        if self.arguments.bf16:
            return torch.bfloat16.itemsize
        return (getattr(self.config, part).dtype or torch.float32).itemsize

    @property
    def steps(self) -> int | None:
        """Of the whole run; None if the recipe counts epochs and the data is not there."""
        if self.arguments.max_steps > 0:
            return self.arguments.max_steps
        if self.speech.clips is None:
            return None
        return math.ceil(self.arguments.num_train_epochs * self.speech.clips / self.clips_of_step)

    @property
    def clips_of_step(self) -> int:
        arguments = self.arguments
        return self.gpus.count * arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps

    def numerics(self) -> Numerics:
        attention = self.recipe.attn_implementation
        of_part = {"audio_config": "encoder", "": "adapters", "text_config": "llm"}
        chosen = attention if isinstance(attention, dict) else dict.fromkeys(of_part, attention)
        eager = {part for key, part in of_part.items() if chosen.get(key) == "eager"}
        return Numerics(
            torch.bfloat16.itemsize if self.arguments.bf16 or self.arguments.fp16 else FLOAT32,
            frozenset(eager),
            self.model.peft_config["default"].lora_dropout if self.stage.has_llm else 0.0,
            bool(self.arguments.activation_checkpointing),
        )

    def batch(self, seconds: float, sharded: bool) -> Batch:
        shares_prefix = not sharded and not self.arguments.activation_checkpointing
        return batch_of(self.recipe, self.arguments.per_device_train_batch_size, seconds, shares_prefix)

    def heaviest_batch(self, sharded: bool) -> Batch:
        """The batch of the longest clips, or, with `max_batch_seconds`, of the most clips, whichever keeps more."""
        lengths = {self.speech.longest}
        if (limit := self.recipe.max_batch_seconds) is not None:
            lengths.add(min(self.speech.longest, limit / self.arguments.per_device_train_batch_size))
        batches = [self.batch(seconds, sharded) for seconds in lengths]
        return max(batches, key=lambda batch: sum(part.kept for part in self.parts(batch)))

    def parts(self, batch: Batch) -> list[Part]:
        """The costs of one batch, without the encoder if its states are cached."""
        candidates = self.config.text_config.vocab_size - 1
        if self.recipe.ctc_negatives is not None and self.speech.words is not None:
            candidates = min(candidates, self.recipe.ctc_negatives + self.speech.words)
        numerics, encoder_bytes = self.numerics(), self.backbone_bytes["encoder"]
        parts = list(
            batch_parts(self.stage, self.config, batch, numerics, encoder_bytes, candidates, self.llm, self.encoder)
        )
        return parts if self.recipe.encoder_cache is None else parts[1:]

    @property
    def step_flops(self) -> dict[str, float]:
        """Of each part, in one step of one GPU, for clips of the mean length."""
        grouped = self.arguments.train_sampling_strategy == "group_by_length"
        batch = self.batch(self.speech.mean if grouped else self.speech.longest, sharded=False)
        accumulated = self.arguments.gradient_accumulation_steps
        return {part.name: accumulated * (part.forward + part.backward) for part in self.parts(batch)}

    @property
    def step_seconds(self) -> float:
        return sum(self.step_flops.values()) / (self.gpus.tflops * 1e12 * self.gpus.utilisation)

    def memory(self, sharded: bool) -> dict[str, float]:
        """Bytes of one GPU at the peak of a step with its heaviest batch, by their use."""
        share = self.gpus.count if sharded else 1
        # `recipes/accelerate/fsdp2.yaml` keeps the whole encoder on each GPU.
        frozen = {
            f"frozen weights: {part}": size if part == "encoder" else size / share
            for part, size in self.weights.frozen_bytes.items()
        }
        numbers = sum(self.weights.trained.values())
        mixed = self.numerics().mixed
        parts = self.parts(self.heaviest_batch(sharded))
        # Temporary memory is used at different times, that of the optimizer after the gradients.
        passing = max(numbers * FLOAT32 / share, *(part.passing for part in parts))
        return {
            **frozen,
            "trained weights": numbers * FLOAT32 / share,
            "gradients": numbers * FLOAT32 / share,
            f"optimizer ({self.arguments.optim.value})": numbers * self._optimizer_bytes() / share,
            "gradient all-reduce buffers": 0 if sharded or self.gpus.count == 1 else numbers * FLOAT32,
            "gathered parameters": self._gathered() if share > 1 else 0,
            "trained weights in half precision": numbers * self.numerics().size if mixed else 0,
            **{f"saved activations: {part.name}": part.kept for part in parts if part.kept},
            "temporary buffers (peak)": passing,
            "reserve": KEPT_FREE * self.gpus.memory,
        }

    def fits(self, sharded: bool) -> bool:
        return sum(self.memory(sharded).values()) <= self.gpus.memory

    def changed(self, **values) -> "Plan":
        """The plan of the same recipe with other training arguments."""
        plan = copy.copy(self)
        plan.arguments = copy.copy(self.arguments)
        vars(plan.arguments).update(values)
        return plan

    def _optimizer_bytes(self) -> int:
        name = self.arguments.optim.value
        if name not in OPTIMIZER_BYTES:
            raise ValueError(f"`optim` is `{name}`, and a plan knows the states of {sorted(OPTIMIZER_BYTES)}.")
        return OPTIMIZER_BYTES[name]

    def _gathered(self) -> float:
        """Bytes of the layer at work, of the next one, and of the embedding tables."""
        size, text = self.backbone_bytes["LLM"], self.config.text_config
        table = text.vocab_size * text.hidden_size * size
        if not self.stage.has_llm:
            return table
        return (
            2 * self.llm["matrices"] * size / text.num_hidden_layers + (1 if text.tie_word_embeddings else 2) * table
        )


def quantized_bytes(quantization: dict) -> float:
    """Bytes per number in a quantized matrix of the LLM. Raises: `ValueError` for others than bitsandbytes."""
    sizes = {"load_in_4bit": 0.5 + FLOAT32 / 64, "load_in_8bit": 1.0}  # 4 bits, and a scale for each 64 numbers
    for key, size in sizes.items():
        if quantization.get(key):
            return size
    raise ValueError(f"`quantization` is {quantization!r}, and a plan knows the sizes of {' and '.join(sizes)}.")


def llm_sizes(model: nn.Module) -> dict:
    """The sizes of an LLM with LoRA that `llm_part` needs."""
    language = model.get_base_model().model.language_model
    tables = {id(module.weight) for module in language.modules() if isinstance(module, nn.Embedding)}
    matrices = sum(
        parameter.numel()
        for name, parameter in language.named_parameters()
        if "lora_" not in name and parameter.dim() == 2 and id(parameter) not in tables
    )
    return {"matrices": matrices, **lora_sizes(language)}


def lora_sizes(part: nn.Module) -> dict:
    """The sizes of the LoRA of an LLM or an encoder; empty if it has none."""
    layers = {name: module for name, module in part.named_modules() if hasattr(module, "lora_A")}
    if not layers:
        return {}
    # If layers differ, the widest module of a name stands for all.
    inputs: dict[str, int] = {}
    for name, module in layers.items():
        last = name.rpartition(".")[2]
        inputs[last] = max(inputs.get(last, 0), module.in_features)
    rank = max(max(module.r.values()) for module in layers.values())
    weights = sum(parameter.numel() for name, parameter in part.named_parameters() if "lora_" in name)
    return {"lora_weights": weights, "lora": LoraSizes(rank, inputs)}


# ---- what is said of it ----


def knobs(plan: Plan) -> Iterator[tuple[str, Plan]]:
    """Changes that need less memory and do not change what is learnt, each with its plan."""
    arguments = plan.arguments
    if plan.stage.has_llm and not arguments.activation_checkpointing:
        yield "activation_checkpointing: true", plan.changed(activation_checkpointing=True)
    clips, accumulated = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
    while clips > 1 and clips % 2 == 0:
        clips, accumulated = clips // 2, accumulated * 2
        change = {"per_device_train_batch_size": clips, "gradient_accumulation_steps": accumulated}
        yield ", ".join(f"{key}: {value}" for key, value in change.items()), plan.changed(**change)


def report(name: str, plan: Plan) -> str:
    """A plan as text."""
    return "\n\n".join([_heading(name, plan), _memory_table(plan), _verdicts(plan), _time_table(plan), _notes(plan)])


def _heading(name: str, plan: Plan) -> str:
    arguments, speech, gpus = plan.arguments, plan.speech, plan.gpus
    trained, frozen = plan.weights.trained, plan.weights.frozen
    each = ", ".join(f"{part} {_millions(number)}" for part, number in trained.items())
    others = ", ".join(f"{part} {_millions(number)}" for part, number in frozen.items())
    machines = f"{gpus.count} GPU{'s' * (gpus.count > 1)}"
    return "\n".join(
        [
            f"{name}: stage {plan.recipe.stage} on {machines} of {gpus.memory / GIB:g} GB",
            f"trains {_millions(sum(trained.values()))}: {each}",
            f"frozen {_millions(sum(frozen.values()))}: {others}",
            f"{arguments.per_device_train_batch_size} clips x {arguments.gradient_accumulation_steps} accumulated x "
            f"{machines} = {plan.clips_of_step:,} a step",
            f"clips of {speech.mean:.1f} s, {speech.longest:.1f} s at most ({speech.source})",
        ]
    )


def _memory_table(plan: Plan) -> str:
    columns = [plan.memory(sharded) for sharded in _ways(plan)]
    lines = [_line("GiB of a GPU, at its heaviest batch", *_ways(plan).values())]
    for row in columns[0]:
        if any(column[row] for column in columns):
            lines.append(_line(f"  {row}", *(f"{column[row] / GIB:.2f}" for column in columns)))
    return "\n".join([*lines, _line("together", *(f"{sum(column.values()) / GIB:.2f}" for column in columns))])


def _ways(plan: Plan) -> dict[bool, str]:
    """How the GPUs can share the work: whether parameters are sharded, and the name of that."""
    return {False: "alone"} if plan.gpus.count == 1 else {False: "DDP", True: "FSDP2"}


def _verdicts(plan: Plan) -> str:
    lines = []
    for sharded, way in _ways(plan).items():
        if plan.fits(sharded):
            lines.append(f"{way}: fits")
            continue
        fitting = [(knob, other) for knob, other in knobs(plan) if other.fits(sharded)]
        helps = "; ".join(f"`{knob}` ({_total(other, sharded):.1f} GiB)" for knob, other in fitting[:2])
        least = min((_total(other, sharded) for _, other in knobs(plan)), default=_total(plan, sharded))
        lines.append(
            f"{way}: does not fit, {_total(plan, sharded):.1f} of {plan.gpus.memory / GIB:g} GiB. "
            + (f"It does with {helps}." if fitting else f"Checkpointing or a smaller batch leave {least:.1f} GiB.")
        )
    return "\n".join(lines)


def _total(plan: Plan, sharded: bool) -> float:
    return sum(plan.memory(sharded).values()) / GIB


def _time_table(plan: Plan) -> str:
    flops, seconds, gpus = plan.step_flops, plan.step_seconds, plan.gpus
    lines = [_line("a step on each GPU, at clips of the mean length", "TFLOP", "s")]
    for part, number in flops.items():
        share = seconds * number / sum(flops.values())
        lines.append(_line(f"  {part}", f"{number / 1e12:,.1f}", f"{share:.2f}"))
    lines.append(_line("together", f"{sum(flops.values()) / 1e12:,.1f}", f"{seconds:.2f}"))
    rate = f"{gpus.tflops:g} TFLOP/s, of which {gpus.utilisation:.0%} are reached"
    if plan.steps is None:
        return "\n".join(
            [*lines, f"with {rate}; set `max_steps`, or build the data, to get the time of the whole run"]
        )
    hours = plan.steps * plan.clips_of_step * plan.speech.mean / 3600
    whole = describe_duration(plan.steps * seconds)
    return "\n".join([*lines, f"{plan.steps:,} steps, {hours:,.0f} h of audio: {whole} with {rate}"])


def _notes(plan: Plan) -> str:
    second = f"{TARGETS_PER_SECOND:g} tokens of transcript"
    if not plan.stage.has_llm:
        return f"Assumed of a second of speech: {second}."
    if plan.recipe.stage == "instruct" and not _starts_from(plan.recipe, LORA_CONFIG):
        lora = f" `{plan.recipe.start_from}` is not there yet: its LoRA is taken for one of rank {PAPER_LORA['r']}."
    else:
        lora = ""
    batch = plan.heaviest_batch(sharded=False)
    answers = batch.clips * (batch.prefix + batch.merged + ANSWER_TOKENS)
    cache = cache_bytes(plan.config, answers, plan.backbone_bytes["LLM"]) / GIB
    return (
        f"Assumed of a second of speech: {second} and {POSITIONS_PER_SECOND:g} positions; {PROMPT_TOKENS} tokens of "
        f"prompt.{lora}\nTraining keeps no cache. `generate` for the same {batch.clips} clips, with answers of "
        f"{ANSWER_TOKENS} tokens, holds {cache:.2f} GiB of keys and values."
    )


def _line(name: str, *values: str) -> str:
    return f"{name:<56}" + "".join(f"{value:>11}" for value in values)


def _millions(number: int) -> str:
    return f"{number / 1e6:,.2f} M"


def plan_recipe(path: str | os.PathLike, gpus: Gpus, overrides: dict[str, str] | None = None):
    """Print the plan of each recipe of a file; see `read_recipes` for the overrides.

    Raises: `ValueError` and `FileNotFoundError` as a run does, and if the size of a backbone or the state of an
    optimizer is not known.
    """
    for recipe, arguments in read_recipes(path, overrides):
        print(report(str(path), Plan(recipe, arguments, gpus)), end="\n\n")


__all__ = ["Gpus", "Plan", "Weights", "backbone_config", "plan_recipe", "report", "skeleton", "soundwave_config"]
