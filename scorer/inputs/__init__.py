"""Shards to batches: sources, record readers, batching."""
