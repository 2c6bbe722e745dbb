"""The page that renders a bundle in a browser, its server, and its display in a notebook."""

from nelf.viewer.notebook import view
from nelf.viewer.server import Server

__all__ = ["Server", "view"]
