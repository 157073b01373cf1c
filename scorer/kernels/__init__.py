"""The compiled loops and their twins in NumPy."""
