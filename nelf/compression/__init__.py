"""Make a trained network smaller or faster: pruning, quantisation, files that hold fewer bits."""
