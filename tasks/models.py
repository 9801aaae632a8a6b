"""Models: build, load, swap the head, embed, digest.

A model is a backbone that makes embeddings (N, D) and a head that makes class scores (N, C). The head is the
architecture's last linear layer. Architectures that end in a convolution (SqueezeNet) get a linear layer on the
pooled features as soon as Everfresh trains them; an adopted one keeps its own until then (``native_head``).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from everfresh.tasks.architectures import REMEDY, build, load_strict, published, read_state, read_weights
from everfresh.tasks.config import ModelConfig, S3Config, is_path
from everfresh.tasks.errors import ModelError
from everfresh.tasks.inputs import decode, noise, prepare, shape
from everfresh.tasks.records import Feature, ModelSpec, Part
from everfresh.tasks.store import Store

EMBED_BATCH = 64


def small_cnn(num_classes: int) -> nn.Module:
    """A three-layer network of 54 k weights, for demonstrations on a CPU; input (N, 3, S, S)."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    layers = [*block(3, 24), nn.MaxPool2d(2), *block(24, 48), nn.MaxPool2d(2), *block(48, 96)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(96, num_classes))


def start(config: ModelConfig, seed: int, s3: S3Config | None = None) -> tuple[nn.Module, ModelSpec]:
    """The configured start: architecture and weights, with a head for the configured classes.

    The head of the weights is kept if it has as many outputs as there are classes, else a fresh one is drawn
    from `seed`.

    Raises:
        ModelError: unknown architecture, weights that cannot be had or do not fit.
    """
    return begin(config, seed, s3)[:2]


def begin(config: ModelConfig, seed: int, s3: S3Config | None = None) -> tuple[nn.Module, ModelSpec, bool]:
    """The same, and whether its head is that of a file of weights: it has learnt something."""
    torch.manual_seed(seed)
    own = False
    if config.weights is not None and is_path(config.weights):
        module, spec, own = _from_state(config, read_state(config.weights, s3), seed)
    elif config.weights is not None:
        module, spec, _ = _with_head(published(config.architecture, config.weights, len(config.outputs)), config, seed)
    else:
        module, spec, _ = _with_head(build(config.architecture, len(config.outputs), _inputs(config)), config, seed)
    _check_head(module, spec)
    return module, spec, own


def adopt(config: ModelConfig, weights: str, s3: S3Config | None = None) -> tuple[nn.Module, ModelSpec]:
    """A model trained elsewhere, exactly as it is: a state dict whose outputs are the configured classes.

    Raises:
        ModelError: the weights do not fit the architecture or the number of classes.
    """
    module, spec, _ = _from_state(config, read_state(weights, s3), seed=0, keep_head=True)
    _check_head(module, spec)
    return module.eval(), spec


@torch.no_grad()
def _check_head(module: nn.Module, spec: ModelSpec) -> None:
    """Raise unless the model makes class scores (N, C), and they are its head applied to its embedding.

    Gates and head rung rest on it.
    """
    training, state = module.training, torch.get_rng_state()
    captured: list[Tensor] = []
    hook = module.get_submodule(spec.head).register_forward_pre_hook(lambda _, args: captured.append(args[0]))
    try:
        scores = module.eval()(noise(spec, 2))
    except Exception as error:  # of somebody else's code
        raise ModelError(
            f"model.architecture {spec.architecture} must take inputs (N, {', '.join(map(str, shape(spec)))}), got "
            f"{type(error).__name__}: {str(error).rstrip('.')}. "
            f"{'Correct it' if spec.features else 'Set model.image_size to what it was made for, or correct it'}."
        ) from error
    finally:
        hook.remove()
        module.train(training)
        torch.set_rng_state(state)
    found = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
    if found != (2, len(spec.classes)):
        raise ModelError(
            f"model.architecture {spec.architecture} must make a score for each of the {len(spec.classes)} model.classes, of "
            f"shape {(2, len(spec.classes))} for two samples, got {found}. Return the scores alone, in that order."
        )
    if spec.native_head:
        return
    features = captured[-1].mean(dim=(-2, -1)) if captured and captured[-1].ndim == 4 else captured[-1] if captured else None
    head = linear_head(module, spec)
    fits = features is not None and features.ndim == 2 and features.shape[1] == head.in_features
    expected = head(features) if fits else None
    if expected is None or not torch.allclose(expected, scores, rtol=1e-3, atol=1e-3):
        raise ModelError(
            f"model.architecture {spec.architecture} must end in its linear layer {spec.head!r}, got outputs that something "
            "after it changes. Move that into the training loss or into what reads the scores."
        )


def load(store: Store, spec: ModelSpec, weights: Part, *, code: str = "") -> nn.Module:
    """The model of a candidate or release, in eval mode; its bytes are verified.

    Args:
        store: of the pipeline.
        spec: how to build it, as the store has it.
        weights: its safetensors.
        code: ``model.architecture`` of the pipeline file: only from that package is code run that the store names.

    Raises:
        DigestMismatch: the weights are not what was recorded.
        ModelError: they do not fit the architecture, or the store names code that the pipeline file does not.
    """
    module = skeleton(spec, store.url(weights.key), code=code)
    load_strict(module, read_weights(store.local(weights), store.url(weights.key)), store.url(weights.key))
    return module.eval()


