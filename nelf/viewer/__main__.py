"""``python -m nelf.viewer RUN``."""

from nelf.viewer.server import main

main()
