"""The data card: what the built manifests hold, counted from the files themselves."""

from pathlib import Path

from soundwave_hf.data.card import count_rows
from soundwave_hf.data.manifest import read_rows


MANIFESTS = {
    "train.jsonl": "training, stages I and II",
    "instruct.jsonl": "training, stage III (its clips without a text question are spoken questions)",
    "valid_human.jsonl": "validation (a) telephone prompts and (b) LibriVox, human, never trained on",
    "valid_synthetic.jsonl": "validation (c) new sentences in a voice not trained on",
}

SOURCES = """\
| source | what | licence |
|---|---|---|
| fortunes | sentences of Debian's `fortunes` and `fortunes-min` | see the packages' copyright files |
| words | random words of the language model's vocabulary that stand in Debian's `wamerican` | see its copyright file |
| prompts | telephone prompts of our own grammar | as this package |
| spoken-question | questions and answers of our own lists | as this package |
| human-prompt | Debian `asterisk-core-sounds-en-g722`, Allison Smith; published transcripts | CC-BY-SA 3.0 |
| human-pseudo | the same, prompts without a transcript: labelled by Whisper base (greedy) | CC-BY-SA 3.0 |
| librivox | Sense and Sensibility, chapter 1, out of Debian `pocketsphinx-testdata` | public domain (LibriVox) |

Telephone prompts are split by the sha1 of their name modulo 3: 2 training, 1 validation, 0 never used.
Synthetic voices: flite slt, rms and kal16 (training), flite awb (validation alone); piper en_US joe (training; voice
data CC0, its model fine-tuned from the lessac voice). Speed and, for flite, pitch differ from clip to clip.
Clips: 16 kHz mono FLAC.
No training text equals a validation text after Whisper's English normaliser.
"""


def data_card(folder: Path) -> str:
    """Markdown text: sources with licences, then clips and hours of each manifest by source and voice."""
    parts = ["# Data of the small Soundwave model\n", "Made by `examples/soundwave-small/build_data.py`.\n", SOURCES]
    for name, meaning in MANIFESTS.items():
        rows = read_rows(folder / name)
        hours = sum(line["seconds"] for line in rows) / 3600
        parts.append(f"## {name}: {meaning}\n\n{len(rows)} rows, {hours:.2f} hours\n")
        parts.append("| source | voice | rows | hours |\n|---|---|---|---|")
        for (source, voice), (clips, seconds) in count_rows(rows).items():
            parts.append(f"| {source} | {voice} | {clips} | {seconds / 3600:.2f} |")
        parts.append("")
    return "\n".join(parts)
