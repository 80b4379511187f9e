"""Stages, baselines, ablations, and the shipped family's own training."""
