"""MDGR (arXiv 2601.19501): a masked-diffusion decoder over the SID of one item.

Reading order: `model` (the network), `masking` (which positions are masked), `losses`, `objective`
(a minibatch's loss), `denoiser` (the network in the production decoder), `export` (to ONNX).
"""

from training.families.mdgr.denoiser import TorchDenoiser
from training.families.mdgr.export import export_graphs
from training.families.mdgr.losses import CatalogueSoftmax, Repeats, position_loss
from training.families.mdgr.masking import draw_mask
from training.families.mdgr.model import MaskedDiffusionModel

__all__ = [
    "CatalogueSoftmax",
    "MaskedDiffusionModel",
    "Repeats",
    "TorchDenoiser",
    "draw_mask",
    "export_graphs",
    "position_loss",
]
