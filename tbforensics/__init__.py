"""Incident forensics: telemetry asked once, sealed, and read again years later."""
