"""What predictions are worth: metrics, and ids that stand twice."""
