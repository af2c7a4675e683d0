"""Arithmetic on frames: when, which, how big. pandas in, plain objects out; pure.

change_points                 where a series changes
incident_span, incident_spans when it left its level and came back, strongest first
rank_movers                   which columns moved, first mover first
rank_culprits                 which column looks like the cause, given an onset
effect_size                   a window against its baseline, with intervals
contributions                 which label values a change is made of
simpson_reversals             whether their mix hides something
match_logs                    which log lines go with which counts

Each has one default setting that needs no tuning per series.
"""

from tbforensics.analysis.attribution import rank_culprits, rank_movers
from tbforensics.analysis.changes import change_points
from tbforensics.analysis.contributions import contributions, simpson_reversals
from tbforensics.analysis.effects import effect_size
from tbforensics.analysis.logmatch import match_logs
from tbforensics.analysis.spans import incident_span, incident_spans

__all__ = [
    "change_points",
    "contributions",
    "effect_size",
    "incident_span",
    "incident_spans",
    "match_logs",
    "rank_culprits",
    "rank_movers",
    "simpson_reversals",
]
