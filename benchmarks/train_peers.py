"""The same fine-tune of art paintings in our trainer, Hugging Face's Trainer, Lightning and a loop like torchvision's.

    PACS_DATA=… SQUEEZENET=… python benchmarks/train_peers.py [--rounds 3] [--epochs 3] [--models squeezenet1_1 resnet18]

Needs the extra `peers`: uv pip install -e '.[peers]'. Each trains the same network from the same weights over the same
JPEGs for as many epochs, with AdamW, in batches of 32 at 128 px, with random resized crops and flips. Peers read the
JPEGs from memory through a DataLoader with torchvision's transforms on Pillow's pictures, ours from shards in a store,
with its checkpoints and event files. Whole trainings take turns, one round after the other; what is loaded once a process is
loaded before. Each peer trains twice a round:
same      in the precision and memory format of ours (bf16, channels-last), with one worker process, as ours has one thread;
default   as it comes: fp32, contiguous; no worker process (Hugging Face, Lightning), as many as there are processors
          (torchvision's reference has 16).
`ours, by itself` is ours with nothing pinned; its measuring counts.

Promised: ours / the fastest peer in the same setting at most 1 (time, median over the rounds); ours by itself is faster than
each peer's default. Exits 1 if not.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from training import pipeline, pool_of, promise, told, trainer_of, view_of

from everfresh.tasks import models
from everfresh.tasks.fine_tune.input import Pictures, cores
from everfresh.tasks.fine_tune.pool import Pool

SIZE, BATCH, RATE = 128, 32, 3e-4


class Jpegs(Dataset):  # type: ignore[type-arg]
    """JPEGs in memory and class numbers, through torchvision's transforms."""

    def __init__(self, pool: Pool, *, named: bool) -> None:
        from torchvision.transforms import v2

        view, rows = pool.parts[0]
        self.coded, self.labels, self.named = list(view.read(rows.tolist())), pool.labels.tolist(), named
        self.transform = v2.Compose([
            v2.RandomResizedCrop(SIZE, scale=(0.7, 1.0), ratio=(0.85, 1.18), antialias=True), v2.RandomHorizontalFlip(),
            v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.coded)

    def __getitem__(self, index: int) -> Any:
        pixels = self.transform(Image.open(io.BytesIO(self.coded[index])).convert("RGB"))
        return {"pixels": pixels, "labels": self.labels[index]} if self.named else (pixels, self.labels[index])


class Setting:
    """Precision and memory format, those of ours or as they come, and worker processes."""

    def __init__(self, *, same: bool, workers: int) -> None:
        self.same, self.workers = same, workers
        self.format = torch.channels_last if same else torch.contiguous_format


def torchvision_loop(module: nn.Module, pool: Pool, epochs: int, setting: Setting, _: str) -> None:
    """The loop of torchvision's references/classification/train.py, without its printing."""
    module = module.to(memory_format=setting.format).train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=RATE)
    steps = epochs * (len(pool) // BATCH)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    criterion = nn.CrossEntropyLoss()
    loader = DataLoader(Jpegs(pool, named=False), BATCH, shuffle=True, num_workers=setting.workers, drop_last=True)
    for _ in range(epochs):
        for pixels, labels in loader:
            with torch.autocast("cpu", torch.bfloat16, enabled=setting.same):
                loss = criterion(module(pixels.to(memory_format=setting.format)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()  # it keeps meters of loss and accuracy
        scheduler.step()


def lightning_fit(module: nn.Module, pool: Pool, epochs: int, setting: Setting, folder: str) -> None:
    import lightning

    class Task(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = module.to(memory_format=setting.format)

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            pixels, labels = batch
            return nn.functional.cross_entropy(self.net(pixels.to(memory_format=setting.format)), labels)

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=RATE)

    loader = DataLoader(Jpegs(pool, named=False), BATCH, shuffle=True, num_workers=setting.workers, drop_last=True)
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, max_epochs=epochs, precision="bf16-mixed" if setting.same else "32-true",
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, logger=False,
    )  # fmt: skip
    trainer.fit(Task(), loader)


def hugging_face(module: nn.Module, pool: Pool, epochs: int, setting: Setting, folder: str) -> None:
    import transformers

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = module.to(memory_format=setting.format)

        def forward(self, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.net(pixels.to(memory_format=setting.format))
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    arguments = transformers.TrainingArguments(
        output_dir=folder, num_train_epochs=epochs, per_device_train_batch_size=BATCH, learning_rate=RATE, use_cpu=True,
        bf16=setting.same, dataloader_num_workers=setting.workers, dataloader_drop_last=True, report_to=[], disable_tqdm=True,
        remove_unused_columns=False, save_strategy="no",
    )  # fmt: skip
    transformers.Trainer(model=Net(), args=arguments, train_dataset=Jpegs(pool, named=True)).train()


PEERS = {"torchvision's loop": torchvision_loop, "Lightning": lightning_fit, "HF Trainer": hugging_face}
WORKERS = {"torchvision's loop": cores(), "Lightning": 0, "HF Trainer": 0}
"""By default; torchvision's own is 16."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--models", nargs="+", default=["squeezenet1_1", "resnet18"])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    print(f"{torch.get_num_threads()} threads, {cores()} cores", flush=True)
    kept = []
    for name in options.models:
        kept += compared(name, options.rounds, options.epochs)
    sys.exit(not all(kept))


def compared(name: str, rounds: int, epochs: int) -> list[bool]:
    with tempfile.TemporaryDirectory(prefix="everfresh-peers-") as folder:
        place = Path(folder)
        training = {"epochs": epochs, "batch_size": BATCH, "learning_rate": RATE, "augment": "crop_flip", "cache_mib": 0}
        pinned = pipeline(place, name, SIZE, **training, precision="bf16", memory_format="channels_last")
        free = pipeline(place, name, SIZE, **training, checkpoint_every=100)
        view = view_of(pinned)
        train, tune, held = (pool_of(view, split) for split in ("train", "tune", "holdout"))

        def ours(config: Any) -> Callable[[], nn.Module]:
            def run() -> nn.Module:
                os.environ["EVERFRESH_CACHE"] = tempfile.mkdtemp(dir=folder)
                trainer, _ = trainer_of(config, place)
                trainer.run(train, tune, tune)
                return trainer.module

            return run

        def theirs(fit: Any, setting: Setting) -> Callable[[], nn.Module]:
            def run() -> nn.Module:
                module, spec = models.start(pinned.model, 0)
                models.with_linear_head(module, spec, 0)
                fit(module, train, epochs, setting, folder)
                return module

            return run

        sides = {"ours, same": ours(pinned), "ours, by itself": ours(free)}
        for peer, fit in PEERS.items():
            sides[f"{peer}, same"] = theirs(fit, Setting(same=True, workers=1))
            sides[f"{peer}, default"] = theirs(fit, Setting(same=False, workers=WORKERS[peer]))
        spec = trainer_of(pinned, place)[1]
        times: dict[str, list[float]] = {side: [] for side in sides}
        accuracy: dict[str, float] = {}
        for number in range(rounds + 1):
            for side, run in sides.items():
                begun = time.perf_counter()
                module = run()
                if number:
                    times[side].append(time.perf_counter() - begun)
                else:  # a round that loads what is loaded once; it tells that all of them learn the same
                    accuracy[side] = scored(module, spec, held)
    pictures = epochs * len(train)
    print(f"\n{name}, {len(train)} JPEGs, {epochs} epochs, batch {BATCH} at {SIZE} px")
    for side, found in sorted(times.items(), key=lambda item: statistics.median(item[1])):
        middle = statistics.median(found)
        print(f"  {side:30} {middle:6.2f} s {pictures / middle:7.1f} images/s, held-out accuracy {accuracy[side]:.3f}")

    def ratio(ours: str, peer: str) -> list[float]:
        return [a / b for a, b in zip(times[ours], times[peer], strict=True)]

    kept = []
    for peer in PEERS:
        print(told(f"ours / {peer}, same setting", ratio("ours, same", f"{peer}, same")))
        print(told(f"ours by itself / {peer}, default", ratio("ours, by itself", f"{peer}, default")))
    fastest = min(PEERS, key=lambda p: statistics.median(times[f"{p}, same"]))
    words = f"{name}: ours / {fastest}, the fastest peer in the same setting"
    kept.append(promise(words, statistics.median(ratio("ours, same", f"{fastest}, same")), most=1.0))
    for peer in PEERS:
        words = f"{name}: ours by itself / {peer} as it comes"
        kept.append(promise(words, statistics.median(ratio("ours, by itself", f"{peer}, default")), most=1.0))
    return kept


@torch.no_grad()
def scored(module: nn.Module, spec: Any, pool: Pool) -> float:
    """Accuracy on pictures that nobody trained on."""
    net = module.eval()
    pictures, hits = Pictures(pool, spec), 0
    from everfresh.tasks.images import framed
    from everfresh.tasks.inputs import prepare

    for start in range(0, len(pictures), 64):
        rows = range(start, min(len(pictures), start + 64))
        pixels = torch.stack([framed(pictures.decoded(i), SIZE) for i in rows])
        hits += int((net(prepare(pixels, spec)).argmax(dim=1) == pictures.labels[start : start + len(rows)]).sum())
    return hits / len(pictures)


if __name__ == "__main__":
    main()
