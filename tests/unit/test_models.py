"""Models: any classifier gets the right head, gives its embeddings, and comes back as it was."""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from support.pictures import noise
from torch import Tensor, nn

from everfresh.tasks import architectures, models
from everfresh.tasks.config import ModelConfig
from everfresh.tasks.embeddings import Embedder
from everfresh.tasks.errors import DigestMismatch, ModelError
from everfresh.tasks.images import examine, normalise, to_tensor
from everfresh.tasks.records import ModelSpec
from everfresh.tasks.store import FolderStore, S3Store
from everfresh.tasks.targets import Targets
from everfresh.tasks.views import View, ViewWriter

CLASSES = ("a", "b", "c")
PICTURES = [noise(n, 40) for n in range(5)]
TORCHVISION = ["resnet18", "squeezenet1_1", "mobilenet_v3_small"]
OWN = [f"support.networks:{n}" for n in ("plain", "without_bias", "Pooled", "Convolutional")]
OWN.append("everfresh.tasks.models:small_cnn")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Pictures this small are slower on many threads, far more so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def settings(architecture: str = "support.networks:plain", **changes: Any) -> ModelConfig:
    return ModelConfig(**{"architecture": architecture, "weights": None, "classes": CLASSES, "image_size": 48, **changes})


def forward(module: nn.Module, spec: ModelSpec) -> Tensor:
    pixels = torch.stack([to_tensor(data, spec.image_size) for data in PICTURES])
    with torch.no_grad():
        return module.eval()(normalise(pixels, spec.mean, spec.std))


def weights_of(architecture: str, classes: int, folder: Path) -> tuple[nn.Module, str]:
    """A model of this architecture trained elsewhere, and its state dict in a file."""
    torch.manual_seed(7)
    module = architectures.build(architecture, classes).eval()
    save_file(dict(module.state_dict()), folder / "trained.safetensors")
    return module, str(folder / "trained.safetensors")


# --- heads -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", TORCHVISION + OWN)
def test_a_start_scores_the_configured_classes_and_embeds(architecture: str) -> None:
    module, spec = models.start(settings(architecture), seed=0)
    embeddings, scores = models.embed(module, spec, PICTURES)
    assert tuple(scores.shape) == (5, 3)
    assert tuple(embeddings.shape) == (5, spec.embedding_dim)
    with torch.no_grad():
        again = models.linear_head(module, spec)(embeddings)
    torch.testing.assert_close(again, forward(module, spec), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scores, forward(module, spec), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", TORCHVISION + OWN)
def test_weights_for_other_classes_keep_the_backbone_and_get_a_fresh_head(architecture: str, tmp_path: Path) -> None:
    trained, path = weights_of(architecture, 7, tmp_path)
    module, spec = models.start(settings(architecture, weights=path), seed=0)
    assert models.linear_head(module, spec).out_features == 3
    kept = {n: t for n, t in module.state_dict().items() if not n.startswith(spec.head)}
    assert all(torch.equal(t, trained.state_dict()[n]) for n, t in kept.items())
    assert models.embed(module, spec, PICTURES)[1].shape == (5, 3)


@pytest.mark.parametrize("architecture", ["resnet18", *OWN[:3]])
def test_weights_for_as_many_classes_keep_their_head(architecture: str, tmp_path: Path) -> None:
    trained, path = weights_of(architecture, 3, tmp_path)
    module, spec = models.start(settings(architecture, weights=path), seed=0)
    assert torch.equal(forward(module, spec), forward(trained, spec))


def test_a_start_depends_on_its_seed_alone() -> None:
    first, second, other = (models.start(settings(), seed)[0].state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[n], second[n]) for n in first)
    assert not all(torch.equal(first[n], other[n]) for n in first)


@pytest.mark.parametrize("architecture", ["squeezenet1_1", "mobilenet_v3_small", *OWN])
def test_a_model_comes_back_from_the_store_as_it_was(architecture: str, folder_store: FolderStore, tmp_path: Path) -> None:
    _, path = weights_of(architecture, 7, tmp_path)
    module, spec = models.start(settings(architecture, weights=path), seed=0)
    models.save(module, tmp_path / "model.safetensors")
    part = folder_store.keep_file("model.safetensors", tmp_path / "model.safetensors")
    assert torch.equal(forward(models.load(folder_store, spec, part, code=spec.architecture), spec), forward(module, spec))


