"""The command line of the scorer: arguments, remedies, exit codes."""
