"""Outside evaluation harnesses over a pool."""
