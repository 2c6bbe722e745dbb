"""Read and write files of other programs."""
