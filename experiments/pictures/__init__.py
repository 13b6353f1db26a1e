"""Pictures of results and runs, drawn from their files alone, in colours safe for every eye."""

from experiments.pictures.bars import INTERVAL, INTERVALS, bar_chart, chart_measure, is_bound
from experiments.pictures.calibration import calibration
from experiments.pictures.comparisons import heatmaps, lines
from experiments.pictures.curves import (
    is_loss,
    is_refocus,
    scalar_names,
    telemetry_curves,
    training_curves,
)
from experiments.pictures.focus_map import LOD_LOOKS, focus_map
from experiments.pictures.growth import growth
from experiments.pictures.in_focus import in_focus
from experiments.pictures.page import page
from experiments.pictures.tradeoff import tradeoff

__all__ = [
    "INTERVAL",
    "INTERVALS",
    "LOD_LOOKS",
    "bar_chart",
    "calibration",
    "chart_measure",
    "focus_map",
    "growth",
    "heatmaps",
    "in_focus",
    "is_bound",
    "is_loss",
    "is_refocus",
    "lines",
    "page",
    "scalar_names",
    "telemetry_curves",
    "tradeoff",
    "training_curves",
]
