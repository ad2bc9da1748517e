"""`examples/soundwave-small/join_weights.py`: the head of one run and the LLM of another."""

import json
import shutil
import sys

import join_weights
import pytest
import torch
from safetensors.torch import load_file

from soundwave_hf import SoundwaveForConditionalGeneration, SoundwaveForCTC, train
from soundwave_hf.modeling.trained_fields_soundwave import from_tensor


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["join_weights.py", *map(str, words)])
    join_weights.main()


@pytest.fixture
def other_head(chain, tmp_path):
    """A Stage I run whose head differs, and writes transcripts as they are."""
    folder = shutil.copytree(chain["align"].folder, tmp_path / "other")
    weights = {name: value + 0.25 for name, value in load_file(folder / "trained.safetensors").items()}
    join_weights.save_file(weights, folder / "trained.safetensors")
    for name in join_weights.CONFIGS:
        config = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(config | {"ctc_text": "as_written"}))
    return folder


def test_head_and_llm_come_from_their_folders(chain, other_head, tmp_path, monkeypatch):
    run(monkeypatch, other_head, tmp_path / "out", "--llm", chain["shrink"].folder)
    model = SoundwaveForConditionalGeneration.from_pretrained(tmp_path / "out", merge_lora=False)
    found = {name.removeprefix("base_model.model.model."): value for name, value in model.state_dict().items()}
    head = load_file(other_head / "trained.safetensors")
    llm = load_file(chain["shrink"].folder / "adapter_model.safetensors")
    assert model.config.ctc_text == "as_written"
    lora = {name: value for name, value in llm.items() if "lora_" in name}
    assert head and lora
    for name, value in head.items():
        part, rest = name.split(".", 1)
        assert torch.equal(found[f"{part}.modules_to_save.default.{rest}"], value), name
    weights = model.state_dict()
    for name, value in lora.items():
        assert torch.equal(weights[name.replace(".weight", ".default.weight")], value), name
    shrinking = "base_model.model.model.shrinking_adapter."
    kept = {name: value for name, value in llm.items() if name.startswith(shrinking)}
    saved = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert kept
    assert all(torch.equal(saved[name], value) for name, value in kept.items())
    assert from_tensor(saved[join_weights.FIELDS_TENSOR])["ctc_text"] == "as_written"


