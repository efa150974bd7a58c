"""Answers to scores: one registry of metrics, each a torchmetrics.Metric."""
