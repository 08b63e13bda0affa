"""Run folders: what is written into them, and found again."""
