"""Data, models, recipes and the capture: what makes a run."""