def test_a_model_whose_bytes_changed_is_not_loaded(s3_store: S3Store, tmp_path: Path) -> None:
    module, spec = models.start(settings(), seed=0)
    models.save(module, tmp_path / "model.safetensors")
    part = s3_store.keep_file("model.safetensors", tmp_path / "model.safetensors")
    data = bytearray(s3_store.get(part.key))
    data[-1] ^= 1
    s3_store.put(part.key, bytes(data))
    with pytest.raises(DigestMismatch, match=r"model\.safetensors"):
        models.load(s3_store, spec, part, code=spec.architecture)


def test_a_pooled_head_is_replaced_by_a_pooled_head(tmp_path: Path) -> None:
    """A squeezenet that Everfresh released for three classes starts one of four."""
    module, _ = models.start(settings("squeezenet1_1"), seed=0)
    models.save(module, tmp_path / "released.safetensors")
    config = settings("squeezenet1_1", weights=str(tmp_path / "released.safetensors"), classes=("a", "b", "c", "d"))
    grown, spec = models.start(config, seed=0)
    assert forward(grown, spec).shape == (5, 4)


@pytest.mark.parametrize("architecture", ["squeezenet1_1", "resnet18", "support.networks:without_bias"])
def test_a_class_more_keeps_the_scores_of_the_others(architecture: str) -> None:
    module, spec = models.start(settings(architecture), seed=0)
    before = forward(module, spec)
    grown = models.with_classes(module, spec, ("new", *CLASSES), seed=1)
    assert grown.classes == ("new", *CLASSES)
    torch.testing.assert_close(forward(module, grown)[:, 1:], before)


# --- embeddings ------------------------------------------------------------------------------------------


def test_embeddings_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    module, spec = models.start(settings(), seed=0)
    whole, _ = models.embed(module, spec, PICTURES)
    monkeypatch.setattr(models, "EMBED_BATCH", 2)
    torch.testing.assert_close(models.embed(module, spec, PICTURES)[0], whole)
    assert models.embed(module, spec, [])[0].shape == (0, 8)
    assert models.embed(module, spec, [])[1].shape == (0, 3)


def test_embedding_leaves_no_hook_even_when_a_picture_is_bad() -> None:
    module, spec = models.start(settings(), seed=0)
    with pytest.raises(Exception, match="known format"):
        models.embed(module, spec, [b"junk"])
    assert not module.get_submodule(spec.head)._forward_pre_hooks


def test_an_encoder_is_its_backbone_transforms_and_precision_not_its_head() -> None:
    module, spec = models.start(settings("resnet18"), seed=0)
    digest = models.encoder_digest(module, spec, "fp32")
    with torch.no_grad():
        models.linear_head(module, spec).weight.add_(1)
    assert models.encoder_digest(module, spec, "fp32") == digest
    models.with_classes(module, spec, ("x", *CLASSES), seed=0)
    assert models.encoder_digest(module, spec, "fp32") == digest
    others = [models.encoder_digest(module, spec, "bf16")]
    others += [models.encoder_digest(module, spec.model_copy(update={"image_size": 64}), "fp32")]
    others += [models.encoder_digest(module, spec.model_copy(update={"mean": (0.0, 0.0, 0.0)}), "fp32")]
    with torch.no_grad():
        next(iter(module.parameters())).view(-1)[0].add_(1e-3)
    others += [models.encoder_digest(module, spec, "fp32")]
    assert len({digest, *others}) == 5


def view_of(store: FolderStore, folder: Path) -> View:
    folder.mkdir()
    writer = ViewWriter(folder)
    for number, data in enumerate(PICTURES):
        picture = examine(data)
        measured = {n: getattr(picture, n) for n in ("width", "height", "brightness", "contrast", "sharpness", "colourfulness")}
        fields = {"key": f"{number}.png", "digest": picture.digest, "group": picture.group, "label": "a", "split": "train"}
        writer.add(data, **fields, **measured, timestamp=None, slices="{}")
    return View(store, writer.commit(store, Targets(CLASSES)).view)


def test_embeddings_are_computed_once_and_found_by_the_next_run(folder_store: FolderStore, tmp_path: Path) -> None:
    view = view_of(folder_store, tmp_path / "w")
    module, spec = models.start(settings(), seed=0)
    expected, _ = models.embed(module, spec, PICTURES)

    def fresh() -> Embedder:
        return Embedder(folder_store, module, spec, models.encoder_digest(module, spec, "fp32"), "fp32")

    first = fresh()
    torch.testing.assert_close(first.embeddings(view, np.array([3, 1])), expected[[3, 1]])
    assert first.computed == 2
    second = fresh()
    torch.testing.assert_close(second.embeddings(view, np.arange(5)), expected)
    assert second.computed == 3
    third = fresh()
    embedded, scores = third.scores(view, np.array([4, 0, 4]))
    torch.testing.assert_close(embedded, expected[[4, 0, 4]])
    torch.testing.assert_close(scores, forward(module, spec)[[4, 0, 4]], atol=1e-5, rtol=1e-5)
    assert third.embeddings(view, np.array([], dtype=np.int64)).shape == (0, 8)
    assert third.computed == 0


