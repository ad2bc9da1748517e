"""Memory, time and bytes of `soundwave-hf convert`, on random float16 weights with the widths of the published model.

python benchmarks/convert.py                              # 2 and 16 of the 32 LLM layers: 24 GB of disk
python benchmarks/convert.py --layers 16 --killed         # 16 layers, without the second run

Each size is converted once. Those of `--killed` are converted again, killed by SIGKILL after half of the shards and
continued; the result must have the sha256 of the first, file by file. All is deleted at the end.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path


WHISPER = {  # openai/whisper-large-v2
    "d_model": 1280,
    "encoder_layers": 32,
    "encoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "num_mel_bins": 80,
    "max_source_positions": 1500,
}
PUBLISHED = {
    "model_type": "Soundwave",
    "architectures": ["SoundwaveForCausalLM"],
    "adapter_size": 1280,
    "audio_tower": "whisper_config",
    "audio_patch_size": 1,
    "audio_patch_token": 128256,
    "llm_pad_token_id": 128009,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "vocab_size": 128257,
}
SOURCE_SHARD = 5_000_000_000  # bytes; the usual size of shards on the hub


def write_source(folder: Path, layers: int):
    """A checkpoint in the published layout, shard by shard."""
    import torch
    from safetensors.torch import save_file
    from transformers import WhisperConfig

    from soundwave_hf.convert import describe_model, published_source

    WhisperConfig(**WHISPER).save_pretrained(folder / "whisper_config")
    (folder / "config.json").write_text(json.dumps({**PUBLISHED, "num_hidden_layers": layers}))
    shapes = {}
    for name, value in describe_model(folder)[0].state_dict().items():
        published, third = published_source(name)
        shapes[published] = tuple(value.shape) if third is None else (3 * value.shape[0], *value.shape[1:])
    groups, size = [[]], 0
    for name, shape in shapes.items():
        taken = 2 * torch.Size(shape).numel()
        if size + taken > SOURCE_SHARD:
            groups, size = [*groups, []], 0
        groups[-1].append(name)
        size += taken
    weight_map, generator = {}, torch.Generator().manual_seed(0)
    for number, names in enumerate(groups, start=1):
        shard = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        tensors = {}
        for name in names:  # random bits of small float16 numbers: quick, and different in each tensor
            bits = torch.empty(shapes[name], dtype=torch.int16).random_(0x2000, 0x3000, generator=generator)
            tensors[name] = bits.view(torch.float16)
        save_file(tensors, folder / shard, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(names, shard))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def memory(field: str) -> int:
    """Bytes of this process: `VmHWM` (the most ever, mapped files counted)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}: this runs on Linux.")


def convert_and_measure(source: Path, destination: Path, kill_after: int):
    """Convert, and print what it took as JSON. Stops itself by SIGKILL after `kill_after` shards, if above 0."""
    from soundwave_hf import convert, shards

    before, begun = memory("VmRSS"), time.monotonic()
    finish = shards.UnfinishedShards.finish

    def finish_or_die(self, name):
        finish(self, name)
        if len(self.finished) == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

    shards.UnfinishedShards.finish = finish_or_die
    convert.convert_published(source, destination)
    taken = time.monotonic() - begun
    print(json.dumps({"seconds": taken, "before": before, "peak": memory("VmHWM")}))


def run(source: Path, destination: Path, kill_after: int = 0) -> dict | None:
    """What one conversion in a new process took; None if it was killed."""
    command = [sys.executable, __file__, "--convert", str(source), str(destination), "--kill-after", str(kill_after)]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if kill_after:
        assert ran.returncode == -signal.SIGKILL, ran.stdout
        return None
    assert ran.returncode == 0, ran.stdout
    return {**json.loads(ran.stdout.splitlines()[-1]), "kept": ran.stdout.count("Kept shard")}


def digests(folder: Path) -> dict[str, str]:
    from soundwave_hf.published_files import sha256

    return {path.name: sha256(path) for path in sorted(folder.iterdir())}


def measure(folder: Path, layers: int, with_kill: bool) -> Iterator[tuple]:
    """Rows of the table for one size: a whole run, and one that was killed in the middle and run again."""
    source, destination = folder / "source", folder / "native"
    source.mkdir()
    # In a process of its own, so that its memory is not counted with the conversion's.
    subprocess.run([sys.executable, __file__, "--write", str(source), "--layers", str(layers)], check=True)
    sizes = [path.stat().st_size for path in source.glob("*.safetensors")]
    whole = run(source, destination)
    num_shards = len(list(destination.glob("*.safetensors")))
    size = (layers, sum(sizes), f"{len(sizes)} -> {num_shards}")
    yield (*size, "whole", whole)
    if with_kill:
        expected = digests(destination)
        shutil.rmtree(destination)
        run(source, destination, kill_after=num_shards // 2)
        again = run(source, destination)
        assert digests(destination) == expected, "The continued conversion differs from the whole one."
        yield (*size, f"killed after {again['kept']}, run again", again)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 16], help="of the LLM; default: 2 16")
    parser.add_argument("--killed", type=int, nargs="*", default=[2], help="sizes that are also killed; default: 2")
    parser.add_argument("--write", metavar="FOLDER", help=argparse.SUPPRESS)
    parser.add_argument("--convert", metavar="FOLDER", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--kill-after", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        write_source(Path(arguments.write), *arguments.layers)
        return
    if arguments.convert:
        convert_and_measure(*map(Path, arguments.convert), arguments.kill_after)
        return
    print("| LLM layers | source, bytes | shards | run | seconds | peak RSS, GB | of it before converting |")
    print("|---|---|---|---|---|---|---|")
    for layers in arguments.layers:
        with tempfile.TemporaryDirectory() as temporary:
            for count, size, shards, what, found in measure(Path(temporary), layers, layers in arguments.killed):
                memory_gb = f"{found['peak'] / 1e9:.2f} | {found['before'] / 1e9:.2f}"
                row = f"{count} | {size:,} | {shards} | {what} | {found['seconds']:.0f} | {memory_gb}"
                print(f"| {row} |", flush=True)


if __name__ == "__main__":
    main()
