"""A model that was trained elsewhere is adopted, watched and improved."""

from __future__ import annotations

import json
from pathlib import Path

from support.cli import Everfresh
from support.pickles import find_pickles
from support.stream import AGED, make_pipeline

from everfresh.flows.digits import Arrival, Scanner, arrive
from everfresh.tasks.journal import scheduled
from everfresh.tasks.ledger import champion_moves, find
from everfresh.tasks.records import DriftReport, Reference, Release

SIDE = 32


def train_elsewhere(path: Path) -> None:
    """A resnet18 of torchvision, trained a little on clean digits, saved as plain PyTorch does."""
    import numpy as np
    import torch
    from sklearn.datasets import load_digits
    from torchvision.models import resnet18

    from everfresh.flows.digits import scan

    torch.manual_seed(0)
    data = load_digits()
    chosen = np.random.default_rng(1).permutation(len(data.target))[:320]
    pages = torch.from_numpy(scan(data.images[chosen] / 16, Scanner())).float() / 255
    pixels = ((pages - 0.3) / 0.3)[:, None].expand(-1, 3, -1, -1)
    labels = torch.from_numpy(data.target[chosen])
    module = resnet18(num_classes=10)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    for _ in range(3):
        for batch in torch.randperm(len(labels)).split(32):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(module(pixels[batch]), labels[batch]).backward()
            optimizer.step()
    torch.save(module.state_dict(), path)


def test_an_adopted_model_is_version_1_and_what_is_learnt_on_it_version_2(everfresh: Everfresh, tmp_path: Path) -> None:
    train_elsewhere(tmp_path / "model.pt")
    validation = tmp_path / "validation"
    arrive(validation, Arrival(1, "scans", "", 120, Scanner()), 0)
    pipeline = make_pipeline(
        tmp_path / "p",
        "adopted",
        model={"architecture": "resnet18", "weights": str(tmp_path / "model.pt"), "image_size": SIDE},
        policy={"ladder": ["head"]},
        gates=[{"kind": "floor", "minimum": 0.2}, {"kind": "better"}],
    )
    arguments = ("adopt", pipeline.file, "--weights", tmp_path / "model.pt", "--reference", validation / "01-scans")
    done = everfresh(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    move = json.loads(done.stdout)
    assert (move["kind"], move["version"]) == ("adopt", 1)
    first = find(pipeline.store, f"releases/{move['release']}/release.json", Release)
    assert first is not None
    assert first.rung == "adopted"
    assert first.accuracy > 0.5
    again = everfresh(*arguments)
    assert again.returncode == 1
    assert "must have no champion yet, got v1" in again.stderr

    pipeline.arrives(2, AGED)
    done = everfresh("run", pipeline.file)
    assert done.returncode == 0, done.stderr
    [entry] = scheduled(pipeline.store)
    drift = find(pipeline.store, f"drift/{entry.drift}/record.json", DriftReport)
    assert drift is not None
    assert (drift.alarm, drift.nearest) == (True, "adopted")
    reference = find(pipeline.store, f"references/{drift.reference}/record.json", Reference)
    assert reference is not None
    assert reference.release == first.id
    assert (entry.version, entry.trust) == (2, "trusted")
    assert entry.gain is not None
    assert entry.gain.value > 0
    head = champion_moves(pipeline.store).last()
    assert head is not None
    assert head.version == 2
    assert find_pickles(pipeline.store) == []