def skeleton(spec: ModelSpec, name: str, *, code: str = "") -> nn.Module:
    """The model without its weights: random ones stand in their place.

    Args:
        spec: how to build it, as the store has it.
        name: of what says so, for the error.
        code: as for :func:`load`.

    Raises:
        ModelError: it names code that the pipeline file does not, or cannot be built.
    """
    package = spec.architecture.partition(":")[0].split(".")[0]
    if ":" in spec.architecture and package not in {"everfresh", code.partition(":")[0].split(".")[0]}:
        raise ModelError(
            f"{name} names its architecture {spec.architecture!r}, code of a package that model.architecture "
            f"({code or 'none given'}) does not name, so it was not run. If you trust it, name it in the pipeline file; a "
            "service names it in `code` of load_champion."
        )
    return _build(spec)


def save(module: nn.Module, path: Path) -> None:
    """Write the weights as safetensors, contiguous, on the CPU."""
    save_file({name: t.detach().cpu().contiguous().clone() for name, t in module.state_dict().items()}, path)


def linear_head(module: nn.Module, spec: ModelSpec) -> nn.Linear:
    """The linear layer from embedding to class scores; None of it exists while the head is native.

    Raises:
        ModelError: the head is the architecture's own convolution.
    """
    head = module.get_submodule(spec.head)
    layer = head[-1] if isinstance(head, nn.Sequential) else head
    if spec.native_head or not isinstance(layer, nn.Linear):
        raise ModelError(f"model.architecture {spec.architecture} has no linear head yet; refit it first.")
    return layer


def head_kind(spec: ModelSpec) -> str:
    """How a consumer builds the head: ``native`` as the architecture has it, ``linear``, or ``pooled_linear``
    (average pooling, flattening, a linear layer) where the architecture ends in a convolution.
    """
    if spec.native_head:
        return "native"
    convolution = _find_head(build(spec.architecture, len(spec.classes), spec.inputs))[3]
    return "pooled_linear" if convolution else "linear"


def with_linear_head(module: nn.Module, spec: ModelSpec, seed: int) -> ModelSpec:
    """Give the model a linear head, if it has its native convolution still; returns the new spec."""
    if not spec.native_head:
        return spec
    _replace_head(module, spec.head, spec.embedding_dim, len(spec.classes), seed, pooled=True)
    return spec.model_copy(update={"native_head": False})


def with_classes(module: nn.Module, spec: ModelSpec, classes: tuple[str, ...], seed: int) -> ModelSpec:
    """Give the model a head for other classes: rows of classes that stay are kept, new ones are drawn from `seed`."""
    spec = with_linear_head(module, spec, seed)
    old = linear_head(module, spec)
    holder = module.get_submodule(spec.head)
    _replace_head(module, spec.head, spec.embedding_dim, len(classes), seed, pooled=_is_pooled(holder))
    spec_after = spec.model_copy(update={"classes": classes})
    new = linear_head(module, spec_after)
    with torch.no_grad():
        for row, name in enumerate(classes):
            if name in spec.classes:
                new.weight[row] = old.weight[spec.classes.index(name)]
                if old.bias is not None:
                    new.bias[row] = old.bias[spec.classes.index(name)]
    return spec_after


