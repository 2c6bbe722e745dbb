"""``python -m nelf.viewer RUN``."""

from nelf.viewer.server import main

if __name__ == "__main__":
    main()
