# SPDX-License-Identifier: Apache-2.0
"""The options --models-dir and --kills, and tests marked `models` skipped without the first."""

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--models-dir", type=Path, help="folder that holds the real language models")
    parser.addoption("--kills", type=int, default=6, help="how often test_faults.py kills a run")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--models-dir") is None:
        skip = pytest.mark.skip(reason="needs the real language models: pytest --models-dir=DIR")
        for item in items:
            if item.get_closest_marker("models"):
                item.add_marker(skip)


@pytest.fixture(scope="session")
def models_dir(request: pytest.FixtureRequest) -> Path:
    """The folder given by --models-dir."""
    folder = request.config.getoption("--models-dir")
    assert isinstance(folder, Path)
    return folder