# --- adopting --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "form"),
    [*((a, "safetensors") for a in [*TORCHVISION, *OWN]), ("squeezenet1_1", "torch"), ("support.networks:plain", "wrapped")],
)
def test_an_adopted_model_predicts_exactly_as_before(architecture: str, form: str, tmp_path: Path) -> None:
    trained, path = weights_of(architecture, 3, tmp_path)
    state = trained.state_dict()
    if form == "torch":
        torch.save(state, path := str(tmp_path / "trained.pt"))
    elif form == "wrapped":  # as a distributed run writes a checkpoint
        torch.save({"state_dict": {f"module.{n}": t for n, t in state.items()}, "epoch": 3}, path := str(tmp_path / "last.pth"))
    module, spec = models.adopt(settings(architecture), path)
    assert not module.training
    assert torch.equal(forward(module, spec), forward(trained, spec))
    assert spec.native_head is (architecture in {"squeezenet1_1", "support.networks:Convolutional"})
    embeddings, scores = models.embed(module, spec, PICTURES)
    assert embeddings.shape == (5, spec.embedding_dim)
    torch.testing.assert_close(scores, forward(trained, spec), atol=1e-5, rtol=1e-5)


def test_an_adopted_native_head_comes_back_from_the_store_and_can_become_linear(
    folder_store: FolderStore, tmp_path: Path
) -> None:
    trained, path = weights_of("squeezenet1_1", 3, tmp_path)
    module, spec = models.adopt(settings("squeezenet1_1"), path)
    part = folder_store.keep_file("model.safetensors", Path(path))
    assert torch.equal(forward(models.load(folder_store, spec, part, code=spec.architecture), spec), forward(trained, spec))
    with pytest.raises(ModelError, match="squeezenet1_1 has no linear head yet"):
        models.linear_head(module, spec)
    digest = models.encoder_digest(module, spec, "fp32")
    linear = models.with_linear_head(module, spec, seed=0)
    assert not linear.native_head
    assert models.linear_head(module, linear).out_features == 3
    assert models.encoder_digest(module, linear, "fp32") == digest


def test_weights_are_read_from_s3(s3_store: S3Store, tmp_path: Path) -> None:
    trained, path = weights_of("support.networks:plain", 3, tmp_path)
    s3_store.put_file("w/trained.safetensors", Path(path))
    module, spec = models.adopt(settings(), s3_store.url("w/trained.safetensors"))
    assert torch.equal(forward(module, spec), forward(trained, spec))
    with pytest.raises(ModelError, match=r"s3://.*/w/absent\.safetensors cannot be read"):
        models.adopt(settings(), s3_store.url("w/absent.safetensors"))


def test_a_checkpoint_from_a_gpu_is_read_without_one(tmp_path: Path) -> None:
    trained, _ = weights_of("support.networks:plain", 3, tmp_path)
    torch.save(trained.state_dict(), tmp_path / "cpu.pt")
    with zipfile.ZipFile(tmp_path / "cpu.pt") as old, zipfile.ZipFile(tmp_path / "gpu.pt", "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, data.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0"))
    module, spec = models.adopt(settings(), str(tmp_path / "gpu.pt"))
    assert torch.equal(forward(module, spec), forward(trained, spec))


# --- refusals --------------------------------------------------------------------------------------------


