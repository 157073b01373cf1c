"""Batches to predictions, in order, while threads work side by side."""
