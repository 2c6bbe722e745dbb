"""Smaller light fields: pruning, and numbers of fewer bits. Import the module that is needed."""