class Runs:
    """Its pickle writes a file when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def test_weights_that_hold_code_are_refused_and_not_run(tmp_path: Path) -> None:
    target = tmp_path / "owned"
    torch.save({"weight": torch.zeros(1), "extra": Runs(target)}, tmp_path / "evil.pt")
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Runs(target)))
    for name in ("evil.pt", "evil.pth"):
        with pytest.raises(ModelError, match=rf"model\.weights .*{name} is not a readable state dict.*code are refused"):
            models.read_state(str(tmp_path / name))
    assert not target.exists()


def _file(folder: Path, kind: str) -> str:
    """A file of weights with something wrong with it."""
    module, path = weights_of("support.networks:plain", 3, folder)
    state = dict(module.state_dict())
    target = folder / "bad.safetensors"
    match kind:
        case "truncated":
            target.write_bytes(Path(path).read_bytes()[:-20])
        case "text":
            target.write_text("weights")
        case "nan":
            state["0.weight"].view(-1)[3] = float("nan")
            save_file(state, target)
        case "inf":
            state["4.bias"][0] = float("-inf")
            save_file(state, target)
        case "list":
            torch.save([1, 2], target := folder / "bad.pt")
        case "numbers":
            torch.save({"epoch": 3}, target := folder / "bad.pt")
        case "unnamed":
            torch.save({0: torch.zeros(1)}, target := folder / "bad.pt")
        case "empty":
            torch.save({}, target := folder / "bad.pt")
        case "shape":
            state["0.weight"] = torch.zeros(8, 3, 5, 5)
            save_file(state, target)
        case "extra":
            save_file({**state, "more.weight": torch.zeros(1)}, target)
        case "headless":
            save_file({n: t for n, t in state.items() if not n.startswith("4.")}, target)
        case "bodiless":
            save_file({n: t for n, t in state.items() if n.startswith("4.")}, target)
    return str(target)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("absent", r"must be a file that exists, got .*bad\.safetensors"),
        ("truncated", r"bad\.safetensors is not a readable state dict \(SafetensorError\)"),
        ("text", r"bad\.safetensors is not a readable state dict"),
        ("nan", r"bad\.safetensors: 0\.weight has values that are not finite"),
        ("inf", r"bad\.safetensors: 4\.bias has values that are not finite"),
        ("list", r"bad\.pt must be a mapping of names to tensors"),
        ("numbers", r"bad\.pt must be a mapping of names to tensors"),
        ("unnamed", r"bad\.pt must be a mapping of names to tensors"),
        ("empty", r"do not fit model\.architecture support\.networks:plain: no head at '4'"),
        ("shape", r"do not fit model\.architecture: .*0\.weight.*\[8, 3, 5, 5\]"),
        ("extra", r"do not fit model\.architecture: .*more\.weight"),
        ("headless", r"no head at '4'"),
        ("bodiless", r"do not fit model\.architecture: .*0\.weight"),
    ],
)
def test_weights_that_cannot_serve_are_refused(kind: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=rf"model\.weights.*{message}"):
        models.adopt(settings(), _file(tmp_path, kind))


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    _, path = weights_of("squeezenet1_1", 3, tmp_path)
    with pytest.raises(ModelError, match=r"model\.weights do not fit model\.architecture resnet18: no head at 'fc'"):
        models.adopt(settings("resnet18"), path)


@pytest.mark.parametrize("architecture", ["support.networks:plain", "squeezenet1_1"])
def test_weights_for_another_number_of_classes_are_not_adopted(architecture: str, tmp_path: Path) -> None:
    _, path = weights_of(architecture, 7, tmp_path)
    with pytest.raises(ModelError, match=r"model\.classes must be the 7 outputs of the weights, in their order, got 3 names"):
        models.adopt(settings(architecture), path)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("support.networks:raises", r"must return a torch.nn.Module for a number of classes, got ValueError: no\. Call it"),
        ("support.networks:takes_nothing", r"must return a torch.nn.Module for a number of classes, got TypeError: "),
        ("resnet19", r"must be a torchvision classifier.*got 'resnet19'. Did you mean .*resnet18"),
        ("fasterrcnn_resnet50_fpn", r"must be a torchvision classifier.*got 'fasterrcnn_resnet50_fpn'"),
        ("no_such_package.nets:make", r"'no_such_package.nets:make' cannot be imported"),
        ("support.networks:absent", r"'support.networks:absent' cannot be imported"),
        ("support.networks:no_module", r"'support.networks:no_module' must return a torch.nn.Module, got int"),
        ("support.networks:no_layers", r"must end in a named linear layer"),
    ],
)
def test_an_architecture_that_cannot_serve_is_refused(architecture: str, message: str) -> None:
    with pytest.raises(ModelError, match=rf"model\.architecture.*{message}"):
        models.start(settings(architecture), seed=0)


@pytest.mark.parametrize(
    ("architecture", "weights", "message"),
    [
        ("resnet18", "IMAGENET1K_V9", r"must be one of IMAGENET1K_V1.*got 'IMAGENET1K_V9'"),
        (
            "support.networks:plain",
            "DEFAULT",
            r"'DEFAULT' is a published name, but model\.architecture is 'support\.networks:plain'",
        ),
    ],
)
def test_a_wrong_weights_name_is_refused(architecture: str, weights: str, message: str) -> None:
    with pytest.raises(ModelError, match=rf"model\.weights.*{message}"):
        models.start(settings(architecture, weights=weights), seed=0)


def test_weights_that_cannot_be_downloaded_are_told_with_their_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    with pytest.raises(ModelError, match=r"DEFAULT of resnet18 could not be downloaded \(no network\).*resnet18-.*\.pth"):
        models.start(settings("resnet18", weights="DEFAULT"), seed=0)


def cached(folder: Path, architecture: str, monkeypatch: pytest.MonkeyPatch, data: bytes, digest: str = "") -> Path:
    """Bytes as the file of an architecture's default weights in torch's cache, under a name with their digest or another."""
    weights = torchvision.models.get_model_weights(architecture).DEFAULT
    name = f"{architecture}-{digest or hashlib.sha256(data).hexdigest()[:8]}.pth"
    monkeypatch.setattr(weights.value, "url", f"http://127.0.0.1:9/{name}")
    monkeypatch.setenv("TORCH_HOME", str(folder))
    path = folder / "hub" / "checkpoints" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    return path


def pickled(value: object) -> bytes:
    sink = io.BytesIO()
    torch.save(value, sink)
    return sink.getvalue()


@pytest.mark.parametrize("architecture", ["squeezenet1_1", "mobilenet_v3_small", "mnasnet0_5", "densenet121", "googlenet"])
def test_named_torchvision_weights_are_those_of_the_file(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where torchvision's own loader renames them or drops a head."""
    options = {"aux_logits": True, "init_weights": False, "transform_input": True} if architecture == "googlenet" else {}
    published = torchvision.models.get_model(architecture, **options).eval()
    state = published.state_dict()
    for name in list(state):  # as DenseNet's were published
        state[re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", name)] = state.pop(name)
    cached(tmp_path, architecture, monkeypatch, pickled(state))
    found = architectures.published(architecture, "DEFAULT", 3).eval()
    pixels = torch.rand(1, 3, 64, 64)
    assert torch.equal(found(pixels), published(pixels))


@pytest.mark.parametrize("form", ["torch", "pickle"])
@pytest.mark.parametrize("digest", ["", "0123abcd"], ids=["its own name", "another's name"])
def test_code_in_torchs_cache_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, digest: str) -> None:
    target = tmp_path / "owned"
    data = pickled({"x": Runs(target)}) if form == "torch" else pickle.dumps(Runs(target))
    path = cached(tmp_path, "squeezenet1_1", monkeypatch, data, digest)
    words = "must have the SHA-256 0123abcd… of its name" if digest else "must be a whole state dict without code"
    with pytest.raises(ModelError, match=rf"{path},? {words}.* Delete it, so that it is downloaded again"):
        models.start(settings("squeezenet1_1", weights="DEFAULT"), seed=0)
    assert not target.exists()


