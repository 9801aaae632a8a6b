"""Models: build, load, swap the head, embed, digest.

A model is a backbone that makes embeddings (N, D) and a head that makes class scores (N, C). The head is the
architecture's last linear layer. Architectures that end in a convolution (SqueezeNet) get a linear layer on the
pooled features as soon as Everfresh trains them; an adopted one keeps its own until then (``native_head``).
"""

from __future__ import annotations

import hashlib
import importlib
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from everfresh.tasks.config import ModelConfig, S3Config, is_path
from everfresh.tasks.errors import ModelError, StoreError
from everfresh.tasks.inputs import decode, noise, prepare
from everfresh.tasks.records import Feature, ModelSpec, Part
from everfresh.tasks.store import Store, file_digest, open_store, scratch

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
    torch.manual_seed(seed)
    if config.weights is not None and is_path(config.weights):
        module, spec = _from_state(config, read_state(config.weights, s3), seed)
    elif config.weights is not None:
        module, spec = _with_head(_torchvision_weights(config.architecture, config.weights), config, seed)
    else:
        module, spec = _with_head(_architecture(config.architecture, len(config.classes), _inputs(config)), config, seed)
    _check_head(module, spec)
    return module, spec


def adopt(config: ModelConfig, weights: str, s3: S3Config | None = None) -> tuple[nn.Module, ModelSpec]:
    """A model trained elsewhere, exactly as it is: a state dict whose outputs are the configured classes.

    Raises:
        ModelError: the weights do not fit the architecture or the number of classes.
    """
    module, spec = _from_state(config, read_state(weights, s3), seed=0, keep_head=True)
    _check_head(module, spec)
    return module.eval(), spec


@torch.no_grad()
def _check_head(module: nn.Module, spec: ModelSpec) -> None:
    """Raise unless the model's scores are its head applied to its embedding: gates and head rung rest on it."""
    if spec.native_head:
        return
    training, state = module.training, torch.get_rng_state()
    captured: list[Tensor] = []
    hook = module.get_submodule(spec.head).register_forward_pre_hook(lambda _, args: captured.append(args[0]))
    try:
        scores = module.eval()(noise(spec, 2))
    finally:
        hook.remove()
        module.train(training)
        torch.set_rng_state(state)
    features = captured[-1].mean(dim=(-2, -1)) if captured and captured[-1].ndim == 4 else captured[-1] if captured else None
    expected = linear_head(module, spec)(features) if features is not None else None
    if expected is None or expected.shape != scores.shape or not torch.allclose(expected, scores, rtol=1e-3, atol=1e-3):
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
    package = spec.architecture.partition(":")[0].split(".")[0]
    if ":" in spec.architecture and package not in {"everfresh", code.partition(":")[0].split(".")[0]}:
        raise ModelError(
            f"{store.url(weights.key)} names its architecture {spec.architecture!r}, code of a package that model.architecture "
            f"({code or 'none given'}) does not name, so it was not run. If you trust it, name it in the pipeline file."
        )
    module = _build(spec)
    _load_strict(module, load_file(store.local(weights)), store.url(weights.key))
    return module.eval()


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
    convolution = _find_head(_architecture(spec.architecture, len(spec.classes), spec.inputs))[3]
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


def read_state(weights: str, s3: S3Config | None = None) -> dict[str, Tensor]:
    """A state dict from a local file or a store key, safetensors or a torch file without code.

    Raises:
        ModelError: missing, unreadable, holds code, or holds values that are not finite.
    """
    with scratch() as folder:
        path = Path(weights)
        if "://" in weights:
            prefix, _, name = weights.rpartition("/")
            path = folder / name
            try:
                open_store(prefix, s3).fetch(name, path)
            except StoreError as error:
                raise ModelError(f"model.weights {weights} cannot be read: {error}") from error
        if not path.is_file():
            raise ModelError(f"model.weights must be a file that exists, got {weights}. Put it there or correct the path.")
        try:
            state: Any = (
                load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
            )
        except Exception as error:  # safetensors and torch raise many kinds, none of them for us to pass on
            raise ModelError(
                f"model.weights {weights} is not a readable state dict ({type(error).__name__}). "
                "Save it with safetensors.torch.save_file(model.state_dict(), …); files that hold code are refused."
            ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(n, str) and isinstance(t, Tensor) for n, t in state.items()):
        raise ModelError(f"model.weights {weights} must be a mapping of names to tensors. Save model.state_dict().")
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    for name, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ModelError(
                f"model.weights {weights}: {name} has values that are not finite. Use a checkpoint from before that."
            )
    return cast(dict[str, Tensor], state)


def _architecture(name: str, classes: int, features: int = 0, **options: Any) -> nn.Module:
    """An architecture with fresh weights; one of the user's own is told the `features` of a row, if there are any."""
    if ":" in name:
        module_name, _, attribute = name.partition(":")
        told = {"features": features} if features else {}
        try:
            made = getattr(importlib.import_module(module_name), attribute)(classes, **told)
        except (ImportError, AttributeError) as error:
            raise ModelError(
                f"model.architecture {name!r} cannot be imported ({error}). Install it beside everfresh."
            ) from error
        except Exception as error:  # of somebody else's code
            arguments = ", ".join([str(classes), *(f"{k}={v}" for k, v in told.items())])
            raise ModelError(
                f"model.architecture {name!r} must return a torch.nn.Module for a number of classes"
                f"{' and features' if told else ''}, got {type(error).__name__}: {error}. Call it with {arguments} where you "
                "can see its traceback."
            ) from error
        if not isinstance(made, nn.Module):
            raise ModelError(f"model.architecture {name!r} must return a torch.nn.Module, got {type(made).__name__}.")
        return made
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)  # the classifiers
    if name not in known:
        import difflib

        close = ", ".join(difflib.get_close_matches(name, known)) or "resnet50, mobilenet_v3_small, …"
        raise ModelError(
            f"model.architecture must be a torchvision classifier or package.module:callable, got {name!r}. "
            f"Did you mean {close}?"
        )
    if name in {"googlenet", "inception_v3"}:  # as their pretrained weights are built, so that a reload predicts the same
        options = {"aux_logits": False, "init_weights": True, "transform_input": True, **options}
    return cast(nn.Module, torchvision.models.get_model(name, num_classes=classes, **options))