@torch.no_grad()
def embed(
    module: nn.Module, spec: ModelSpec, samples: Iterable[bytes], *, precision: str = "fp32", device: str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Embeddings (N, D) and class scores (N, C) of encoded samples, float32 on the CPU, in batches of fixed size."""
    module = module.eval().to(device=device, memory_format=layout(precision))  # type: ignore[call-overload]
    captured: list[Tensor] = []
    hook = module.get_submodule(spec.head).register_forward_pre_hook(lambda _, args: captured.append(args[0]))
    embeddings: list[Tensor] = []
    scores: list[Tensor] = []
    batch: list[Tensor] = []

    def flush() -> None:
        inputs = prepare(torch.stack(batch).to(device), spec, layout(precision))
        with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16"):
            output = module(inputs)
        features = captured.pop()
        features = features.mean(dim=(-2, -1)) if features.ndim == 4 else features  # (B, D)
        embeddings.append(features.float().cpu())
        scores.append(output.float().cpu())
        batch.clear()

    try:
        for data in samples:
            batch.append(decode(data, spec))
            if len(batch) == EMBED_BATCH:
                flush()
        if batch:
            flush()
    finally:
        hook.remove()
    if not embeddings:
        return torch.zeros(0, spec.embedding_dim), torch.zeros(0, len(spec.classes))
    return torch.cat(embeddings), torch.cat(scores)


def layout(precision: str) -> torch.memory_format:
    """Memory layout that goes with a precision: bf16 pays in channels-last only, fp32 is safest as it comes."""
    return torch.channels_last if precision == "bf16" else torch.preserve_format


def encoder_digest(module: nn.Module, spec: ModelSpec, precision: str) -> str:
    """32 hex digits for what makes the embeddings: backbone bytes, transforms, precision; the head is left out."""
    transforms = spec.features or (spec.image_size, spec.mean, spec.std)
    digest = hashlib.sha256(repr((spec.architecture, *transforms, precision)).encode())
    for name, tensor in sorted(module.state_dict().items()):
        if name != spec.head and not name.startswith(spec.head + "."):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def _find_head(module: nn.Module) -> tuple[str, int, int, bool]:
    """Path of the head, embedding width, outputs, and whether it is a convolution."""
    for name, child in reversed(list(module.named_modules())):
        if isinstance(child, nn.Linear):
            parent = name.rpartition(".")[0]
            whole = parent if parent and _is_pooled(module.get_submodule(parent)) else name
            if whole:
                return whole, child.in_features, child.out_features, False
        if isinstance(child, nn.Conv2d) and "." in name:
            return name.rpartition(".")[0], child.in_channels, child.out_channels, True
    raise ModelError(
        "model.architecture must end in a named linear layer, or a convolution inside a named block, got neither. "
        "Use a classifier."
    )


def _is_pooled(head: nn.Module) -> bool:
    """Whether it is average pooling to one value, flattening and a linear layer, as Everfresh makes them."""
    return (
        isinstance(head, nn.Sequential)
        and [type(layer) for layer in head] == [nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear]
        and cast(nn.AdaptiveAvgPool2d, head[0]).output_size in (1, (1, 1))
    )


def _replace_head(module: nn.Module, path: str, width: int, classes: int, seed: int, *, pooled: bool) -> None:
    torch.manual_seed(seed)
    old = module.get_submodule(path)
    layer = nn.Linear(width, classes, bias=old.bias is not None if isinstance(old, nn.Linear) else True)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), layer) if pooled else layer
    module.set_submodule(path, head)


def _spec(config: ModelConfig, head: str, width: int, *, native: bool) -> ModelSpec:
    return ModelSpec(
        architecture=config.architecture,
        classes=config.outputs,
        head=head,
        native_head=native,
        embedding_dim=width,
        image_size=config.image_size,
        mean=config.mean,
        std=config.std,
        task=config.task,
        tolerance=config.tolerance or 0.0,
        features=tuple(
            Feature(
                name=c.name,
                categories=c.categories,
                mean=0.0 if c.mean is None else c.mean,
                std=1.0 if c.std is None else c.std,
            )
            for c in config.features
        ),
    )


def _inputs(config: ModelConfig) -> int:
    """Numbers that a row becomes; 0 where samples are pictures."""
    return sum(len(c.categories) or 1 for c in config.features)


def _with_head(module: nn.Module, config: ModelConfig, seed: int) -> tuple[nn.Module, ModelSpec, bool]:
    """With a head for the configured classes, and whether it is the module's own."""
    path, width, outputs, convolution = _find_head(module)
    drawn = convolution or outputs != len(config.outputs)
    if drawn:
        pooled = convolution or _is_pooled(module.get_submodule(path))
        _replace_head(module, path, width, len(config.outputs), seed, pooled=pooled)
    return module, _spec(config, path, width, native=False), not drawn


def _from_state(
    config: ModelConfig, state: dict[str, Tensor], seed: int, *, keep_head: bool = False
) -> tuple[nn.Module, ModelSpec, bool]:
    """As a state dict has it, and whether the head is the state's own."""
    plain = build(config.architecture, len(config.outputs), _inputs(config))
    path, width, _, convolution = _find_head(plain)
    candidate = state.get(f"{path}.2.weight")
    ours = (
        convolution and candidate is not None and candidate.ndim == 2
    )  # a linear layer on pooled features, as Everfresh releases it
    pooled = ours or _is_pooled(plain.get_submodule(path))
    convolutions = [n for n, m in plain.named_modules() if n.startswith(f"{path}.") and isinstance(m, nn.Conv2d)]
    native = convolutions[-1] if convolution else path
    weight = state.get(f"{path}.2.weight" if pooled else f"{native}.weight")
    if weight is None:
        raise ModelError(f"model.weights do not fit model.architecture {config.architecture}: no head at {path!r}. {REMEDY}")
    outputs = weight.shape[0]
    if keep_head and outputs != len(config.outputs):
        raise ModelError(
            f"model.{'targets' if config.task == 'regression' else 'classes'} must be the {outputs} outputs of the weights, in "
            f"their order, got {len(config.outputs)} names. List all of them."
        )
    module = build(config.architecture, outputs, _inputs(config))
    if ours:
        _replace_head(module, path, width, outputs, seed, pooled=True)
    load_strict(module, state, "model.weights")
    if keep_head:
        return module, _spec(config, path, width, native=convolution and not ours), True
    return _with_head(module, config, seed)


def _build(spec: ModelSpec) -> nn.Module:
    module = build(spec.architecture, len(spec.classes), spec.inputs)
    if not spec.native_head:
        path, width, _, convolution = _find_head(module)
        if convolution:
            _replace_head(module, path, width, len(spec.classes), 0, pooled=True)
    return module


def parameters(module: nn.Module) -> int:
    """Number of weights."""
    return sum(math.prod(p.shape) for p in module.parameters())
