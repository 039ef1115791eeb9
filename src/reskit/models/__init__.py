"""Networks by name: every family registers its published variants; see :func:`create_model`."""

from reskit.models.autoencoder import Autoencoder
from reskit.models.base import Backbone
from reskit.models.cifar_resnet import CifarResNet
from reskit.models.densenet import DenseNet
from reskit.models.detection import Detector, Fcos
from reskit.models.faster_rcnn import FasterRcnn
from reskit.models.graph import GraphNetwork
from reskit.models.identify import identify
from reskit.models.mobilenet import MobileNetV2
from reskit.models.nin import NiN
from reskit.models.preact import PreActResNet
from reskit.models.registry import MODELS, ModelEntry, create_model, list_models
from reskit.models.resnet import ResNet
from reskit.models.restoration import RestorationNet
from reskit.models.summary import model_summary
from reskit.models.superresolution import EDSR, VDSR
from reskit.models.tabular import TabularResNet
from reskit.models.text import TextResNet
from reskit.models.unet import UNet

__all__ = [
    "EDSR",
    "MODELS",
    "VDSR",
    "Autoencoder",
    "Backbone",
    "CifarResNet",
    "DenseNet",
    "Detector",
    "FasterRcnn",
    "Fcos",
    "GraphNetwork",
    "MobileNetV2",
    "ModelEntry",
    "NiN",
    "PreActResNet",
    "ResNet",
    "RestorationNet",
    "TabularResNet",
    "TextResNet",
    "UNet",
    "create_model",
    "identify",
    "list_models",
    "model_summary",
]
