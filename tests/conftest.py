"""What holds for every test: one thread per process, a fixed search for counter-examples."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Set before anything imports numpy, torch or jax; children inherit them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["PYTHONFAULTHANDLER"] = "1"

settings.register_profile(
    "house", deadline=None, database=None, derandomize=True, max_examples=40, print_blob=True
)
settings.register_profile("long", deadline=None, database=None, max_examples=1000, print_blob=True)
settings.load_profile("house")


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's top folder."""
    return Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--update` writes expected texts anew."""
    parser.addoption("--update", action="store_true", help="write expected texts anew")