@pytest.mark.parametrize("digest", ["", "0123abcd"], ids=["its own name", "another's name"])
def test_a_truncated_file_in_torchs_cache_is_told_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digest: str
) -> None:
    path = cached(tmp_path, "squeezenet1_1", monkeypatch, pickled({"x": torch.zeros(9)})[:-40], digest)
    with pytest.raises(ModelError, match=rf"{path},? must .* Delete it"):
        models.start(settings("squeezenet1_1", weights="DEFAULT"), seed=0)


def test_saved_weights_are_safetensors_without_shared_storage(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[1].weight = module[0].weight
    models.save(module, tmp_path / "tied.safetensors")
    assert set(models.read_state(str(tmp_path / "tied.safetensors"))) == set(module.state_dict())
    assert not zipfile.is_zipfile(io.BytesIO((tmp_path / "tied.safetensors").read_bytes()))


def test_code_that_only_the_store_names_is_not_run(
    folder_store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "strange_code.py").write_text("raise SystemExit('was run')")
    monkeypatch.syspath_prepend(tmp_path)
    module, spec = models.start(settings(), seed=0)
    models.save(module, tmp_path / "model.safetensors")
    part = folder_store.keep_file("model.safetensors", tmp_path / "model.safetensors")
    planted = spec.model_copy(update={"architecture": "strange_code:build"})
    for code in ("", "resnet18", "my_package.models:build"):
        with pytest.raises(ModelError, match=r"names its architecture 'strange_code:build'.*was not run"):
            models.load(folder_store, planted, part, code=code)
    with pytest.raises(SystemExit, match="was run"):
        models.load(folder_store, planted, part, code="strange_code.other:build")
