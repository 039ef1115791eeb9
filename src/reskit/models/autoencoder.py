"""Networks that make an image again of a few numbers: a residual autoencoder and a variational one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from reskit.errors import ModelError
from reskit.models.base import Backbone, check_integer, check_integers
from reskit.models.registry import register_family
from reskit.models.resnet import ResNet
from reskit.nn import BasicBlock, BlockOptions, ShortcutKind, make_conv, make_norm

__all__ = ["Autoencoder", "Parts", "divergence", "take_apart"]


class Parts(NamedTuple):
    """What an `Autoencoder` says of images, taken apart.

    Attributes:
        images: reconstructions `(N, C, H, W)` in [0, 1].
        mean: latent vectors `(N, latent)`; of a variational network the means of their distributions.
        log_variance: of those distributions, `(N, latent)`; None where there are none.
        score: mean squared error of each reconstruction as the network measured it, `(N,)`.
    """

    images: Tensor
    mean: Tensor
    log_variance: Tensor | None
    score: Tensor


def take_apart(outputs: Tensor, shape: tuple[int, int, int], latent: int) -> Parts:
    """Return the parts of what an `Autoencoder` gives.

    Args:
        outputs: `(N, C * H * W + latent + 1)`, with twice `latent` of a variational network.
        shape: `(C, H, W)` of the images.
        latent: numbers in a latent vector.
    """
    pixels = shape[0] * shape[1] * shape[2]
    images, vectors, score = outputs[:, :pixels], outputs[:, pixels:-1], outputs[:, -1]
    log_variance = vectors[:, latent:] if vectors.shape[1] > latent else None
    return Parts(images.reshape(-1, *shape), vectors[:, :latent], log_variance, score)


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence in nats `(N,)` of normal distributions from the standard one.

    Source: Kingma and Welling 2013, appendix B.

    Args:
        mean: `(N, latent)`.
        log_variance: `(N, latent)`.
    """
    return (log_variance.exp() + mean.square() - 1 - log_variance).sum(1) / 2


