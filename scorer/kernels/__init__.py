"""The inner loops, compiled and in NumPy: `loops` says what each does and chooses between the two sets."""
