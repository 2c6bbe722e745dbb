"""Smaller and faster light fields: pruning, numbers of fewer bits, folded norms. Import the module that is needed."""
