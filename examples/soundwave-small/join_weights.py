"""Joins trained weights: the alignment adapter and the CTC head of one folder, the rest of another.

    python join_weights.py HEAD OUT                             the head alone, for stage `align` to go on from
    python join_weights.py HEAD OUT --llm LLM                   with the shrinking adapter and the LoRA of LLM
    python join_weights.py HEAD OUT --toward OTHER --share 0.4  60 % of HEAD and 40 % of OTHER, weight by weight
    python join_weights.py HEAD OUT --toward OTHER --share 0.4 --rank 32  the same; the LoRA of the encoder has rank 32
    python join_weights.py HEAD OUT --llm LLM --toward OTHER --share 0.5  HEAD, with the mean of two LLMs

HEAD, LLM and OTHER are folders that `soundwave-hf train` or `export` wrote. Stage I can then train a head on, while an
LLM that reads another head stays, and Stage II brings the two together again.

A head that trained on with other speech hears that speech better and may lose some of what it knew. If OTHER went on
from HEAD, a mean of the two often keeps both (WiSE-FT, arXiv 2109.01903). So does a mean of two LLMs, if OTHER went on
from LLM. The LoRA of an encoder belongs to the head, and comes with it. In a mean, a head without one counts as one
that changes nothing. The ranks of two LoRAs add up, unless `--rank` gives one.
"""

import argparse
import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from soundwave_hf import SoundwaveConfig
from soundwave_hf.modeling.backbones_soundwave import FIXED_BY_WEIGHTS
from soundwave_hf.modeling.encoder_lora_soundwave import read_encoder_lora, write_encoder_lora
from soundwave_hf.modeling.folders_soundwave import LORA_FILES, TRAINED_FILE
from soundwave_hf.modeling.trained_fields_soundwave import TENSOR, TRAINED_FIELDS, as_tensor, trained_fields


ALIGN_PARTS = ("alignment_adapter.", "ctc_head.")
PEFT_PREFIX = "base_model.model.model."
FIELDS_TENSOR = f"{PEFT_PREFIX}alignment_adapter.{TENSOR}"
# Config fields that determine the shapes of the head and what it writes; others are names of defaults, or the LLM's.
FIELDS = tuple(name for name in FIXED_BY_WEIGHTS if name in TRAINED_FIELDS)
CONFIGS = ("config.json", "processor_config.json")
LORA_SETTINGS = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora")
Lora = tuple[dict[str, torch.Tensor], dict]  # matrices and settings of an encoder's LoRA


def head_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Weights of alignment adapter and CTC head by their names in Stage I, from a folder of any stage.

    Raises: FileNotFoundError if the folder has no weights.
    """
    path = next((path for name in (TRAINED_FILE, LORA_FILES[1]) if (path := folder / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(f"`{folder}` has neither {TRAINED_FILE} nor {LORA_FILES[1]}: give a trained folder.")
    weights = {name.removeprefix(PEFT_PREFIX): value for name, value in load_file(path).items()}
    return {name: value for name, value in without_fields(weights).items() if name.startswith(ALIGN_PARTS)}


def without_fields(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights without the tensor of config fields that PEFT saves among them: the fields may change here."""
    return {name: value for name, value in weights.items() if not name.endswith(f".{TENSOR}")}


def check_share(share: float):
    """Raises: ValueError if the share of the second folder of a mean is not between 0 and 1."""
    if not 0 <= share <= 1:
        raise ValueError(f"`--share` is {share}; expected a number from 0 (the first folder) to 1 (the second).")


def check_shapes(head: Path, weights: dict[str, torch.Tensor], other: Path, others: dict[str, torch.Tensor]):
    """Raises: ValueError if a weight of one folder is missing in another, or has another shape there."""
    for name, value in weights.items():
        found = others.get(name)
        if found is None or found.shape != value.shape:
            shape = "is missing" if found is None else f"has shape {tuple(found.shape)}"
            raise ValueError(f"`{name}` has shape {tuple(value.shape)} in `{head}`, and in `{other}` it {shape}.")


def config_fields(folder: Path, names: Iterable[str] = FIELDS) -> dict:
    """Fields of a folder's config by name."""
    config = SoundwaveConfig.from_pretrained(folder)
    return {name: getattr(config, name) for name in names}