class Autoencoder(Backbone):
    r"""A residual encoder, a vector `z` and a residual decoder that mirrors the encoder.

    The encoder is a ResNet whose last map is kept whole; a linear layer makes `z` of it. The decoder begins
    with a linear layer and goes through the same stages backwards. All but its first begin with an
    enlargement to the nearest neighbour, whose result is what the shortcut carries.

    With `variational` the encoder gives the mean and the log-variance of a normal distribution. While
    training `z` is drawn from it, :math:`z = \mu + \sigma \epsilon`; in evaluation it is the mean.

    Sources: Kingma and Welling, Auto-Encoding Variational Bayes, 2013, section 2.4 and appendix C (the
    variational one); He et al. 2015 (the blocks).

    Args:
        in_channels: channels in and out.
        size: `(H, W)` of the images, in and out; any, odd ones too.
        latent: numbers in `z`.
        depths: blocks in each stage of the encoder, and of the decoder, backwards.
        width: channels of the first stage, doubled at each next; or one width a stage.
        variational: whether `z` has a distribution.
        shortcut: see :func:`reskit.nn.make_shortcut`.
        residual: False builds the plain twin.
        zero_init: whether every block starts as its shortcut.
        features_only: whether to give the encoder's maps, of images of any size.

    Raises:
        ModelError: an argument has a bad value.
    """

    head_name: ClassVar[str] = "decoder"

    def __init__(
        self,
        *,
        in_channels: int,
        features_only: bool = False,
        size: Sequence[int] = (32, 32),
        latent: int = 16,
        depths: Sequence[int] = (1, 1, 1),
        width: int | Sequence[int] = 32,
        variational: bool = False,
        shortcut: ShortcutKind = "B",
        residual: bool = True,
        zero_init: bool = False,
    ) -> None:
        super().__init__(num_classes=0, in_channels=in_channels, features_only=features_only)
        check_integers("size", size)
        if len(size) != 2:
            raise ModelError(f"size has {len(size)} values: give the height and the width of the images")
        check_integer("latent", latent, minimum=1)
        self.size, self.latent, self.variational = (size[0], size[1]), latent, variational
        self.encoder = ResNet(
            depths=depths,
            width=width,
            stem="cifar",
            shortcut=shortcut,
            residual=residual,
            zero_init=zero_init,
            num_classes=0,
            in_channels=in_channels,
        )
        self.channels, self.strides = self.encoder.channels, self.encoder.strides
        self.num_features = self.encoder.num_features
        if features_only:
            return
        sizes = [(-(-size[0] // stride), -(-size[1] // stride)) for stride in self.strides]
        features = self.num_features * sizes[-1][0] * sizes[-1][1]
        self.to_latent = nn.Linear(features, 2 * latent if variational else latent)
        self.decoder = _Decoder(
            latent,
            in_channels,
            widths=self.channels[::-1],
            sizes=sizes[::-1],
            depths=list(depths)[::-1],
            options={"shortcut": shortcut, "residual": residual, "zero_init": zero_init},
        )

    @property
    def head(self) -> nn.Module:
        """The decoder."""
        return nn.Identity() if self.features_only else self.decoder

    def segments(self) -> list[list[nn.Module]]:
        """Return the stages of the encoder."""
        return self.encoder.segments()

    def distribution(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return mean and log-variance of `z`, `(N, latent)` each, of images; None without `variational`.

        Raises:
            ModelError: the images have another size than the network was made for.
        """
        if tuple(x.shape[-2:]) != self.size:
            raise ModelError(
                f"this network is for images of {self.size[0]}x{self.size[1]},"
                f" not {x.shape[-2]}x{x.shape[-1]}: make it with another size"
            )
        found = self.to_latent(self.feature_maps(x)[-1].flatten(1))
        if not self.variational:
            return found, None
        mean, log_variance = found.chunk(2, dim=1)
        return mean, log_variance

    def encode(self, x: Tensor) -> Tensor:
        """Return the latent vectors `(N, latent)` of images, with `variational` their means.

        Args:
            x: as a task's `inputs` gives it, `(N, in_channels, H, W)` in [0, 1].
        """
        return self.distribution(x)[0]

    def decode(self, z: Tensor) -> Tensor:
        """Return the images `(N, in_channels, H, W)`, in [0, 1], of latent vectors `(N, latent)`."""
        # In float32 under autocast too: the cross-entropy of pixels needs the distance to 0 and 1.
        return self.decoder(z).float().sigmoid()  # type: ignore[no-any-return]

    @torch.no_grad()
    def sample(self, count: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Return images `(count, in_channels, H, W)`, in [0, 1], of vectors drawn from the normal prior.

        Args:
            count: how many.
            generator: of the vectors, on the CPU; PyTorch's own by default.

        Raises:
            ModelError: the network is not variational, so nothing says where its vectors lie.
        """
        if not self.variational:
            raise ModelError("only a variational autoencoder can be sampled from: use residual_vae")
        weight = self.to_latent.weight
        vectors = torch.randn(count, self.latent, generator=generator).to(weight)
        was_training = self.training
        images = self.eval().decode(vectors)
        self.train(was_training)
        return images

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Return all there is to know of images `(N, C, H, W)` in [0, 1] as one row an image.

        Columns: the reconstruction, `C * H * W`; the latent vector, with `variational` its mean and then its
        log-variance; the mean squared error of the reconstruction. `take_apart` gives them by name.
        """
        if self.features_only:
            return self.feature_maps(x)
        mean, log_variance = self.distribution(x)
        z = mean
        if log_variance is not None and self.training:
            z = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        made = self.decode(z)
        error = (made - x).square().flatten(1).mean(1, keepdim=True)
        parts = [made.flatten(1), mean, *([] if log_variance is None else [log_variance]), error]
        return torch.cat([part.float() for part in parts], dim=1)


class _Decoder(nn.Module):
    """Vectors to images: stages from the smallest map to the largest, each with its own size.

    Args:
        latent: numbers in a vector.
        out_channels: channels of the images.
        widths: channels of each stage.
        sizes: `(h, w)` of each stage.
        depths: blocks in each stage.
        options: of the blocks.
    """

    def __init__(
        self,
        latent: int,
        out_channels: int,
        *,
        widths: Sequence[int],
        sizes: Sequence[tuple[int, int]],
        depths: Sequence[int],
        options: BlockOptions,
    ) -> None:
        super().__init__()
        self.first = (widths[0], *sizes[0])
        self.from_latent = nn.Linear(latent, widths[0] * sizes[0][0] * sizes[0][1])
        self.bn1 = make_norm(2, widths[0])
        self.relu = nn.ReLU(inplace=True)
        channels = widths[0]
        for place, (width, size, depth) in enumerate(zip(widths, sizes, depths, strict=True)):
            layers: list[nn.Module] = [nn.Upsample(size=size)] if place else []
            for _ in range(depth):
                layers.append(BasicBlock(channels, width, **options))
                channels = width
            self.add_module(f"layer{place + 1}", nn.Sequential(*layers))
        self.stages = len(widths)
        self.conv = make_conv(2, channels, out_channels, 3, bias=True)

    def forward(self, z: Tensor) -> Tensor:
        """Return the log-odds `(N, out_channels, H, W)` of pixels, of vectors `(N, latent)`."""
        x = self.relu(self.bn1(self.from_latent(z).unflatten(1, self.first)))
        for place in range(self.stages):
            x = self.get_submodule(f"layer{place + 1}")(x)
        return self.conv(x)  # type: ignore[no-any-return]


register_family(
    Autoencoder,
    {
        # Theirs is without shortcuts; the blocks are those of He et al. 2015.
        "residual_autoencoder": (
            {},
            1_023_315,
            "Bergmann et al., Improving Unsupervised Defect Segmentation by Applying Structural Similarity"
            " to Autoencoders, 2018, arXiv:1807.02011",
        ),
        "residual_vae": (
            {"variational": True},
            1_154_403,
            "Kingma and Welling, Auto-Encoding Variational Bayes, 2013, arXiv:1312.6114",
        ),
    },
    input_size=(3, 32, 32),
    task="autoencode",
)
