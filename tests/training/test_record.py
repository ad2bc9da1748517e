import json

import pytest
import torch
import yaml
from safetensors.torch import load_file

from soundwave_hf.training.run import run_recipe
from tests.training.workspace import everything_in, train


@pytest.mark.slow
def test_a_checkpoint_says_what_trained_it_and_its_recipe_trains_the_same(workspace, tmp_path):
    first = train(
        workspace.recipe("align", tmp_path / "first", repeat={"s1": 2}, augment={"speed": 0.1}, save_steps=2)
    )
    for folder in (first.folder, first.folder / "checkpoint-2"):
        assert json.loads((folder / "versions.json").read_text())["torch"] == torch.__version__
        card = (folder / "data_card.md").read_text()
        assert "| s0 | 6 |" in card
        assert "| s1 | 12 |" in card
    assert (first.folder / "loss.png").is_file()
    written = first.folder / "recipe.yaml"
    assert yaml.safe_load(written.read_text())["augment"] == {"speed": 0.1}
    again = tmp_path / "again"
    run_recipe(written, {"output_dir": str(again)})
    recorded = yaml.safe_load((again / "recipe.yaml").read_text())
    assert recorded == yaml.safe_load(written.read_text()) | {"output_dir": str(again)}
    trained = load_file(again / "trained.safetensors")
    now = everything_in(first.model)
    assert trained.keys() == {name for name, parameter in first.model.named_parameters() if parameter.requires_grad}
    for name, weight in trained.items():
        torch.testing.assert_close(weight, now[name].detach(), rtol=0, atol=0)


def test_the_datas_own_card_goes_along(workspace, tmp_path):
    (workspace.data / "README.md").write_text("# Licence: mine\n")
    try:
        trained = train(workspace.recipe("align", tmp_path / "out", max_steps=1))
    finally:
        (workspace.data / "README.md").unlink()
    assert "# Licence: mine" in (trained.folder / "data_card.md").read_text()
