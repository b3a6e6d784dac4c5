"""The demo: both halves of the library on real data, against peers given the same means."""

try:
    import skimage as _skimage  # noqa: F401  (only whether it is installed)
except ImportError as error:
    raise ImportError(f"the demo needs scikit-image ({error}): python -m pip install 'fisherlayers[demo]'") from error

from fisherlayers.demo.contest import Entry, enter, hold_contest
from fisherlayers.demo.run import SUBJECTS, Outcome, run_demo

__all__ = ["SUBJECTS", "Entry", "Outcome", "enter", "hold_contest", "run_demo"]
