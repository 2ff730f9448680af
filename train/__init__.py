"""Data, models, recipes and the capture: what makes a run, as `python -m train.NAME`."""
