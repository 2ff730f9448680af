"""Probes of captured states: arrays in, numbers and Datasets out; no model, no training."""
