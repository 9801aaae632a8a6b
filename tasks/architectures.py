"""Architectures by name and their weights: torchvision's, timm's, the user's own; published, in a file, in a store.

Nothing here runs code that came with weights: they are safetensors, or torch files read with ``weights_only``.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from everfresh.tasks.config import S3Config
from everfresh.tasks.errors import ModelError, StoreError
from everfresh.tasks.store import file_digest, open_store, scratch

REMEDY = "Name the architecture that they were trained with."
OWN, TIMM = ":", "timm/"
"""What marks the user's own callable, and a name of timm's."""


def build(name: str, classes: int, features: int = 0) -> nn.Module:
    """The architecture with random weights drawn from torch's generator, and as many outputs as there are classes.

    Args:
        name: ``package.module:callable``, ``timm/<name>``, or a torchvision classifier.
        classes: outputs.
        features: numbers of a row, which one of the user's own is told; 0 where samples are pictures.

    Raises:
        ModelError: there is none of that name, or it cannot be made.
    """
    if OWN in name:
        return _own(name, classes, {"features": features} if features else {})
    if name.startswith(TIMM):
        return _timm(name, classes)
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)  # the classifiers
    if name not in known:
        raise ModelError(
            f"model.architecture must be a torchvision classifier, timm/<name> or package.module:callable, got {name!r}. "
            f"Did you mean {_close(name, known, 'resnet50, mobilenet_v3_small, …')}?"
        )
    # As their pretrained weights are built, so that a reload predicts the same.
    options = {"aux_logits": False, "init_weights": True, "transform_input": True}
    built = torchvision.models.get_model(name, num_classes=classes, **options if name in {"googlenet", "inception_v3"} else {})
    return cast(nn.Module, built)


def published(architecture: str, weights: str, classes: int) -> nn.Module:
    """The architecture with weights that torchvision or timm publishes, from its cache or downloaded.

    Args:
        architecture: a name of torchvision's, or ``timm/<name>``.
        weights: ``DEFAULT`` or one of the names that the library has for them.
        classes: outputs, where the library gives the model a fresh head for another number than was trained.

    Raises:
        ModelError: there are none of that name, or they cannot be had.
    """
    if OWN in architecture:
        raise ModelError(
            f"model.weights {weights!r} is a published name, but model.architecture is {architecture!r}. Give a file or null."
        )
    if architecture.startswith(TIMM):
        return _timm_published(architecture, weights, classes)
    return _torchvision_published(architecture, weights)


def input_of(architecture: str, weights: str | None) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation, by channel in 0…1, that published weights were trained with; None if unknown."""
    if OWN in architecture or weights is None:
        return None
    if architecture.startswith(TIMM):
        cfg = _import_timm(architecture).get_pretrained_cfg(architecture.removeprefix(TIMM))
        return (tuple(cfg.mean), tuple(cfg.std)) if cfg else None
    from torchvision.models import get_model_weights

    enum = get_model_weights(architecture)
    if weights != "DEFAULT" and weights not in enum.__members__:
        return None
    transforms = (enum.DEFAULT if weights == "DEFAULT" else enum[weights]).transforms()
    return tuple(transforms.mean), tuple(transforms.std)


