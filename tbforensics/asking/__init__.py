"""How a Prometheus is asked: what to ask at once, how many questions at a time, when to stop."""
