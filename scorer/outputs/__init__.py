"""Where rows go: formats, the crash-safe sink, its journal and its lock."""
