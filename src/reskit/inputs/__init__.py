"""From what a user names or holds to single examples: a file a kind of them."""

from reskit.inputs.finding import Found
from reskit.inputs.images import find_images

__all__ = ["Found", "find_images"]
