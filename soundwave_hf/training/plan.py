"""`soundwave-hf plan RECIPE --gpus 8x80GB`: whether a recipe fits the GPUs, and how long it takes, before any is rented.

Nothing is loaded but the backbones' configs: parameters are counted on the model itself without its weights (PyTorch's
meta device), activations and operations by the formulas of `costs.py`. Not counted: communication between GPUs, and
waiting for data.
"""

import json
import os
import re
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from peft import LoraConfig
from transformers import AutoConfig, LlamaConfig, PreTrainedConfig, WhisperConfig

from ..data.backbones import backbone_folder, hub_answers, resolve_backbone
from ..data.manifest import read_rows
from ..data.tiny import TINY_BACKBONES
from ..modeling.backbones_soundwave import AUDIO_TOKEN, LORA_FILES, audio_token_place
from ..modeling.configuration_soundwave import SoundwaveConfig
from ..modeling.modeling_soundwave import SoundwaveForConditionalGeneration, SoundwaveForCTC
from .arguments import SoundwaveTrainingArguments
from .costs import Batch, LoraSizes, Numerics, Part, batch_parts, cache_bytes
from .run import RecipeArguments, add_lora, read_recipes
from .stages import STAGES, freeze_all_but
from .watch import describe_duration


GIB = 2**30
KEPT_FREE = 0.08  # of a GPU's memory: CUDA, NCCL, and what the allocator cannot join
# Sizes of backbones that are large, or that the hub gives to those alone who have agreed to a licence.
KNOWN_SIZES = {
    "openai/whisper-large-v3": WhisperConfig(
        vocab_size=51_866,
        num_mel_bins=128,
        d_model=1280,
        encoder_layers=32,
        encoder_attention_heads=20,
        encoder_ffn_dim=5120,
        decoder_layers=32,
        decoder_attention_heads=20,
        decoder_ffn_dim=5120,
        dtype=torch.float16,
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
}
# Bytes of an optimizer's state for each trained number.
OPTIMIZER_BYTES = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_anyprecision"), 8),
    **dict.fromkeys(("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit"), 2),
    "sgd": 0,
}
# Where no manifest says: lengths of clips, and what is said in them.
USUAL_SECONDS, LONGEST_SECONDS = 8.0, 30.0  # the paper's data; Whisper's window
TRAILING_SILENCE = 0.3  # what a processor puts behind a clip
TARGETS_PER_SECOND = 4.0  # tokens of a transcript
POSITIONS_PER_SECOND = 5.0  # the paper's
PROMPT_TOKENS = 64  # before the answer


@dataclass(frozen=True)
class Gpus:
    """How many GPUs, and what each has.

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
    """The config of a backbone: of its folder, of the hub or its cache, or its sizes as they are known here.

    Raises: `FileNotFoundError` where none has it.
    """
    if (folder := _folder(name)) is not None:
        return AutoConfig.from_pretrained(folder)
    try:
        return AutoConfig.from_pretrained(name, local_files_only=name in KNOWN_SIZES or not hub_answers())
    except (OSError, ValueError) as error:
        if name in KNOWN_SIZES:
            return copy.deepcopy(KNOWN_SIZES[name])
        raise FileNotFoundError(
            f"There is no config of `{name}`: it is no folder, the hub did not deliver it, and its sizes are not "
            f"among those known here, {sorted(KNOWN_SIZES)}. Fetch it: `soundwave-hf backbones {name}`."
        ) from error


def _folder(name: str) -> str | None:
    """Where a backbone lies that is here already, or is made here."""
    if name in TINY_BACKBONES or Path(name).expanduser().is_dir() or backbone_folder(name).is_dir():
        return resolve_backbone(name)
    return None


def soundwave_config(recipe: RecipeArguments) -> SoundwaveConfig:
    """The config that a run would have, with the audio token in the LLM's vocabulary."""
    audio, text = backbone_config(recipe.encoder), backbone_config(recipe.llm)
    # Without a tokenizer here: as in an LLM whose table has no spare rows.
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
    return recipe.start_from is not None and os.path.isfile(os.path.join(recipe.start_folder, file))


def skeleton(recipe: RecipeArguments, config: SoundwaveConfig) -> nn.Module:
    """The model of a run without its weights, and exactly the stage's parameters set to train."""
    stage = STAGES[recipe.stage]
    with torch.device("meta"):
        model = (SoundwaveForConditionalGeneration if stage.has_llm else SoundwaveForCTC)(config)
        if _starts_from(recipe, "adapter_config.json"):
            model = get_peft_model(model, LoraConfig.from_pretrained(recipe.start_folder))
        elif stage.has_llm:
            model = add_lora(model, recipe.lora or PAPER_LORA if recipe.stage == "instruct" else recipe.lora)
    freeze_all_but(model, stage)
    return model


@dataclass(frozen=True)
class Weights:
    """Numbers in the parameters of a model, and the bytes of those that are frozen, by the part they belong to."""

    trained: dict[str, int]
    frozen: dict[str, int]
    frozen_bytes: dict[str, float]

    @classmethod
    def count(cls, model: nn.Module, backbone_bytes: dict[str, float]) -> "Weights":
        """Args: backbone_bytes: of a number of "encoder" and "LLM"; adapters are in float32."""
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
    parts = {"lora_": "LoRA", "audio_tower": "encoder"} | {name: name.replace("_", " ") for name in ADAPTERS}
    return next((part for piece, part in parts.items() if piece in name), "LLM")


# ---- what a run works on ----


@dataclass(frozen=True)
class Speech:
    """Lengths of the clips of a run, in seconds, and what says so."""

    mean: float
    longest: float
    clips: int | None
    words: int | None
    source: str

    @classmethod
    def of(cls, recipe: RecipeArguments) -> "Speech":
        if not recipe.manifest.is_file():
            told = f"assumed: there is no `{recipe.manifest}` yet"
            return cls(USUAL_SECONDS, LONGEST_SECONDS, None, None, told)
        rows = [row for row in read_rows(recipe.manifest) for _ in range(recipe.repeat.get(row.get("source"), 1))]
        seconds = [row["seconds"] for row in rows]
        words = {word for row in rows for word in row["text"].split()}
        return cls(statistics.fmean(seconds), max(seconds), len(rows), len(words), f"`{recipe.manifest}`")


def batch_of(recipe: RecipeArguments, clips: int, seconds: float, shares_prefix: bool) -> Batch:
    """A batch of clips of this length and of transcripts as they usually are."""
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
    """What one recipe takes of each GPU.

    Args: checkpointing (`bool`, *optional*), clips (`int`, *optional*): in place of the recipe's own.
    """

    def __init__(self, recipe: RecipeArguments, arguments: SoundwaveTrainingArguments, gpus: Gpus):
        self.recipe, self.arguments, self.gpus = recipe, arguments, gpus
        self.stage, self.config, self.speech = STAGES[recipe.stage], soundwave_config(recipe), Speech.of(recipe)
        self.model = skeleton(recipe, self.config)
        self.weights = Weights.count(self.model, {"encoder": self.bytes_of("audio"), "LLM": self.bytes_of("text")})
