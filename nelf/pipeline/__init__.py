"""A run directory and what happens in it: stages, marks, locks, resuming."""
