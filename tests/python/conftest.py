"""The Python package out of the release build, with the default model. DEEPINFER_PYTHON=installed takes the one of this
interpreter instead."""
import os
import pathlib
import sys

import pytest

if os.environ.get("DEEPINFER_PYTHON") != "installed":
    root = pathlib.Path(__file__).parents[2]
    sys.path.insert(0, str(pathlib.Path(os.environ.get("DEEPINFER_BUILD_DIR") or root / "build/release") / "python"))


@pytest.fixture(scope="session")
def model(default_model):
    return str(default_model)


@pytest.fixture(scope="session")
def engine(model):
    from deepinfer import InferenceEngine
    with InferenceEngine(model=model, max_model_len=512, max_num_seqs=16, device="cpu") as engine:
        yield engine