def read_weights(path: Path, name: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, which can hold nothing else.

    Raises:
        ModelError: it is no such file.
    """
    try:
        return load_file(path)
    except Exception as error:  # of safetensors' own kinds
        raise ModelError(
            f"{name} must be a safetensors file, got one that is none ({' '.join(str(error).split())[:200]}). Nothing of it "
            "was run. Restore it from a copy, or roll back."
        ) from error


def load_strict(module: nn.Module, state: dict[str, Tensor], name: str) -> None:
    """Put a state into a module that must have exactly its tensors.

    Raises:
        ModelError: they do not fit; says how many tensors are missing, strange or of another shape, and the first of each.
    """
    try:
        left = module.load_state_dict(state, strict=False)
    except RuntimeError as error:  # whose text goes through all tensors of another shape
        told = " ".join(str(error).split())[:300].rstrip(".")
        raise ModelError(f"{name} do not fit model.architecture: {told}. {REMEDY}") from error
    wrong = {"missing": left.missing_keys, "unknown": left.unexpected_keys}
    if told := "; ".join(f"{len(keys)} tensors {what}, first {keys[0]}" for what, keys in wrong.items() if keys):
        raise ModelError(f"{name} do not fit model.architecture: {told}. {REMEDY}")


def source_digest(name: str) -> str | None:
    """Digest of the file that defines an architecture of the user's own; None of a library's, whose version tells.

    What that file imports is not looked at.
    """
    if OWN not in name:
        return None
    try:
        found = importlib.util.find_spec(name.partition(OWN)[0])
    except Exception:  # of somebody else's code, which finding it may run
        return None  # `build` will say so
    place = Path(found.origin) if found and found.origin else None
    return file_digest(place) if place and place.is_file() else None


# --- the user's own --------------------------------------------------------------------------------------


def _own(name: str, classes: int, told: dict[str, int]) -> nn.Module:
    module_name, _, attribute = name.partition(OWN)
    try:
        made = getattr(importlib.import_module(module_name), attribute)(classes, **told)
    except (ImportError, AttributeError) as error:
        raise ModelError(
            f"model.architecture {name!r} cannot be imported ({error}). "
            "Correct the name, install it beside everfresh, or put its folder into PYTHONPATH."
        ) from error
    except Exception as error:  # of somebody else's code
        arguments = ", ".join([str(classes), *(f"{k}={v}" for k, v in told.items())])
        raise ModelError(
            f"model.architecture {name!r} must return a torch.nn.Module for a number of classes"
            f"{' and features' if told else ''}, got {type(error).__name__}: {error}. Call it with {arguments} where you "
            "can see its traceback."
        ) from error
    if not isinstance(made, nn.Module):
        raise ModelError(
            f"model.architecture {name!r} must return a torch.nn.Module, got {type(made).__name__}. Return the network itself."
        )
    return made


# --- timm ------------------------------------------------------------------------------------------------


def _import_timm(name: str) -> Any:
    try:
        import timm
    except ImportError as error:
        raise ModelError(
            f"model.architecture {name!r} needs timm, which cannot be imported ({error}). "
            "Install it with: pip install 'everfresh[timm]'."
        ) from error
    return timm


def _timm(name: str, classes: int, **options: Any) -> nn.Module:
    timm = _import_timm(name)
    plain, _, tag = name.removeprefix(TIMM).partition(".")
    if not timm.is_model(plain):
        raise ModelError(
            f"model.architecture must be timm/ and a name of timm {timm.__version__}, got {name!r}. "
            f"Did you mean {_close(plain, timm.list_models(), 'resnet50, vit_small_patch16_224, …', TIMM)}?"
        )
    if tag and tag not in (tags := _tags(timm, plain)):
        raise ModelError(
            f"model.architecture {name!r} must end in one of timm's tags of {plain} ({', '.join(tags) or 'there is none'}), "
            f"got {tag!r}. Leave it out, or choose one."
        )
    try:
        return cast(nn.Module, timm.create_model(name.removeprefix(TIMM), num_classes=classes, **options))
    except OSError:  # of the download
        raise
    except Exception as error:  # timm's architectures raise many kinds, as do downloads
        raise ModelError(
            f"model.architecture {name!r} cannot be made by timm {timm.__version__} for {classes} classes "
            f"({type(error).__name__}: {error}). Choose another, or a package.module:callable of your own that makes it."
        ) from error


def _timm_published(name: str, weights: str, classes: int) -> nn.Module:
    timm = _import_timm(name)
    plain, _, tag = name.removeprefix(TIMM).partition(".")
    _timm(name, classes)
    tags = _tags(timm, plain)
    if weights not in (choice := ["DEFAULT", *tags] if tags else []):
        raise ModelError(
            f"model.weights must be {', '.join(choice) or '(timm publishes none)'}, a file or null for {name}, got "
            f"{weights!r}. Choose one."
        )
    chosen = tag if weights == "DEFAULT" and tag else tags[0] if weights == "DEFAULT" else weights
    try:
        return _timm(f"{TIMM}{plain}.{chosen}", classes, pretrained=True)
    except OSError as error:
        place = timm.get_pretrained_cfg(f"{plain}.{chosen}").hf_hub_id
        raise ModelError(
            f"model.weights {weights} of {name} could not be downloaded ({' '.join(str(error).split())[:200]}). Fetch "
            f"model.safetensors of {place} where there is network (`hf download {place} model.safetensors`), "
            "and give model.weights its path."
        ) from error


def _tags(timm: Any, plain: str) -> list[str]:
    """Of the weights that timm publishes for an architecture, its default first."""
    found = [name.partition(".")[2] for name in timm.list_pretrained(f"{plain}.*")]
    default = timm.get_pretrained_cfg(plain)
    return sorted(found, key=lambda tag: default is None or tag != default.tag)


def _close(name: str, known: Iterable[str], otherwise: str, prefix: str = "") -> str:
    return ", ".join(prefix + close for close in get_close_matches(name, list(known))) or otherwise


# --- torchvision -----------------------------------------------------------------------------------------


def _torchvision_published(architecture: str, weights: str) -> nn.Module:
    from torchvision.models import get_model_weights

    build(architecture, 2)
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
    module = build(architecture, len(chosen.meta["categories"]))
    load_strict(module, state, f"model.weights {weights}")
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


# --- files -----------------------------------------------------------------------------------------------


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
            raise ModelError(
                f"model.weights must be a file that exists, got {weights}, {'a folder' if path.is_dir() else 'which is none'}. "
                "Put it there or correct the path."
            )
        if what := _no_weights(path):
            raise ModelError(f"model.weights must be a state dict, got {weights}, {what}.")
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


def _no_weights(path: Path) -> str:
    """What a file is that people take for weights now and then, and what to do; empty where it may hold some."""
    with path.open("rb") as file:
        start = file.read(64).lstrip().lower()
    if not path.stat().st_size:
        return "an empty file. Copy it again"
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page. Download the file itself, not the page that shows it"
    if start.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS. Get the file with `git lfs pull`"
    return ""
