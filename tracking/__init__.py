"""Trackers: TensorBoard, W&B, Trackio and MLflow as followers of a run."""
