"""Critics and the small nets that no library has; only torch."""
