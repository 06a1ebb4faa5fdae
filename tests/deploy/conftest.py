"""One server for the checks of paths and names."""
import pytest

import fleet


@pytest.fixture(scope="session")
def server(deepinfer, default_model):
    with fleet.Server(model=default_model, program=deepinfer) as running:
        yield running
