"""The public functions with their defaults, as one answer per frame; for scoring harnesses."""

from __future__ import annotations

from typing import Any

import pandas as pd

from tbforensics.spans import incident_span


def predict(frame: pd.DataFrame, kind: str) -> dict[str, Any]:
    """What happened in `frame`: onset, recovery, culprit and ratio; or movers for "metrics"."""
    if kind == "metrics":
        from tbforensics.attribution import rank_movers

        return {"movers": [mover.label for mover in rank_movers(frame)]}
    span = incident_span(frame, kind)  # type: ignore[arg-type]
    if span is None:
        return {"onset": None}
    return {
        "onset": span.onset,
        "recovery": span.recovery,
        "culprit": span.label,
        "ratio": span.ratio,
    }
