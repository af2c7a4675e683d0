"""What the evidence can carry: how much of each question was answered, and what to doubt.

Nothing found and nothing seen are told apart here. A verdict never claims more than this allows.
"""

from tbforensics.quality.covered import coverage, duration
from tbforensics.quality.doubted import GAUGES_NAMED_TOTAL, doubts

__all__ = ["GAUGES_NAMED_TOTAL", "coverage", "doubts", "duration"]
