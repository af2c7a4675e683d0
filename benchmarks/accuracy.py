"""The public functions with their defaults, as one answer per frame; for scoring harnesses."""

from __future__ import annotations

from typing import Any

import pandas as pd

from tbforensics.analysis.attribution import rank_movers
from tbforensics.analysis.spans import incident_span


def predict(frame: pd.DataFrame, kind: Any) -> dict[str, Any]:
    """Onset, recovery, culprit and ratio of the incident in `frame`; its movers for "metrics"."""
    if kind == "metrics":
        return {"movers": [mover.label for mover in rank_movers(frame)]}
    span = incident_span(frame, kind)
    if span is None:
        return {"onset": None}
    ends = {"onset": span.onset, "recovery": span.recovery}
    return ends | {"culprit": span.label, "ratio": span.ratio}