def lora_settings(folder: Path) -> dict:
    """What scales and shapes the LoRA of the LLM in a folder, by name; None for what its config leaves out."""
    settings = json.loads((folder / LORA_FILES[0]).read_text(encoding="utf-8"))
    return {name: settings.get(name) for name in LORA_SETTINGS}


def check_equal(folder: Path, one: dict, other: Path, two: dict, what: str):
    """Raises: ValueError if a setting differs in two folders. Args: what: has a mean only if all are equal."""
    for name, value in one.items():
        if value != two[name]:
            raise ValueError(
                f"`{name}` is {value!r} in `{folder}` and {two[name]!r} in `{other}`: only {what} have a mean."
            )


def mean_head(head: Path, other: Path, share: float) -> dict[str, torch.Tensor]:
    """Weights between those of two heads of one shape, in float32.

    Args: share: of `other`, from 0 to 1.
    Raises: ValueError if the heads differ in shape or in what they write.
    """
    check_share(share)
    one, two = head_weights(head), head_weights(other)
    check_equal(head, config_fields(head), other, config_fields(other), "weights with the same fields")
    check_shapes(head, one, other, two)
    return {name: torch.lerp(value.float(), two[name].float(), share) for name, value in one.items()}


def mean_lora(head: Path, other: Path, share: float) -> Lora | None:
    """The LoRA of the encoder whose change of each matrix is the mean of two folders'; None if neither has one.

    The matrices of two LoRAs are stacked, so that their ranks add up. A folder without a LoRA counts as no change.
    Raises: ValueError if the two change different matrices of the encoder.
    """
    one, two = (read_encoder_lora(str(folder)) for folder in (head, other))
    if one is None and two is None:
        return None
    if one is None or two is None:  # the matrices stay, so that training goes on from them
        (matrices, settings), part = (one, 1 - share) if two is None else (two, share)
        return matrices, settings | {"lora_alpha": part * settings["lora_alpha"]}
    if one[1]["digest"] == two[1]["digest"]:
        return one
    if one[0].keys() != two[0].keys():
        raise ValueError(f"The LoRAs of the encoders of `{head}` and `{other}` change different matrices: no mean.")
    rank, parts = one[1]["r"] + two[1]["r"], [(one, 1 - share), (two, share)]
    return {name: stacked(name, parts) for name in one[0]}, {"r": rank, "lora_alpha": rank}


def stacked(name: str, parts: list[tuple[Lora, float]]) -> torch.Tensor:
    """The matrices A or B of several LoRAs as one. B holds the scales `share * lora_alpha / r`."""
    if ".lora_A." in name:
        return torch.cat([matrices[name].float() for (matrices, _), _ in parts])
    scaled = (matrices[name].float() * part * lora["lora_alpha"] / lora["r"] for (matrices, lora), part in parts)
    return torch.cat(list(scaled), dim=1)


def of_rank(lora: Lora | None, rank: int | None) -> Lora | None:
    """The LoRA of at most `rank` closest to `lora`: the largest singular values of each change. None keeps it.

    Raises: ValueError if `rank` is not 1 or more.
    """
    if lora is None or rank is None or rank >= lora[1]["r"]:
        return lora
    if rank < 1:
        raise ValueError(f"`--rank` is {rank}; give 1 or more.")
    matrices, scale = {}, lora[1]["lora_alpha"] / lora[1]["r"]
    for name in (name for name in lora[0] if ".lora_A." in name):
        other = name.replace(".lora_A.", ".lora_B.")
        left, values, right = torch.linalg.svd(
            scale * lora[0][other].double() @ lora[0][name].double(), full_matrices=False
        )
        root = values[:rank].sqrt()
        matrices[name] = (root[:, None] * right[:rank]).float().contiguous()
        matrices[other] = (left[:, :rank] * root).float().contiguous()
    return matrices, {"r": rank, "lora_alpha": rank}


def write_head(weights: dict[str, torch.Tensor], lora: Lora | None, configs: Path, out: Path):
    """Write a Stage I folder: weights of a head, the LoRA of its encoder, and the configs of the folder `configs`."""
    out.mkdir(parents=True)
    for name in CONFIGS:
        shutil.copy(configs / name, out / name)
    save_file(weights, out / TRAINED_FILE, metadata={"format": "pt"})
    write_lora(lora, out)


