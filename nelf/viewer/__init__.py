"""The page that draws a bundle in a browser, the server that shows it, and its place in a notebook."""

from nelf.viewer.notebook import view
from nelf.viewer.server import Server

__all__ = ["Server", "view"]