def _torchvision_weights(architecture: str, weights: str) -> nn.Module:
    from torchvision.models import get_model_weights

    if ":" in architecture:
        raise ModelError(
            f"model.weights {weights!r} is a torchvision name, but model.architecture is {architecture!r}. Give a file or null."
        )
    _architecture(architecture, 2)
    enum = get_model_weights(architecture)
    if weights != "DEFAULT" and weights not in enum.__members__:
        raise ModelError(
            f"model.weights must be one of {', '.join(enum.__members__)}, a file or null for {architecture}, got {weights!r}."
        )
    chosen = enum.DEFAULT if weights == "DEFAULT" else enum[weights]
    place = Path(torch.hub.get_dir()) / "checkpoints" / Path(chosen.url).name
    _check_name(place)
    try:
        state = _as_built(chosen.get_state_dict(map_location="cpu", check_hash=True, weights_only=True))
    except OSError as error:
        raise ModelError(
            f"model.weights {weights} of {architecture} could not be downloaded ({error}). "
            f"Put the file {place.name} at {place}, or give model.weights a path."
        ) from error
    except Exception as error:  # torch raises many kinds, none of them for us to pass on
        raise ModelError(
            f"model.weights {weights} of {architecture}, {place}, must be a whole state dict without code, got a file that is "
            f"none ({type(error).__name__}). Delete it, so that it is downloaded again, or give model.weights a path."
        ) from error
    module = _architecture(architecture, len(chosen.meta["categories"]))
    _load_strict(module, state, f"model.weights {weights}")
    return module


def _check_name(place: Path) -> None:
    """Raise unless a file that was downloaded before has the digest that its name begins to tell, as torchvision's do."""
    told = re.search(r"-([0-9a-f]{8,})\.", place.name)
    if told and place.exists() and not (found := file_digest(place)).startswith(told[1]):
        raise ModelError(
            f"model.weights: {place} must have the SHA-256 {told[1]}… of its name, got {found[: len(told[1])]}…: it is damaged "
            "or another file. Delete it, so that it is downloaded again."
        )


def _as_built(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state under the names of today's architectures (DenseNet's are old) and without heads for training alone."""
    for name in list(state):
        tensor = state.pop(name)
        if not name.startswith(("aux1.", "aux2.", "AuxLogits.")):
            state[re.sub(r"(denselayer\d+\.(?:norm|conv))\.", r"\1", name)] = tensor
    return state


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
        classes=config.classes,
        head=head,
        native_head=native,
        embedding_dim=width,
        image_size=config.image_size,
        mean=config.mean,
        std=config.std,
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


def _with_head(module: nn.Module, config: ModelConfig, seed: int) -> tuple[nn.Module, ModelSpec]:
    path, width, outputs, convolution = _find_head(module)
    if convolution or outputs != len(config.classes):
        pooled = convolution or _is_pooled(module.get_submodule(path))
        _replace_head(module, path, width, len(config.classes), seed, pooled=pooled)
    return module, _spec(config, path, width, native=False)


def _from_state(
    config: ModelConfig, state: dict[str, Tensor], seed: int, *, keep_head: bool = False
) -> tuple[nn.Module, ModelSpec]:
    plain = _architecture(config.architecture, len(config.classes), _inputs(config))
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
        raise ModelError(
            f"model.weights do not fit model.architecture {config.architecture}: no head at {path!r}. "
            "Name the architecture that they were trained with."
        )
    outputs = weight.shape[0]
    if keep_head and outputs != len(config.classes):
        raise ModelError(
            f"model.classes must be the {outputs} outputs of the weights, in their order, got {len(config.classes)} names. "
            "List all of them."
        )
    module = _architecture(config.architecture, outputs, _inputs(config))
    if ours:
        _replace_head(module, path, width, outputs, seed, pooled=True)
    _load_strict(module, state, "model.weights")
    if keep_head:
        return module, _spec(config, path, width, native=convolution and not ours)
    return _with_head(module, config, seed)


def _build(spec: ModelSpec) -> nn.Module:
    module = _architecture(spec.architecture, len(spec.classes), spec.inputs)
    if not spec.native_head:
        path, width, _, convolution = _find_head(module)
        if convolution:
            _replace_head(module, path, width, len(spec.classes), 0, pooled=True)
    return module


def _load_strict(module: nn.Module, state: dict[str, Tensor], name: str) -> None:
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        first = " ".join(str(error).split())[:300].rstrip(".")
        raise ModelError(
            f"{name} do not fit model.architecture: {first}. Name the architecture they were trained with."
        ) from error


def parameters(module: nn.Module) -> int:
    """Number of weights."""
    return sum(math.prod(p.shape) for p in module.parameters())


def class_index(labels: Sequence[str | None], classes: Sequence[str]) -> Tensor:
    """Labels as class numbers (N,), -1 where there is none or an unknown one."""
    number = {name: i for i, name in enumerate(classes)}
    return torch.tensor([number.get(label, -1) if label is not None else -1 for label in labels], dtype=torch.long)
