"""Vega-Lite specifications as pictures: SVG for pages, PNG to look at. No browser and no network."""

from __future__ import annotations

from typing import Any

VERSION = "5.21"
"""Of Vega-Lite, so that another vl-convert draws the same."""
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
"""Okabe and Ito: told apart with any colour vision, yellow last because it is faint on white."""
FONT = "Helvetica, Arial, DejaVu Sans, sans-serif"
CONFIG: dict[str, Any] = {
    "background": "white",
    "font": FONT,
    "axis": {"labelFontSize": 12, "titleFontSize": 13, "titleFontWeight": "normal", "gridColor": "#e6e6e6"},
    "title": {"fontSize": 14, "anchor": "start", "fontWeight": "bold"},
    "legend": {"labelFontSize": 13, "titleFontSize": 13, "symbolStrokeWidth": 3, "symbolSize": 200},
    "view": {"stroke": "#cccccc"},
}


def to_svg(spec: dict[str, Any]) -> str:
    import vl_convert

    return str(vl_convert.vegalite_to_svg(_whole(spec), vl_version=VERSION))


def to_png(spec: dict[str, Any], scale: float = 2.0) -> bytes:
    """`scale` pixels for each pixel of the specification."""
    import vl_convert

    return bytes(vl_convert.vegalite_to_png(_whole(spec), vl_version=VERSION, scale=scale))


def _whole(spec: dict[str, Any]) -> dict[str, Any]:
    """One that brings no configuration of its own gets ours."""
    return {"config": CONFIG, **spec}
