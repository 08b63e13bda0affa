"""Shards of images and captions: built, indexed, and streamed in an order without state."""
