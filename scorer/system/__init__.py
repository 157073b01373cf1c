"""The machine: cores, memory, signals, the terminal."""
