"""What a prediction rests on: where in a picture a model looked, or which columns of a row spoke for its answer.

Of pictures it is Grad-CAM (Selvaraju et al. 2017) on the last map that the network makes, which costs one pass forwards
and one back, whatever the network; a network that goes on in tokens after its last map (ViT) has none to speak of, and
the smoothed gradient by pixel (Simonyan et al. 2013) stands in. Of rows it is integrated gradients (Sundararajan et al.
2017) from the mean of each column. All by Captum. An attribution is a hint, no proof.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from everfresh.tasks.inputs import prepare
from everfresh.tasks.records import ModelSpec

STEPS = 32
"""Between a row's baseline and the row."""


def heat(module: nn.Module, spec: ModelSpec, pictures: Tensor, outputs: Sequence[int]) -> NDArray[np.float32]:
    """Where the model looked for one output of each picture.

    Args:
        module: in eval mode.
        spec: of the model.
        pictures: (B, 3, S, S) uint8, as the model is fed.
        outputs: (B,) number of the class or value that is explained.

    Returns:
        (B, S, S), 0…1 a picture; all 0 where nothing speaks for the output.
    """
    from captum.attr import LayerGradCam, Saliency

    inputs = prepare(pictures, spec)
    wanted = torch.tensor(list(outputs))
    if (layer := _last_map(module, inputs[:1])) is not None:
        found = LayerGradCam(module, layer).attribute(inputs, target=wanted, relu_attributions=True)  # (B, 1, h, w)
    else:
        slopes = Saliency(module).attribute(inputs.requires_grad_(), target=wanted)
        found = functional.avg_pool2d(slopes.mean(dim=1, keepdim=True), max(1, spec.image_size // 16))
    found = functional.interpolate(found.detach().float(), size=inputs.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    most = found.flatten(1).max(dim=1).values[:, None, None]
    return np.asarray((found / most.clamp_min(1e-12)).clamp(0, 1).numpy(), dtype=np.float32)


def reasons(module: nn.Module, spec: ModelSpec, rows: Tensor, outputs: Sequence[int]) -> list[dict[str, float]]:
    """What each column of a row added to one output, against a row of means; the strongest first.

    Args:
        module: in eval mode.
        spec: of the model.
        rows: (B, D) float32, as the model is fed.
        outputs: (B,) number of the class or value that is explained.
    """
    from captum.attr import IntegratedGradients

    wanted = torch.tensor(list(outputs))
    made = IntegratedGradients(module).attribute(rows, target=wanted, n_steps=STEPS).detach()  # (B, D)
    widths = [f.width for f in spec.features]
    added = torch.stack([part.sum(dim=1) for part in made.split(widths, dim=1)], dim=1).double().numpy()  # (B, F)
    names = [f.name for f in spec.features]
    return [{names[i]: float(row[i]) for i in np.argsort(-np.abs(row), kind="stable")} for row in added]


def _last_map(module: nn.Module, sample: Tensor) -> nn.Module | None:
    """The module whose output is the last map (1, C, h, w) of more than one place; None if tokens come after it."""
    last: list[nn.Module | None] = [None]

    def see(child: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and min(output.shape[-2:]) > 1:
            last[0] = child
        elif isinstance(output, Tensor) and output.ndim == 3:
            last[0] = None

    hooks = [child.register_forward_hook(see) for child in module.modules() if child is not module]
    try:
        with torch.no_grad():
            module(sample)
    finally:
        for hook in hooks:
            hook.remove()
    return last[0]
