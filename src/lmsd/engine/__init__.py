"""Training on Lightning: the module that plays turns, its clock, checkpoints and callbacks."""
