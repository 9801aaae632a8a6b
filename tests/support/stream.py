"""A tiny pipeline over real digits, for tests of whole flows: the demo's file with fewer epochs."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from everfresh.flows.digits import Arrival, Scanner, arrive
from everfresh.tasks.config import PipelineConfig, load_config
from everfresh.tasks.store import Store, pipeline_store

CLEAN = Scanner()
AGED = Scanner(contrast=0.3, blur=1.2, slant=25.0)
SEED = 0


@dataclass(frozen=True)
class Pipeline:
    """A pipeline file with its inbox and store, all in one folder that can be copied."""

    folder: Path
    name: str

    @property
    def file(self) -> Path:
        return self.folder / "pipeline.yaml"

    @property
    def config(self) -> PipelineConfig:
        return load_config(self.file)

    @property
    def store(self) -> Store:
        return pipeline_store(self.config)

    def arrives(self, number: int, scanner: Scanner = CLEAN, samples: int = 90, *, shuffled: bool = False) -> None:
        """Digits come in, those of the demo's window `number`; at most as many as it has."""
        arrive(self.folder / "inbox", Arrival(number, "scans", "", samples, scanner, shuffled), SEED)

    def copy(self, folder: Path, name: str, **sections: Any) -> Pipeline:
        """The same pipeline elsewhere and under another name: what happens to it does not happen to this one."""
        shutil.copytree(self.folder, folder)
        (folder / "store" / self.name).rename(folder / "store" / name)
        copy = Pipeline(folder, name)
        copy.rewrite(name=name, **sections)
        return copy

    def rewrite(self, **sections: Any) -> None:
        """Lay sections over those of the pipeline file, one level deep."""
        raw = yaml.safe_load(self.file.read_text("utf-8"))
        for section, value in sections.items():
            raw[section] = {**raw.get(section, {}), **value} if isinstance(value, dict) else value
        self.file.write_text(yaml.safe_dump(raw, sort_keys=False), "utf-8")

    def bytes_of(self, *folders: str) -> dict[str, bytes]:
        """All objects under some folders of the store."""
        return {item.key: self.store.get(item.key) for folder in folders or ("",) for item in self.store.list(folder)}


def make_pipeline(folder: Path, name: str, **sections: Any) -> Pipeline:
    """Write the demo's pipeline file under another name; `sections` are laid over it, one level deep."""
    text = files("everfresh.flows").joinpath("templates/digits.yaml").read_text("utf-8").replace("$SEED", str(SEED))
    raw: dict[str, Any] = yaml.safe_load(text) | {"name": name}
    raw["fine_tune"] |= {"epochs": 10, "learning_rate": 0.01}
    raw["model"] |= {"image_size": 16}
    raw["evaluation"] = {"report": False}
    raw["release"] = {"formats": []}  # which cost seconds a release; tests of them say so
    raw["drift"] = {"report": False, "permutations": 199}
    raw["gates"] = [{"kind": "floor", "minimum": 0.3}, {"kind": "better"}, {"kind": "no_worse", "margin": 0.2}]
    (folder / "inbox").mkdir(parents=True, exist_ok=True)
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(raw, sort_keys=False), "utf-8")
    made = Pipeline(folder, name)
    made.rewrite(**sections)
    return made
