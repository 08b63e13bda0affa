"""From a configuration to the objects of an experiment."""
