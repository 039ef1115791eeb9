"""New versions beside the old: proven, tried, promoted or rolled back, and recorded."""

from reskit.serving.deploying.deployer import Deployer

__all__ = ["Deployer"]