def write_lora(lora: Lora | None, out: Path):
    """Write the LoRA of an encoder, and its digest into the config that is there."""
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    config["encoder_lora"] = None if lora is None else write_encoder_lora(*lora, str(out))
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def llm_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Weights of a folder of stage `shrink` or `instruct`, by their names there.

    Raises: FileNotFoundError if it holds no LoRA of the LLM.
    """
    if not (folder / LORA_FILES[1]).is_file():
        raise FileNotFoundError(f"`{folder}` has no {LORA_FILES[1]}: give a folder of stage `shrink` or `instruct`.")
    return without_fields(load_file(folder / LORA_FILES[1]))


def mean_llm(llm: Path, other: Path, share: float) -> dict[str, torch.Tensor]:
    """Weights between those of two folders of stage `shrink` or `instruct`, in the type of the first.

    A mean of LoRA matrices is near the mean of their products only if one trained on from the other.
    Raises: ValueError if the two differ in the shape or the settings of the LoRA.
    """
    check_share(share)
    one, two = llm_weights(llm), llm_weights(other)
    check_shapes(llm, one, other, two)
    check_shapes(other, two, llm, one)
    fields = [name for name in FIELDS if name != "ctc_text"]  # the head is another one
    check_equal(llm, config_fields(llm, fields), other, config_fields(other, fields), "weights with the same fields")
    check_equal(llm, lora_settings(llm), other, lora_settings(other), "LoRAs with the same settings")
    return {name: torch.lerp(value.float(), two[name].float(), share).to(value.dtype) for name, value in one.items()}


def join(head: Path, llm: Path, weights: dict[str, torch.Tensor], out: Path):
    """Write a Stage II folder: `weights` of an LLM, with the alignment adapter and the CTC head of `head`.

    Args: llm: the folder whose configs fit `weights`.
    Raises: ValueError if the adapters differ in shape.
    """
    of_head, of_llm = head_weights(head), head_weights(llm)
    check_shapes(head, of_head, llm, of_llm)
    weights = weights | {PEFT_PREFIX + name: value.to(of_llm[name].dtype) for name, value in of_head.items()}
    out.mkdir(parents=True)
    shutil.copy(llm / LORA_FILES[0], out / LORA_FILES[0])
    head_config = SoundwaveConfig.from_pretrained(head)
    for name in CONFIGS:
        config = json.loads((llm / name).read_text(encoding="utf-8"))
        config |= {field: getattr(head_config, field) for field in FIELDS if name == "config.json" or field in config}
        (out / name).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    write_lora(read_encoder_lora(str(head)), out)
    fields = as_tensor(trained_fields(SoundwaveConfig.from_pretrained(out)))
    save_file(weights | {FIELDS_TENSOR: fields}, out / LORA_FILES[1], metadata={"format": "pt"})


def write(args: argparse.Namespace, out: Path):
    """Write what the arguments ask for into `out`."""
    if args.llm is not None:
        mean = None if args.toward is None else mean_llm(args.llm, args.toward, args.share)
        join(args.head, args.llm, mean or llm_weights(args.llm), out)
    elif args.toward is not None:
        weights = mean_head(args.head, args.toward, args.share)
        lora = of_rank(mean_lora(args.head, args.toward, args.share), args.rank)
        write_head(weights, lora, args.head, out)
    else:
        write_head(head_weights(args.head), read_encoder_lora(str(args.head)), args.head, out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("head", type=Path, help="folder whose alignment adapter and CTC head are taken")
    parser.add_argument("out", type=Path, help="folder to write; it must not exist")
    parser.add_argument("--llm", type=Path, help="folder whose LoRA and shrinking adapter are taken")
    parser.add_argument("--toward", type=Path, help="folder that trained on from LLM, or from HEAD without `--llm`")
    parser.add_argument("--share", type=float, help="share of OTHER in the mean, from 0 to 1")
    parser.add_argument(
        "--rank", type=int, help="of the LoRA of the encoder of a mean head, at most; else ranks add up"
    )
    args = parser.parse_args()
    if args.rank is not None and (args.toward is None or args.llm is not None):
        parser.error("`--rank` is for a mean of two heads: give `--toward` and no `--llm`.")
    if (args.toward is None) != (args.share is None):
        parser.error("`--toward` and `--share` belong together: give both or neither.")
    if args.out.exists():
        parser.error(f"`{args.out}` exists already: name another folder, or remove it.")
    try:
        part = args.out.with_name(f".{args.out.name}.part")  # renamed once it is whole
        shutil.rmtree(part, ignore_errors=True)
        write(args, part)
        part.rename(args.out)
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
