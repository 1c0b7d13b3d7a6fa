"""The networks that are tried: by family, with the size of their images and the layers that write their outputs."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from fcs_utils.benchmarks.small import WRITTEN_HERE
from fcs_utils.builders import TIMM, TORCHVISION, build_elsewhere, is_own
from fcs_utils.errors import StudyError, refuse
from fcs_utils.pruning.surgery import recalibrate
from fcs_utils.running import seed_draws, shared

CLASSES = 1000  # of a classifier, as of ImageNet


@dataclass(frozen=True)
class Known:
    """A network that is tried. size: pixels of the side of its images. heads: patterns of the layers that write its outputs.

    options: for the function of torchvision that builds a segmenter or detector.
    """

    family: str
    size: int = 128
    heads: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


def _all() -> dict[str, Known]:
    families = {
        "ResNet and kin": "resnet18 resnet50 wide_resnet50_2 resnext50_32x4d regnet_x_400mf regnet_y_400mf",
        "plain and joined": "alexnet vgg16 vgg16_bn squeezenet1_1 densenet121 googlenet inception_v3",
        "mobile": "mobilenet_v2 mobilenet_v3_large mnasnet1_0 shufflenet_v2_x1_0 efficientnet_b0 efficientnet_v2_s convnext_tiny",
    }
    found = {TORCHVISION + name: Known(family) for family, names in families.items() for name in names.split()}
    # With no threshold on scores, untrained detectors find something, so that there are outputs to compare.
    boxes = {"min_size": 128, "max_size": 128}
    score = {"score_thresh": 0.0}
    of_retina = ("head.*.cls_logits", "head.*.bbox_*")
    plain = {"aux_loss": False}
    found |= {
        f"{TORCHVISION}{name}": Known(family, size, heads, options)
        for name, family, size, heads, options in (
            ("fcn_resnet50", "segmentation", 128, ("classifier.4",), plain),
            ("deeplabv3_resnet50", "segmentation", 128, ("classifier.4",), plain),
            ("deeplabv3_mobilenet_v3_large", "segmentation", 128, ("classifier.4",), plain),
            ("lraspp_mobilenet_v3_large", "segmentation", 128, ("classifier.*_classifier",), {}),
            (
                "fasterrcnn_resnet50_fpn",
                "detection",
                128,
                ("rpn.head.cls_logits", "rpn.head.bbox_pred", "roi_heads.box_predictor.*"),
                boxes | {"box_score_thresh": 0.0, "rpn_post_nms_top_n_test": 100},
            ),
            ("retinanet_resnet50_fpn", "detection", 128, of_retina, boxes | score),
            ("fcos_resnet50_fpn", "detection", 128, of_retina, boxes | score),
            ("ssd300_vgg16", "detection", 300, ("head.*",), score),
            ("ssdlite320_mobilenet_v3_large", "detection", 320, ("head.*",), score),
        )
    }
    of_timm = (
        "convnext_tiny efficientnet_b0 regnety_004 resnext50_32x4d ghostnet_100 repvgg_a0 mobileone_s0 nf_resnet50 "
        "hrnet_w18_small ese_vovnet19b_dw res2net50_26w_4s botnet26t_256"
    )
    found |= {TIMM + name: Known("timm", 256 if name.endswith("256") else 128) for name in of_timm.split()}
    # One of each other family of timm that convolves, small where there is a choice. The attention of some has fixed positions.
    others = {
        128: "convmixer_768_32 convnextv2_atto cs3darknet_s csatv2 cspdarknet53 cspresnet50 dla34 dm_nfnet_f0 dpn68b ecaresnet26t "
        "edgenext_small efficientvit_b0 fasternet_t0 fastvit_t8 gernet_s ghostnetv2_100 hardcorenas_a hgnetv2_b0 iformer_t "
        "inception_next_atto inception_resnet_v2 inception_v4 lambda_resnet26t lcnet_050 legacy_seresnet18 legacy_xception "
        "lowformer_b0 mambaout_femto mixnet_s mobilenetv4_conv_small mobilevit_xxs nasnetalarge nextvit_small pnasnet5large "
        "poolformer_s12 rdnet_tiny regnetz_b16 repghostnet_050 repvit_m0_9 resnest14d resnetblur50 resnetv2_50 rexnet_100 "
        "selecsls42b shvit_s1 skresnet18 starnet_s1 tresnet_m vovnet39a xception41",
        224: "coatnet_pico_rw_224 efficientformer_l1 efficientformerv2_s0 efficientvit_m0 levit_conv_128s "
        "swiftformer_xs visformer_tiny",
    }
    found |= {TIMM + name: Known("timm, others", size) for size, names in others.items() for name in names.split()}
    return found | {name: Known("written here", 32 if name == "lenet" else 64, ("head*",)) for name in WRITTEN_HERE}


ZOO = _all()


def chosen(only: list[str] | None = None) -> tuple[dict[str, Known], list[str]]:
    """The networks to try, by name, and those left out because timm is not installed.

    only: some of them by name, also without ``torchvision/`` or ``timm:``, or ``MODULE:FUNCTION`` of one's own. Raises StudyError
    for an unknown name.
    """
    wanted: dict[str, Known] = {} if only else dict(ZOO)
    for name in only or ():
        full = [one for one in ZOO if name in (one, one.removeprefix(TORCHVISION), one.removeprefix(TIMM))]
        if not full and not is_own(name):
            raise refuse("only", name, ", ".join([*(one.removeprefix(TORCHVISION) for one in ZOO), "MODULE:FUNCTION of your own"]))
        wanted |= {one: ZOO[one] for one in full} or {name: Known("your own", 64)}
    left_out = [name for name in wanted if name.startswith(TIMM) and importlib.util.find_spec("timm") is None]
    return {name: known for name, known in wanted.items() if name not in left_out}, left_out


def known(name: str) -> Known:
    """What is known of a network."""
    return ZOO.get(name) or Known("your own", 64)


def build_known(name: str) -> tuple[nn.Module, Tensor]:
    """A network in eval mode whose weights all differ and matter, and one random image (1, 3, H, W).

    Every vector of numbers by channel is drawn anew: many networks begin with zeros there, which would hide what surgery does. Then
    BatchNorm learns its statistics from random images, so that no layer's outputs vanish or grow without limit.
    """
    of = known(name)
    with shared, torch.random.fork_rng(devices=[]):
        seed_draws(0)
        network = _built(name, of).eval()
        with torch.no_grad():
            for module in network.modules():
                for tensor in module.parameters(recurse=False):
                    if tensor.is_floating_point() and tensor.numel() == max(tensor.shape, default=1):
                        tensor.uniform_(-0.1, 0.1) if tensor is getattr(module, "bias", None) else tensor.uniform_(0.5, 1.5)
        images = torch.randn(2, 3, of.size, of.size)
        with contextlib.suppress(StudyError):  # the network has limits of its own, which the pruners will name
            recalibrate(network, images)
    return network, images[:1]


def _built(name: str, of: Known) -> nn.Module:
    if name in WRITTEN_HERE:
        return WRITTEN_HERE[name]()
    if of.family not in ("segmentation", "detection"):
        return build_elsewhere(name, CLASSES, 3)
    import torchvision

    return torchvision.models.get_model(  # type: ignore[no-any-return]
        name.removeprefix(TORCHVISION), weights=None, weights_backbone=None, **of.options
    )


def output_layers(name: str, network: nn.Module) -> list[nn.Module]:
    """The layers that write a network's outputs, which no pruner may narrow: those known, else those with one for each class."""
    if heads := known(name).heads:
        return [module for path, module in network.named_modules() if any(fnmatchcase(path, head) for head in heads)]
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    return [layer for layer in layers if layer.weight.shape[0] == CLASSES]
