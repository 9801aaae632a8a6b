"""timm's architectures by name: heads found, weights in timm's names, and what cannot serve refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from support import consumer
from support.loop import arrive, pipeline, run_window
from support.pictures import noise

from everfresh.tasks import models
from everfresh.tasks.architectures import input_of
from everfresh.tasks.config import ModelConfig
from everfresh.tasks.errors import ModelError
from everfresh.tasks.store import FolderStore

CLASSES = ("a", "b", "c")
PICTURES = [noise(n, 40) for n in range(5)]


@pytest.fixture(autouse=True)
def _not_the_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def settings(name: str, **changes: Any) -> ModelConfig:
    size = 160 if "vit" in name else 64
    return ModelConfig(**{"architecture": name, "weights": None, "classes": CLASSES, "image_size": size, **changes})


# A linear layer at the top, below a pool, behind a norm; a convolution in a block.
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "resnetv2_18"])
def test_weights_in_timms_names_are_adopted_embed_and_start_other_classes(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    trained = timm.create_model(name, num_classes=3).eval()
    save_file(trained.state_dict(), path := tmp_path / "model.safetensors")
    module, spec = models.adopt(settings(f"timm/{name}"), str(path))
    embeddings, scores = models.embed(module, spec, PICTURES)
    with torch.no_grad():
        own = trained.forward_head(
            trained.forward_features(torch.zeros(1, 3, spec.image_size, spec.image_size)), pre_logits=True
        )
    assert embeddings.shape == (5, own.flatten(1).shape[1])
    spec = models.with_linear_head(module, spec, seed=0)
    embeddings, scores = models.embed(module, spec, PICTURES)
    with torch.no_grad():
        torch.testing.assert_close(models.linear_head(module, spec)(embeddings), scores, atol=1e-5, rtol=1e-5)
    other, _ = models.start(settings(f"timm/{name}", weights=str(path), classes=("a", "b")), seed=0)
    head = spec.head
    kept = {n: t for n, t in other.state_dict().items() if not n.startswith(head)}
    assert kept
    assert all(torch.equal(t, trained.state_dict()[n]) for n, t in kept.items())


def test_a_pipeline_of_timms_model_releases_what_timm_alone_can_open(tmp_path: Path) -> None:
    config = pipeline(tmp_path, model={"architecture": "timm/test_resnet"}, fine_tune={"epochs": 1})
    config = config.model_copy(update={"gates": (config.gates[0].model_copy(update={"minimum": 0.0}),)})
    arrive(config, 24)
    store = FolderStore(tmp_path / "store")
    made = run_window(store, config)
    assert made.move is not None
    assert made.tried[0].versions["timm"] == timm.__version__
    _, as_recorded = consumer.score(tmp_path / "store", made.move.release)
    assert as_recorded == 1
    card = store.get(f"releases/{made.move.release}/card.md").decode()
    assert "torch, timm and safetensors suffice" in card


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("timm/resnet81", {}, r"name of timm \S+, got 'timm/resnet81'\. Did you mean .*timm/resnet18"),
        ("timm/test_resnet.no_such", {}, r"must end in one of timm's tags of test_resnet \(r160_in1k\), got 'no_such'"),
        (
            "timm/vit_tiny_patch16_224",
            {"image_size": 48},
            r"\(N, 3, 48, 48\), got AssertionError: .*\(224\)\. Set model\.image_size",
        ),
        ("timm/dla34", {}, r"timm/dla34 must .*, or correct it\."),  # its last layer is a convolution that stands alone
        ("timm/deit_tiny_distilled_patch16_224", {"image_size": 224}, r"must end in its linear layer 'head_dist'"),
    ],
)
def test_an_architecture_that_cannot_serve_is_refused(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=rf"(?s)model\.architecture.*{message}"):
        models.start(settings(name, **changes), seed=0)


def test_without_timm_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        ModelError, match=r"'timm/test_resnet' needs timm, .* Install it with: pip install 'everfresh\[timm\]'\."
    ):
        models.start(settings("timm/test_resnet"), seed=0)


def test_published_weights_that_cannot_be_had_are_told_with_the_way_round() -> None:
    for weights in ("DEFAULT", "r160_in1k"):
        with pytest.raises(
            ModelError,
            match=rf"model\.weights {weights} of timm/test_resnet could not be downloaded \(.*`hf download "
            r"timm/test_resnet\.r160_in1k model\.safetensors`\), and give model\.weights its path\.",
        ):
            models.start(settings("timm/test_resnet", weights=weights), seed=0)


def test_published_weights_are_those_of_the_hubs_cache(tmp_path: Path) -> None:
    """The layout of the cache that the hub's own client writes; a head for other classes is drawn from the seed."""
    published = timm.create_model("test_resnet")
    commit = tmp_path / "hub" / "models--timm--test_resnet.r160_in1k"
    (commit / "snapshots" / "c0").mkdir(parents=True)
    (commit / "refs").mkdir()
    (commit / "refs" / "main").write_text("c0")
    save_file(published.state_dict(), commit / "snapshots" / "c0" / "model.safetensors")
    first, again = (models.start(settings("timm/test_resnet", weights="DEFAULT"), seed=4)[0].state_dict() for _ in range(2))
    assert first["fc.weight"].shape[0] == 3
    assert all(torch.equal(t, again[n]) for n, t in first.items())
    assert all(torch.equal(t, first[n]) for n, t in published.state_dict().items() if not n.startswith("fc."))


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        (
            "timm/test_resnet",
            "IMAGENET1K_V1",
            r"must be DEFAULT, r160_in1k, a file or null for timm/test_resnet, got 'IMAGENET1K_V1'",
        ),
        ("timm/resnet50t", "DEFAULT", r"must be \(timm publishes none\), a file or null for timm/resnet50t, got 'DEFAULT'"),
    ],
)
def test_a_wrong_weights_name_is_refused(name: str, weights: str, message: str) -> None:
    with pytest.raises(ModelError, match=rf"model\.weights {message}"):
        models.start(settings(name, weights=weights), seed=0)


def test_the_transforms_of_published_weights_are_known() -> None:
    usual = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    assert input_of("timm/test_vit", "DEFAULT") == ((0.5,) * 3, (0.5,) * 3)
    assert input_of("timm/resnet18", "x/y.safetensors") == usual
    assert input_of("resnet18", "IMAGENET1K_V1") == input_of("vit_b_16", "DEFAULT") == usual
    assert input_of("resnet18", "mine.pth") is None
    assert input_of("timm/test_vit", None) is None
    assert input_of("a.b:c", "DEFAULT") is None