def test_each_joined_folder_trains_on(workspace, chain, other_head, tmp_path, monkeypatch):
    run(monkeypatch, other_head, tmp_path / "joined", "--llm", chain["shrink"].folder)
    run(monkeypatch, tmp_path / "joined", tmp_path / "head")
    for stage, start in (("align", "head"), ("shrink", "joined")):
        recipe = {"encoder": workspace.encoder, "llm": workspace.llm, "start_from": str(tmp_path / start)}
        data, out = workspace.data / "train.jsonl", tmp_path / f"trained-{stage}"
        recipe |= {"stage": stage, "data": str(data), "output_dir": str(out), "max_steps": 1, "bf16": False}
        (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
        train(tmp_path / "recipe.yaml")
        assert (out / ("trained.safetensors" if stage == "align" else "adapter_model.safetensors")).is_file()


def test_a_mean_of_two_heads_lies_between_them(chain, tmp_path, monkeypatch):
    other = shutil.copytree(chain["align"].folder, tmp_path / "other")
    first = load_file(chain["align"].folder / "trained.safetensors")
    join_weights.save_file({name: value + 1 for name, value in first.items()}, other / "trained.safetensors")
    run(monkeypatch, chain["align"].folder, tmp_path / "out", "--toward", other, "--share", "0.25")
    found = load_file(tmp_path / "out" / "trained.safetensors")
    assert found.keys() == first.keys()
    for name, value in first.items():
        torch.testing.assert_close(found[name], value + 0.25)


def with_encoder_lora(head, folder, value: float, projection: str = "q"):
    """A copy of a Stage I folder with a LoRA of rank 1 on one matrix of the encoder, where B A is `value`."""
    shutil.copytree(head, folder)
    matrix = f"layers.0.self_attn.{projection}_proj.lora_{{}}.weight"
    width = json.loads((folder / "config.json").read_text())["audio_config"]["d_model"]
    matrices = {matrix.format("A"): torch.ones(1, width), matrix.format("B"): torch.full((width, 1), float(value))}
    join_weights.write_lora((matrices, {"r": 1, "lora_alpha": 2}), folder)
    return folder


def query_matrix(folder) -> torch.Tensor:
    return SoundwaveForCTC.from_pretrained(folder).audio_tower.layers[0].self_attn.q_proj.weight


@pytest.mark.parametrize("is_first, change", [(False, 0.5), (True, 1.5)])
def test_the_encoders_lora_comes_with_the_head_and_is_scaled_in_a_mean(chain, tmp_path, monkeypatch, is_first, change):
    plain = chain["align"].folder
    lora = with_encoder_lora(plain, tmp_path / "lora", 1)
    run(monkeypatch, lora, tmp_path / "head")
    torch.testing.assert_close(query_matrix(tmp_path / "head"), query_matrix(plain) + 2)
    first, other = (lora, plain) if is_first else (plain, lora)
    run(monkeypatch, first, tmp_path / "mean", "--toward", other, "--share", "0.25")
    torch.testing.assert_close(query_matrix(tmp_path / "mean"), query_matrix(plain) + change)
    run(monkeypatch, tmp_path / "mean", tmp_path / "joined", "--llm", chain["shrink"].folder)
    joined = SoundwaveForConditionalGeneration.from_pretrained(tmp_path / "joined")
    expected = SoundwaveForCTC.from_pretrained(tmp_path / "mean").audio_tower.state_dict()
    assert all(torch.equal(joined.model.audio_tower.state_dict()[name], value) for name, value in expected.items())


def test_the_loras_of_two_encoders_have_a_mean(chain, tmp_path, monkeypatch):
    plain = chain["align"].folder
    one, two = (with_encoder_lora(plain, tmp_path / f"lora-{value}", value) for value in (1, 3))
    run(monkeypatch, one, tmp_path / "mean", "--toward", two, "--share", "0.25")
    torch.testing.assert_close(query_matrix(tmp_path / "mean"), query_matrix(plain) + 0.75 * 2 + 0.25 * 6)
    run(monkeypatch, one, tmp_path / "same", "--toward", one, "--share", "0.25")
    torch.testing.assert_close(query_matrix(tmp_path / "same"), query_matrix(plain) + 2)


def test_a_mean_of_loras_is_cut_to_the_rank_that_is_asked_for(chain, tmp_path, monkeypatch, capsys):
    plain = chain["align"].folder
    one, two = (with_encoder_lora(plain, tmp_path / f"lora-{value}", value) for value in (1, 3))
    # Both change the matrix in the same direction, so that rank 1 holds the whole mean.
    run(monkeypatch, one, tmp_path / "mean", "--toward", two, "--share", "0.25", "--rank", "1")
    matrices, settings = join_weights.read_encoder_lora(str(tmp_path / "mean"))
    assert settings["r"] == settings["lora_alpha"] == 1 and all(1 in matrix.shape for matrix in matrices.values())
    torch.testing.assert_close(query_matrix(tmp_path / "mean"), query_matrix(plain) + 0.75 * 2 + 0.25 * 6)
    for arguments, message in (
        (["--toward", two, "--share", "0.5", "--rank", "0"], "`--rank` is 0"),
        (["--rank", "1"], "for a mean"),
    ):
        with pytest.raises(SystemExit):
            run(monkeypatch, one, tmp_path / "refused", *arguments)
        assert message in capsys.readouterr().err and not (tmp_path / "refused").exists()


def test_a_lora_of_lower_rank_is_the_closest_one():
    generator = torch.Generator().manual_seed(0)
    matrices = {
        name: torch.randn(shape, generator=generator)
        for name, shape in (("q.lora_A.w", (4, 6)), ("q.lora_B.w", (5, 4)))
    }
    lora = (matrices, {"r": 4, "lora_alpha": 8})
    change = 2 * matrices["q.lora_B.w"].double() @ matrices["q.lora_A.w"].double()
    cut, settings = join_weights.of_rank(lora, 2)
    assert settings == {"r": 2, "lora_alpha": 2} and cut["q.lora_A.w"].shape == (2, 6)
    left = change - cut["q.lora_B.w"].double() @ cut["q.lora_A.w"].double()
    # Eckart and Young: the smallest error of rank 2 is what the other singular values hold.
    torch.testing.assert_close(left.norm(), torch.linalg.svdvals(change)[2:].norm(), rtol=1e-5, atol=1e-6)
    assert join_weights.of_rank(lora, 4) is lora and join_weights.of_rank(lora, None) is lora


def test_two_llms_have_a_mean_beside_the_head_of_a_third_folder(chain, other_head, tmp_path, monkeypatch):
    llm, name = chain["shrink"].folder, "adapter_model.safetensors"
    first, later = load_file(llm / name), shutil.copytree(llm, tmp_path / "later")
    moved = {key: value + 1 for key, value in join_weights.without_fields(first).items()}
    join_weights.save_file(moved, later / name)
    run(monkeypatch, other_head, tmp_path / "out", "--llm", llm, "--toward", later, "--share", "0.25")
    found, head = load_file(tmp_path / "out" / name), load_file(other_head / "trained.safetensors")
    assert found.keys() == first.keys()
    for key, value in first.items():
        short = key.removeprefix("base_model.model.model.")
        if key != join_weights.FIELDS_TENSOR:
            torch.testing.assert_close(found[key], head.get(short, value + 0.25), msg=key)
    SoundwaveForConditionalGeneration.from_pretrained(tmp_path / "out")


def test_what_cannot_be_joined_is_refused(chain, other_head, tmp_path, monkeypatch, capsys):
    (tmp_path / "there").mkdir()
    narrow = shutil.copytree(other_head, tmp_path / "narrow")
    weights = load_file(narrow / "trained.safetensors")
    weights["ctc_head.blank_weight"] = weights["ctc_head.blank_weight"][:3].clone()
    join_weights.save_file(weights, narrow / "trained.safetensors")
    one, two = (with_encoder_lora(other_head, tmp_path / f"encoder-{matrix}", 1, matrix) for matrix in "qk")
    llm, scaled = chain["shrink"].folder, shutil.copytree(chain["shrink"].folder, tmp_path / "scaled")
    settings = json.loads((scaled / "adapter_config.json").read_text())
    (scaled / "adapter_config.json").write_text(json.dumps(settings | {"lora_alpha": 99}))
    for words, message in (
        ((other_head, tmp_path / "there"), "there` exists already"),
        ((tmp_path / "there", tmp_path / "out"), "has neither trained.safetensors nor adapter_model.safetensors"),
        ((other_head, tmp_path / "out", "--llm", other_head), "has no adapter_model.safetensors"),
        ((narrow, tmp_path / "out", "--llm", llm), "`ctc_head.blank_weight` has shape (3,) in"),
        ((one, tmp_path / "out", "--toward", two, "--share", "0.5"), "change different matrices"),
        ((other_head, tmp_path / "out", "--toward", llm, "--share", "0.5"), "`ctc_text` is 'as_written' in"),
        (
            (other_head, tmp_path / "out", "--toward", narrow, "--share", "0.5"),
            "narrow` it has shape (3,).",
        ),
        ((llm, tmp_path / "out", "--toward", llm, "--share", "1.5"), "`--share` is 1.5; expected a number from 0"),
        (
            (one, tmp_path / "out", "--llm", llm, "--toward", scaled, "--share", "0.5"),
            "only LoRAs with the same settings",
        ),
        (
            (one, tmp_path / "out", "--llm", llm, "--toward", one, "--share", "0.5"),
            "encoder-q` has no adapter_model.safetensors",
        ),
        ((llm, tmp_path / "out", "--llm", llm, "--toward", llm, "--share", "-1"), "`--share` is -1.0; expected"),
        ((llm, tmp_path / "out", "--toward", llm), "`--toward` and `--share` belong together"),
    ):
        with pytest.raises(SystemExit) as stop:
            run(monkeypatch, *words)
        assert stop.value.code == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
