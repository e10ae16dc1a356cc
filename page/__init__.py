"""The live page of a run, and its metrics for Prometheus."""
