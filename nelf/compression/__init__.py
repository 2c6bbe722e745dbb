"""Smaller and faster light fields: pruning, quantization, folded norms. Import the module that is needed."""
