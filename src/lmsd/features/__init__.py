"""Images to features: what scores are computed from."""
