import importlib
import sys

import pytest

import fisherlayers.report


@pytest.mark.parametrize("module", ["jinja2", "matplotlib"])
def test_a_missing_extra_is_named_with_its_remedy(module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"{module}.*pip install 'fisherlayers\[report\]'"):
        importlib.reload(fisherlayers.report)
