"""Loading modules that take long."""

from __future__ import annotations

import gc
import sys

import pytest

from realsr_r1.core.import_named import load_module


def test_modules_are_loaded_without_a_search_for_garbage_which_goes_on_afterwards(tmp_path, monkeypatch):
    (tmp_path / "good_one.py").write_text("import gc\nwas_on = gc.isenabled()\n")
    (tmp_path / "bad_one.py").write_text("raise RuntimeError('oh')\n")
    monkeypatch.syspath_prepend(tmp_path)
    load_module("good_one")
    assert not sys.modules["good_one"].was_on and gc.isenabled()
    with pytest.raises(RuntimeError):
        load_module("bad_one")
    assert gc.isenabled()
