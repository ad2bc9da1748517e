"""The model card of a run: README.md beside its weights, and the first page of its repository on the Hub."""

import os
import re
from dataclasses import dataclass

import yaml


HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
TAGS = ["soundwave", "speech", "speech-llm"]
WORD_OF = {"wer": "word error rate", "cer": "character error rate", "ctc_wer": "word error rate of the CTC head"}
WORD_OF |= {"exact_match": "exact answers", "loss": "loss", "ce_loss": "next-token loss", "ctc_loss": "CTC loss"}
LONGEST_FIRST = sorted(WORD_OF, key=len, reverse=True)  # `eval_ctc_wer` is not the `wer` of a set `ctc`


@dataclass
class RunCard:
    """What a card says beside backbones and measurements.

    Args:
        stage (`str`, *optional*), data (`str`): the recipe's stage, and Markdown that counts its data.
        license (`str`, *optional*): of the trained weights.
    """

    stage: str | None = None
    data: str = ""
    license: str | None = None

    def text(self, config, history: list[dict], has_lora: bool) -> str:
        """Markdown with metadata, for a model's config and a trainer's `log_history`."""
        backbones = [str(part.name_or_path) for part in (config.audio_config, config.text_config)]
        on_hub = [name for name in backbones if HUB_NAME.fullmatch(name) and not os.path.isdir(name)]
        measured = last_measured(history)
        metadata = {
            "library_name": "transformers",
            "pipeline_tag": "automatic-speech-recognition",
            "tags": TAGS,
            **({"base_model": on_hub, "base_model_relation": "adapter"} if on_hub else {}),
            **({"license": self.license} if self.license else {}),
            **({"metrics": sorted({name for _, name, _ in measured} & {"wer", "cer"})} if measured else {}),
        }
        model = "SoundwaveForConditionalGeneration" if has_lora else "SoundwaveForCTC"
        kind = "adapters and LoRA" if has_lora else "alignment adapter and CTC head"
        stage = "" if self.stage is None else f" in stage `{self.stage}`"
        names = [name if name in on_hub else os.path.basename(name) for name in backbones]
        return "\n".join(
            [
                f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---",
                "# Soundwave speech adapters",
                "",
                f"The {kind} that `soundwave-hf train` trained{stage}. They join the encoder of {names[0]} to "
                f"{names[1]}, which are not in this repository. Install `soundwave-hf`, then:",
                "",
                "```python",
                f"from soundwave_hf import {model}, SoundwaveProcessor",
                "",
                "folder = ...  # this repository: a folder, or its name on the Hub",
                f"model = {model}.from_pretrained(folder)",
                "processor = SoundwaveProcessor.from_pretrained(folder)",
                "```",
                *(["", "## Measured", "", *_table(measured)] if measured else []),
                *(["", self.data.strip().replace("# Data of this run", "## Data", 1)] if self.data else []),
                "",
            ]
        )


def last_measured(history: list[dict]) -> list[tuple[str, str, float]]:
    """Set, metric and value of the last evaluation of each, from a trainer's log."""
    found = {}
    for entry in history:
        for key, value in entry.items():
            name = next((name for name in LONGEST_FIRST if f"_{key}".endswith(f"_{name}")), None)
            if name is not None and key.startswith("eval_"):
                found[key.removeprefix("eval_").removesuffix(name).rstrip("_"), name] = value
    return [(place, name, value) for (place, name), value in found.items()]


def _table(measured: list[tuple[str, str, float]]) -> list[str]:
    rows = [f"| {place or 'evaluation data'} | {WORD_OF[name]} | {value:.4g} |" for place, name, value in measured]
    return ["| data | metric | value |", "|---|---|---|", *rows]


__all__ = ["RunCard", "last_measured"]
