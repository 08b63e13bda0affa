"""From words on a command line to one checked configuration."""
