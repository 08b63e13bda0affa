"""Nets made meaningful: generators, discriminators, conditioners, codecs."""
