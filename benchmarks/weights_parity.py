"""Published weights of every format: do they compute here what they compute where they come from?

torch    torchvision's and timm's networks with random weights and live statistics, saved and loaded by name
keras    MLPerf Tiny's ResNet-8 from .h5 and .tflite against each other and the LiteRT interpreter
caffe    ResNet-20 and plain-20 of CIFAR-10 with the training mean image, against OpenCV
faces    MobileFaceNets of MXNet and Caffe: verification of all pairs of the ORL faces
others   which further files are read

python benchmarks/weights_parity.py --data PATH_TO_DATA
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import reskit
import reskit.nn
from common import write_result
from reskit.data import ImagePreprocess, make_loader
from reskit.weights import read_checkpoint
from reskit.weights.operators import evaluate

TIMM = ("resnet18", "resnet50", "resnetv2_50", "wide_resnet50_2", "densenet121", "seresnet50")
TORCHVISION = ("resnet18", "resnet50")
IMAGES = 200
FACE_CROP = (14, 106)  # rows of the 112: from the forehead to the chin, as wide as the picture is (92 px)


def main() -> None:
    """Run the parts asked for and write `results/weights-parity.json`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the folder of data sets and weights")
    data = parser.parse_args().data.resolve()
    torch.set_grad_enabled(False)
    parts: dict[str, Callable[[Path], Any]] = {
        "torch": torch_parity,
        "keras": keras_parity,
        "caffe": caffe_parity,
        "faces": face_verification,
        "others": other_files,
    }
    figures = {}
    for name, part in parts.items():
        figures[name] = part(data)
        print(name, figures[name], flush=True)
    write_result("weights-parity", figures)


def torch_parity(_: Path) -> dict[str, float]:
    """Return the largest difference of logits at 64 px for each network, its file read by our name for it."""
    import timm
    import torchvision

    makers = {f"timm/{name}": lambda n=name: timm.create_model(n, pretrained=False) for name in TIMM}
    makers |= {f"torchvision/{name}": lambda n=name: torchvision.models.get_model(n) for name in TORCHVISION}
    found = {}
    for name, make in makers.items():
        theirs = live(make().eval())
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "weights.pth"
            torch.save(theirs.state_dict(), file)
            ours = reskit.create_model(name.split("/")[1], weights=file).eval()
        images = torch.randn(2, 3, 64, 64)
        found[name] = float((ours(images) - theirs(images)).abs().max())
    return found


def live(network: nn.Module) -> nn.Module:
    """Give every norm statistics of its own, so that they matter."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.8, 1.2)
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.normal_(module.bias, 0, 0.1)
    return network


def cifar(folder: Path, *splits: str) -> tuple[Tensor, Tensor]:
    """Return the images of some splits, uint8 `(N, 3, 32, 32)`, and their labels."""
    source, preprocess = reskit.open_source(folder), ImagePreprocess(size=(32, 32))
    loaders = [make_loader(source[split], preprocess=preprocess, batch_size=1000) for split in splits]
    batches = [batch for loader in loaders for batch in loader]
    return torch.cat([batch["image"] for batch in batches]), torch.cat([batch["label"] for batch in batches])


def in_batches(network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return what a network gives, a hundred images at a time."""
    return torch.cat([network(chunk) for chunk in images.split(100)])


def top1(logits: Tensor, labels: Tensor) -> float:
    """Return the share of rows whose largest logit is the label's."""
    return float((logits.argmax(1) == labels).float().mean())


def keras_parity(data: Path) -> dict[str, float]:
    """Hold the .h5 and the .tflite file of one network against each other and against the interpreter."""
    from ai_edge_litert.interpreter import Interpreter

    folder = data / "weights" / "mlperf-tiny-resnet8"
    images, labels = cifar(data / "cifar10-lossless-4k", "train", "test")  # all 4,000
    pixels = images.float()  # this network takes them from 0 to 255
    h5, tflite = (read_checkpoint(folder / f"pretrainedResnet.{kind}").graph for kind in ("h5", "tflite"))
    ours = {
        "h5": in_batches(lambda x: evaluate(h5, x), pixels),
        "tflite": in_batches(lambda x: evaluate(tflite, x), pixels),
    }
    interpreter = Interpreter(model_path=str(folder / "pretrainedResnet.tflite"))
    interpreter.allocate_tensors()
    enter, leave = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    answers = []
    for image in pixels[:IMAGES]:
        interpreter.set_tensor(enter, image.permute(1, 2, 0)[None].numpy())
        interpreter.invoke()
        answers.append(torch.from_numpy(interpreter.get_tensor(leave).copy()))
    reference = torch.cat(answers)  # probabilities: the file ends in a softmax
    return {
        "h5_tflite_logits": float((ours["h5"] - ours["tflite"]).abs().max()),
        **{
            f"{kind}_litert_probabilities": float((logits[:IMAGES].softmax(1) - reference).abs().max())
            for kind, logits in ours.items()
        },
        **{f"{kind}_top1": top1(logits, labels) for kind, logits in ours.items()},
    }


