"""What a platform must know of a bundle: its name, its input, and how much machine it needs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self, get_args

from reskit.backends.base import TensorSpec
from reskit.backends.servable import describe
from reskit.errors import ConfigError

if TYPE_CHECKING:
    from reskit.bundle import Bundle

__all__ = ["PORT", "TARGETS", "USER", "Facts", "Target"]

Target = Literal["kserve", "sagemaker", "vertex", "azureml"]
TARGETS: tuple[Target, ...] = get_args(Target)

PORT = 8080
USER = 10001
"""Of the container; it may read the bundle and write to /tmp."""

_NAME = re.compile(r"[a-z]([a-z0-9-]{1,30})[a-z0-9]")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/@-]{0,254}")
_IMAGES: dict[Target, str] = {
    "kserve": "registry.example.com",
    "sagemaker": "123456789012.dkr.ecr.us-east-1.amazonaws.com",
    "vertex": "us-central1-docker.pkg.dev/PROJECT/reskit",
    "azureml": "REGISTRY.azurecr.io",
}
"""Where images lie; made up, to be replaced by `image`."""
_LIBRARIES_MIB = 768
"""Python, PyTorch and the service, and room for requests."""
_WEIGHTS_TIMES = 4
"""Of the weights: themselves, a copy while they are read, and the activations of a batch."""
_STEP_MIB = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What the files say of a bundle.

    Attributes:
        name: of the model, of the endpoint and of whatever else the platform wants named.
        image: name of the container image, with its tag.
        made_up: whether the image's registry is an example.
        architecture: name of the network.
        task: name of the task.
        takes: what people give it.
        extras: of reskit that it needs besides `serve`.
        input: what goes into the network.
        weights_mib: size of the weights.
        memory_mib: memory that a container of it needs.
        checksum: of the bundle.
    """

    name: str
    image: str
    made_up: bool
    architecture: str
    task: str
    takes: str
    extras: tuple[str, ...]
    input: TensorSpec
    weights_mib: float
    memory_mib: int
    checksum: str

    @classmethod
    def of(cls, bundle: Bundle, to: Target, name: str | None, image: str | None) -> Self:
        """Return the facts of a bundle.

        Args:
            bundle: the bundle.
            to: the platform.
            name: what to call it; as its folder when absent.
            image: name of the container image; one in a registry that does not exist when absent.

        Raises:
            ConfigError: a name cannot be one on every platform.
        """
        called = name or bundle.path.resolve().name
        if not _NAME.fullmatch(called) or "--" in called:
            raise ConfigError(
                f"{called!r} cannot be a name on every platform: give --name with 3 to 32 small letters, "
                "digits and single hyphens, a letter first"
            )
        if image is not None and not _IMAGE.fullmatch(image):
            raise ConfigError(f"--image {image[:80]!r} is not REGISTRY/NAME:TAG of a container image")
        checksum = bundle.config.checksum()
        weights = (bundle.path / "model.safetensors").stat().st_size / 2**20
        needed = _LIBRARIES_MIB + _WEIGHTS_TIMES * weights
        return cls(
            name=called,
            image=image or f"{_IMAGES[to]}/{called}:{checksum[:12]}",
            made_up=image is None,
            architecture=str(bundle.config.architecture["name"]),
            task=bundle.task.name,
            takes=bundle.task.takes,
            extras=tuple(bundle.task.needs.values()),
            input=describe(bundle, "torch", "fp32").signature.inputs[0],
            weights_mib=weights,
            memory_mib=-int(-needed // _STEP_MIB) * _STEP_MIB,
            checksum=checksum,
        )

    @property
    def repository(self) -> str:
        """The image's name without registry and tag."""
        path = self.image.partition("@")[0]
        head, _, last = path.rpartition("/")
        repository = f"{head}/{last.partition(':')[0]}" if head else last.partition(":")[0]
        registry, _, rest = repository.partition("/")
        return rest if rest and ("." in registry or ":" in registry) else repository

    @property
    def registry(self) -> str:
        """The host of the image's registry; empty where the name has none."""
        registry, _, rest = self.image.partition("/")
        return registry if rest and ("." in registry or ":" in registry) else ""
