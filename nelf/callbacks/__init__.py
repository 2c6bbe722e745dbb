"""Lightning callbacks; each works in any Trainer and reads no configuration."""

from nelf.callbacks.hard_rays import HardRays
from nelf.callbacks.previews import Previews
from nelf.callbacks.progress import Progress
from nelf.callbacks.pruning import IterativePruning
from nelf.callbacks.quantization import QuantizationAwareTraining
from nelf.callbacks.stopping import StopTogether

__all__ = ["HardRays", "IterativePruning", "Previews", "Progress", "QuantizationAwareTraining", "StopTogether"]
