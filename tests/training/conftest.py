import pytest

from tests.training.workspace import Trained, Workspace, make_workspace, train_chain


@pytest.fixture(scope="session")
def workspace(tmp_path_factory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="session")
def chain(workspace, tmp_path_factory) -> dict[str, Trained]:
    """Stages I, II and III of three steps each. No test may change its weights or folders."""
    return train_chain(workspace, tmp_path_factory.mktemp("chain"))
