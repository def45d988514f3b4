"""A small model folder with its processor."""

from __future__ import annotations

from pathlib import Path

import pytest

from realsr_r1.chain.processor import ChainProcessor

from ...small import write_model


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model", tiny_model)


@pytest.fixture(scope="module")
def processor(model: Path) -> ChainProcessor:
    return ChainProcessor.from_pretrained(model)
