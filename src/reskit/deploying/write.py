"""Writing the folder that a bundle is deployed from."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reskit.bundle import Bundle
from reskit.deploying.facts import TARGETS, Facts, Target
from reskit.deploying.image import BUNDLE, WHEELS, dockerfile, dockerignore, wheels_note
from reskit.deploying.manifests import manifests
from reskit.deploying.readme import readme
from reskit.errors import ConfigError, OutputError
from reskit.files import atomic_folder

__all__ = ["Deployment", "deploy"]

_BESIDE = ("config.json", "README.md")
"""Of a bundle; what `reskit optimize` left beside them is of the machine it ran on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Deployment:
    """What was written.

    Attributes:
        to: the platform.
        folder: where.
        facts: what the files say of the bundle.
        files: what is in the folder, by path within it.
    """

    to: Target
    folder: Path
    facts: Facts
    files: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "to": self.to,
            "folder": str(self.folder),
            "name": self.facts.name,
            "image": self.facts.image,
            "memory_mib": self.facts.memory_mib,
            "files": list(self.files),
        }


def deploy(
    bundle: str | Path, *, to: Target, out: str | Path, name: str | None = None, image: str | None = None
) -> Deployment:
    """Write what a platform needs to serve a bundle: image, manifests and the commands. Nothing is sent.

    Args:
        bundle: the bundle's folder; a copy goes with the rest.
        to: the platform.
        out: the folder to write; it must be new, or empty.
        name: what to call the model and its endpoint; as the bundle's folder when absent.
        image: name of the container image in your registry; an example when absent.

    Raises:
        BundleError: it is not a good bundle.
        ConfigError: the platform is unknown, or a name cannot be one.
        OutputError: something is in the folder already, or the file system refuses.
    """
    if to not in TARGETS:
        raise ConfigError(f"unknown platform {str(to)[:80]!r}; known: {', '.join(TARGETS)}")
    folder = Path(out)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise OutputError(f"{folder} is there already and nothing in it is overwritten: choose another --out")
    loaded = Bundle.load(bundle)
    facts = Facts.of(loaded, to, name, image)
    texts = {
        "Dockerfile": dockerfile(facts, to),
        ".dockerignore": dockerignore(),
        "README.md": readme(facts, to),
        f"{WHEELS}/README.txt": wheels_note(),
        **manifests(facts, to),
    }
    with atomic_folder(folder) as staging:
        for path, text in texts.items():
            (staging / path).parent.mkdir(exist_ok=True)
            (staging / path).write_text(text, encoding="utf-8")
        (staging / BUNDLE).mkdir()
        copied = [file for file in (*_BESIDE, *loaded.config.files) if (loaded.path / file).is_file()]
        for file in copied:
            shutil.copyfile(loaded.path / file, staging / BUNDLE / file)
            (staging / BUNDLE / file).chmod(0o644)  # the container's user must read it
        (staging / BUNDLE).chmod(0o755)
    return Deployment(
        to=to, folder=folder, facts=facts, files=tuple(sorted([*texts, *(f"{BUNDLE}/{f}" for f in copied)]))
    )
