"""Incidents that are invented and evidence that is real: made histories, asked over HTTP."""
