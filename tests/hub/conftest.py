import pytest

from hub_support import Hub


@pytest.fixture
def hub(deepinfer, tmp_path):
    with Hub(deepinfer, tmp_path) as hub:
        yield hub
