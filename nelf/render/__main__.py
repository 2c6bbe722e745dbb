"""``python -m nelf.render MODEL``."""

from nelf.render.command import main

if __name__ == "__main__":
    main()
