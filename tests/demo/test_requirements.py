import importlib
import sys

import pytest

import fisherlayers.demo


def test_the_missing_extra_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(ImportError, match=r"skimage.*pip install 'fisherlayers\[demo\]'"):
        importlib.reload(fisherlayers.demo)
