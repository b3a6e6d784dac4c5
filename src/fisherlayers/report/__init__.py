"""Self-contained HTML reports: one file, no script, nothing loaded from elsewhere."""

try:
    import jinja2 as _jinja2  # noqa: F401  (only whether it is installed)
    import matplotlib as _matplotlib  # noqa: F401  (only whether it is installed)
except ImportError as error:
    raise ImportError(
        f"reports need Matplotlib and Jinja2 ({error}): python -m pip install 'fisherlayers[report]'"
    ) from error

from fisherlayers.report.document import Picture, Section, Table, render
from fisherlayers.report.evidence import evidence_grid, evidence_overlay, png_bytes
from fisherlayers.report.figures import Curve, bars, curves, image_grid

__all__ = [
    "Curve",
    "Picture",
    "Section",
    "Table",
    "bars",
    "curves",
    "evidence_grid",
    "evidence_overlay",
    "image_grid",
    "png_bytes",
    "render",
]
