"""What predictions are worth: metrics, and duplicate ids."""
