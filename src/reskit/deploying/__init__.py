"""A bundle as a container on a platform: image, manifests and the commands that bring it there."""

from reskit.deploying.write import Deployment, deploy

__all__ = ["Deployment", "deploy"]
