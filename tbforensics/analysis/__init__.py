"""Arithmetic on frames: when, which, how big. pandas in, plain objects out; pure."""
