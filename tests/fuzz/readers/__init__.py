"""Hostile files for every reader of a whole file: what each makes of them, what they cost, and what must not happen."""
