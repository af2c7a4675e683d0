"""PromQL over sealed samples: what a rule saw, evaluated offline as Prometheus would."""
