"""Looking inside a network, and acting on what is seen: lesions of residual blocks, and pruning by them."""

from reskit.insight.blocks import dropped, removable_blocks, residual_blocks, without_blocks
from reskit.insight.choice import PruneStep
from reskit.insight.lesion import BlockFigures, LesionStudy, lesion_study
from reskit.insight.pruning import Pruned, prune

__all__ = [
    "BlockFigures",
    "LesionStudy",
    "PruneStep",
    "Pruned",
    "dropped",
    "lesion_study",
    "prune",
    "removable_blocks",
    "residual_blocks",
    "without_blocks",
]