def caffe_parity(data: Path) -> dict[str, dict[str, float]]:
    """Score Caffe's networks with the mean image of the training set, and hold them against OpenCV."""
    train, _ = cifar(data / "cifar10-jpeg", "train")
    images, labels = cifar(data / "cifar10-lossless-4k", "train", "test")  # all 4,000
    mean = train.double().mean(0).float()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        mean_file = Path(folder) / "mean.npy"
        np.save(mean_file, mean.numpy())
        for name in ("caffe-cifar-resnet20", "caffe-cifar-plain20"):
            files = sorted((data / "weights" / name).iterdir())
            bundle, imported = reskit.import_bundle([*files, mean_file], Path(folder) / name)
            inputs = in_batches(bundle.task.normalize, images)
            logits = in_batches(bundle.model, inputs)
            reference = opencv(files, Path(folder), inputs[:IMAGES])
            found[name] = {
                "model": imported.model.architecture["name"],
                "top1": top1(logits, labels),
                "opencv_logits": float((logits[:IMAGES] - reference).abs().max()),
                "largest_logit": float(reference.abs().max()),
            }
    return found


def opencv(files: list[Path], folder: Path, inputs: Tensor) -> Tensor:
    """Run a Caffe network by OpenCV, its data layers replaced by an input and its losses left out."""
    import cv2

    weights, text = sorted(files, key=lambda file: file.suffix != ".caffemodel")
    height, width = inputs.shape[2:]
    layers = re.split(r"(?m)^(?=layer\s*\{)", text.read_text())
    dropped = re.compile(r'type:\s*"(Data|Input|SoftmaxWithLoss|Softmax|Accuracy)"')
    kept = [layer for layer in layers[1:] if not dropped.search(layer)]
    first = re.search(r'bottom:\s*"(\w+)"', kept[0])[1]
    shape = f"dim: 1 dim: 3 dim: {height} dim: {width}"
    enter = f'layer {{ name: "in" type: "Input" top: "{first}" input_param {{ shape {{ {shape} }} }} }}\n'
    deploy = folder / "deploy.prototxt"
    deploy.write_text(enter + "".join(kept))
    network = cv2.dnn.readNetFromCaffe(str(deploy), str(weights))
    answers = []
    for chunk in inputs.split(50):
        network.setInput(chunk.numpy())
        answers.append(torch.from_numpy(network.forward().copy()).flatten(1))
    return torch.cat(answers)


def faces(data: Path) -> Iterator[tuple[int, Tensor]]:
    """Yield person and face, uint8 `(3, 112, 112)`, of the ORL pictures (92 x 112 px, grey)."""
    preprocess = ImagePreprocess(size=(112, 112))
    for person in sorted((data / "orl-faces").glob("s*")):
        for file in sorted(person.iterdir()):
            whole = preprocess.decode(file)
            top, bottom = FACE_CROP
            yield int(person.name[1:]), preprocess.fit(whole[:, top:bottom])


def face_verification(data: Path) -> dict[str, Any]:
    """Tell same from different people by the cosine of two embeddings, over all pairs."""
    people, pictures = zip(*faces(data), strict=True)
    inputs = (torch.stack(pictures).float() - 127.5) / 128
    first, second = torch.triu_indices(len(people), len(people), offset=1)
    person = torch.tensor(people)
    same = (person[first] == person[second]).numpy()
    found: dict[str, Any] = {"pictures": len(people), "pairs": len(same), "crop_rows": FACE_CROP}
    for name in ("mxnet-mobilefacenet", "caffe-mobilefacenet"):
        files = sorted((data / "weights" / name).iterdir())
        imported = reskit.import_model(files)
        # MXNet's file scales pixels itself; the reader takes that over into the preprocessing.
        embedded = in_batches(imported.model, inputs)
        unit = nn.functional.normalize(embedded)
        scores = (unit[first] * unit[second]).sum(1).numpy()
        found[name] = {
            "roc_auc": float(roc_auc_score(same, scores)),
            "residual_blocks": sum(isinstance(m, reskit.nn.Residual) for m in imported.model.modules()),
            "stated_preprocess": {
                k: v for k, v in imported.checkpoint.preprocess.items() if k != "mean_image"
            },
        }
        if name.startswith("caffe"):
            with tempfile.TemporaryDirectory() as folder:
                reference = opencv(files, Path(folder), inputs[:IMAGES])
            found[name]["opencv"] = float((embedded[:IMAGES] - reference).abs().max())
    return found


def other_files(data: Path) -> dict[str, int]:
    """Return how many tensors are read from the files no network here is for yet."""
    checkpoint = read_checkpoint(data / "weights" / "dncnn-s25" / "net.pth")
    return {"dncnn-s25": len(checkpoint.state)}


if __name__ == "__main__":
    main()
