"""Dataset maintenance: compact, prune, relabel and pin published segments."""
