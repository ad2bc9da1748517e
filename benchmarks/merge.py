"""Memory and disk of `soundwave-hf merge`, on a random Llama in bfloat16.

python benchmarks/merge.py                  # 0.6 billion parameters
python benchmarks/merge.py --layers 48      # more of them
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path


WIDTH, VOCABULARY = 2048, 32_000


def write_parts(folder: Path, layers: int):
    """A random Llama in bfloat16, a tiny Whisper, and adapters with a LoRA of rank 16."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    from soundwave_hf import SoundwaveForConditionalGeneration, SoundwaveProcessor
    from soundwave_hf.data.tiny import write_tiny_llm, write_tiny_whisper
    from soundwave_hf.training.run import add_lora

    write_tiny_whisper(folder / "whisper")
    write_tiny_llm(folder / "tiny")
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=16,
        vocab_size=VOCABULARY,
        tie_word_embeddings=True,
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder / "llm")
    AutoTokenizer.from_pretrained(folder / "tiny").save_pretrained(folder / "llm")
    backbones = str(folder / "whisper"), str(folder / "llm")
    model = add_lora(SoundwaveForConditionalGeneration.from_backbones(*backbones), {"r": 16})
    model.save_pretrained(folder / "adapter")
    model.get_base_model().config.save_pretrained(folder / "adapter")
    SoundwaveProcessor.from_backbones(*backbones).save_pretrained(folder / "adapter")


def memory(field: str) -> int:
    """Bytes of this process: `RssAnon` (its own), `VmHWM` (the most ever, mapped files counted)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}: this runs on Linux.")


def merge_and_measure(folder: Path):
    """Merge, and print what it took as JSON."""
    import peft  # noqa: F401 (loaded before memory is counted)
    import torch
    from transformers import AutoModelForCausalLM, WhisperModel  # noqa: F401

    from soundwave_hf import merge_adapter

    torch.set_num_threads(1)
    before, resident, most, done = memory("RssAnon"), memory("VmRSS"), [0], threading.Event()

    def watch():
        while not done.is_set():
            most[0] = max(most[0], memory("RssAnon"))
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    merge_adapter(folder / "adapter", folder / "merged")
    done.set()
    watcher.join()
    print(json.dumps({"anonymous": most[0] - before, "with_files": memory("VmHWM") - resident}))


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=16, help="of the Llama; default: %(default)s")
    parser.add_argument("--merge", metavar="FOLDER", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.merge:
        merge_and_measure(Path(arguments.merge))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_parts(folder, arguments.layers)
        child = subprocess.run(
            [sys.executable, __file__, "--merge", str(folder)], check=True, stdout=subprocess.PIPE, text=True
        )
        found = json.loads(child.stdout.strip().splitlines()[-1])
        weights = size(folder / "llm") + size(folder / "whisper")
        rows = {
            "backbones on disk": weights,
            "merged on disk": size(folder / "merged"),
            "most memory while merging": found["anonymous"],
            "the same, mapped files counted": found["with_files"],
        }
        print("| what | GB | of the backbones |\n|---|---|---|")
        for name, taken in rows.items():
            print(f"| {name} | {taken / 1e9:.2f} | {taken / weights:.2f} |")


if __name__ == "__main__":
    main()
