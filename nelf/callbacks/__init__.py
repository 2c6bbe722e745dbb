"""Lightning callbacks; each works in anybody's Trainer and reads no configuration."""

from nelf.callbacks.previews import Previews
from nelf.callbacks.progress import Progress

__all__ = ["Previews", "Progress"]
