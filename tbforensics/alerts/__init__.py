"""Alert rules against the evidence: would they have fired, when, and could they at all."""
