"""Joins trained weights: the alignment adapter and the CTC head of one folder, the rest of another.

    python join_weights.py HEAD OUT             the head alone, for stage `align` to go on from
    python join_weights.py HEAD OUT --llm LLM   with the shrinking adapter and the LoRA of LLM, for stage `shrink`

HEAD and LLM are folders that `soundwave-hf train` or `export` wrote. Stage I can then train a head on, while an LLM
that reads another head stays, and Stage II brings the two together again.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from soundwave_hf import SoundwaveConfig
from soundwave_hf.modeling.folders_soundwave import ENCODER_LORA_FILE, LORA_FILES, TRAINED_FILE


ALIGN_PARTS = ("alignment_adapter.", "ctc_head.")
PEFT_PREFIX = "base_model.model.model."
# Config fields that determine the shapes of the head and what it writes.
FIELDS = ("stack_factor", "alignment_layers", "alignment_attention", "tie_ctc_head", "adapter_heads", "ctc_text")
CONFIGS = ("config.json", "processor_config.json")


def head_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Weights of alignment adapter and CTC head by their names in Stage I, from a folder of any stage.

    Raises: FileNotFoundError if the folder has no weights, ValueError if they need the LoRA of an encoder.
    """
    if (folder / ENCODER_LORA_FILE).is_file():
        raise ValueError(f"`{folder}` has a LoRA on the encoder, which its head needs: train on from that folder.")
    path = next((path for name in (TRAINED_FILE, LORA_FILES[1]) if (path := folder / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(f"`{folder}` has neither {TRAINED_FILE} nor {LORA_FILES[1]}: give a trained folder.")
    weights = {name.removeprefix(PEFT_PREFIX): value for name, value in load_file(path).items()}
    # Of the alignment adapter, a LoRA folder also holds the fields of its config as a tensor.
    return {
        name: value for name, value in weights.items() if name.startswith(ALIGN_PARTS) and value.is_floating_point()
    }


def write_head(head: Path, out: Path):
    """Write a Stage I folder with the head of another folder."""
    weights = head_weights(head)
    out.mkdir(parents=True)
    for name in CONFIGS:
        shutil.copy(head / name, out / name)
    save_file(weights, out / TRAINED_FILE, metadata={"format": "pt"})


def join(head: Path, llm: Path, out: Path):
    """Write a Stage II folder: the weights of `llm`, with the alignment adapter and the CTC head of `head`.

    Raises: ValueError if the adapters differ in shape, or `llm` holds no LoRA.
    """
    if not (llm / LORA_FILES[1]).is_file():
        raise FileNotFoundError(f"`{llm}` has no {LORA_FILES[1]}: give a folder of stage `shrink` or `instruct`.")
    weights, others = load_file(llm / LORA_FILES[1]), head_weights(head)
    for name, value in others.items():
        stored = weights.get(PEFT_PREFIX + name)
        if stored is None or stored.shape != value.shape:
            shape = "is missing" if stored is None else f"has shape {tuple(stored.shape)}"
            raise ValueError(f"`{name}` has shape {tuple(value.shape)} in `{head}`, and in `{llm}` it {shape}.")
        weights[PEFT_PREFIX + name] = value.to(stored.dtype)
    weights = {name: value for name, value in weights.items() if not name.endswith("trained_fields")}
    out.mkdir(parents=True)
    shutil.copy(llm / LORA_FILES[0], out / LORA_FILES[0])
    of_head = SoundwaveConfig.from_pretrained(head)
    for name in CONFIGS:
        config = json.loads((llm / name).read_text(encoding="utf-8"))
        config |= {field: getattr(of_head, field) for field in FIELDS if name == "config.json" or field in config}
        (out / name).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(weights, out / LORA_FILES[1], metadata={"format": "pt"})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("head", type=Path, help="folder whose alignment adapter and CTC head are taken")
    parser.add_argument("out", type=Path, help="folder to write; it must not exist")
    parser.add_argument("--llm", type=Path, help="folder whose LoRA and shrinking adapter are taken")
    args = parser.parse_args()
    if args.out.exists():
        parser.error(f"`{args.out}` exists already: name another folder, or remove it.")
    try:
        write_head(args.head, args.out) if args.llm is None else join(args.head, args.llm, args.out)
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
