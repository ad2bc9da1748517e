"""What only a GPU can show. `make test-gpu` runs these; elsewhere each is skipped with a reason."""

import pytest
import torch

from tests.modeling.test_generation import GREEDY, new_ids, padded_batch
from tests.tiny_models import tiny_model
from tests.training.workspace import Workspace, make_workspace, train


pytestmark = pytest.mark.gpu


@pytest.fixture
def exact(monkeypatch):
    """Float32 that is not rounded to TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("workspace"))


def on_gpu(batch: dict) -> dict:
    return {name: value.cuda() for name, value in batch.items()}


@torch.no_grad()
def test_positions_and_scores_are_those_of_the_cpu(exact):
    model, batch = tiny_model(), padded_batch()
    expected, found = model(**batch), model.cuda()(**on_gpu(batch))
    true = batch["attention_mask"].bool()
    assert found.num_positions.tolist() == expected.num_positions.tolist()
    assert torch.allclose(found.logits.cpu()[true], expected.logits[true], atol=1e-3)


@pytest.mark.parametrize("implementation", ["dynamic", "static", "offloaded"])
def test_every_cache_gives_the_ids_of_the_cpu(exact, implementation):
    model, batch = tiny_model(), padded_batch()
    expected = new_ids(model, batch)
    assert torch.equal(new_ids(model.cuda(), on_gpu(batch), cache_implementation=implementation).cpu(), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_generates(dtype):
    model = tiny_model().to("cuda", dtype)
    batch = on_gpu(padded_batch())
    batch["input_features"] = batch["input_features"].to(dtype)
    ids = model.generate(**batch, **GREEDY)
    assert ids.shape[1] == batch["input_ids"].shape[1] + GREEDY["max_new_tokens"]


@pytest.mark.parametrize("bf16", [False, True])
def test_a_stage_trains(workspace, tmp_path, bf16):
    trained = train(workspace.recipe("align", tmp_path / "out", use_cpu=False, bf16=bf16))
    assert next(trained.model.parameters()).is_cuda
    assert all(loss == loss and loss < float("inf") for loss in trained.losses())
    assert (tmp_path / "out" / "trained.safetensors").is_file()
