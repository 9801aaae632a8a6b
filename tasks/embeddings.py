"""Embeddings of a view under one encoder: computed once, kept in the store, reused by every stage.

They stand under ``embeddings/<encoder>/<view>/<rows>-<sha256>.parquet``, one object for each set of rows computed
at once; a damaged one is left aside.
The encoder's digest covers its backbone, transforms and precision, so they serve exactly as long as that encoder
does; a refitted head changes none.
"""

from __future__ import annotations

import hashlib
import io
import logging

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from everfresh.tasks import models
from everfresh.tasks.progress import bar
from everfresh.tasks.records import ModelSpec, Part, digest_of
from everfresh.tasks.store import Store, file_digest, scratch
from everfresh.tasks.views import View

log = logging.getLogger(__name__)


class Embedder:
    """A model whose embeddings are looked up before they are computed.

    Args:
        module: in eval mode.
        encoder: its digest, see :func:`everfresh.tasks.models.encoder_digest`.
        precision: ``fp32`` or ``bf16``, part of the digest.
    """

    def __init__(self, store: Store, module: nn.Module, spec: ModelSpec, encoder: str, precision: str) -> None:
        self.store, self.module, self.spec, self.encoder, self.precision = store, module, spec, encoder, precision
        self._known: dict[str, dict[int, NDArray[np.float32]]] = {}
        self.computed = 0
        """Pictures that went through the network."""

    @classmethod
    def open(cls, store: Store, spec: ModelSpec, weights: Part, precision: str = "fp32", *, code: str = "") -> Embedder:
        """The embedder of a candidate's or a release's model; `code` as for :func:`everfresh.tasks.models.load`."""
        module = models.load(store, spec, weights, code=code)
        return cls(store, module, spec, models.encoder_digest(module, spec, precision), precision)

    def embeddings(self, view: View, rows: NDArray[np.int64]) -> Tensor:
        """Embeddings (len(rows), D), float32; those that are missing are computed and kept."""
        known = self._load(view, rows)
        missing = [int(r) for r in rows if int(r) not in known]
        if missing:
            pictures = bar(view.read(missing), "embed", total=len(missing))
            made, _ = models.embed(self.module, self.spec, pictures, precision=self.precision)
            self.computed += len(missing)
            known.update(zip(missing, made.numpy(), strict=True))
            self._keep(view, missing, made)
        if not len(rows):
            return torch.zeros(0, self.spec.embedding_dim)
        return torch.from_numpy(np.stack([known[int(r)] for r in rows]))

    @torch.no_grad()
    def scores(self, view: View, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Embeddings (N, D) and class scores (N, C)."""
        if self.spec.native_head:  # its scores are no function of the pooled embedding
            return models.embed(self.module, self.spec, view.read(int(r) for r in rows), precision=self.precision)
        embedded = self.embeddings(view, rows)
        return embedded, models.linear_head(self.module, self.spec)(embedded)

    def _prefix(self, view: View) -> str:
        return f"embeddings/{self.encoder}/{view.window.view}"

    def _load(self, view: View, rows: NDArray[np.int64]) -> dict[int, NDArray[np.float32]]:
        """What is kept of the wanted rows; the others stay where they are, a bank's embeddings need not fit in memory."""
        import pyarrow.parquet as pq

        known = self._known.setdefault(view.window.view, {})
        if wanted := {int(r) for r in rows} - known.keys():
            for item in self.store.list(self._prefix(view)):
                data = self.store.get(item.key)
                if not item.key.endswith(f"-{hashlib.sha256(data).hexdigest()}.parquet"):
                    log.warning("%s is not what was written; its embeddings are computed again", self.store.url(item.key))
                    continue
                table = pq.read_table(io.BytesIO(data))
                flat = np.concatenate([chunk.flatten().to_numpy() for chunk in table["embedding"].chunks])
                made = zip(table["row"].to_pylist(), flat.reshape(len(table), -1), strict=True)
                known.update({row: vector.copy() for row, vector in made if row in wanted})
        return known

    def _keep(self, view: View, rows: list[int], made: Tensor) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        width = made.shape[1]
        flat = pa.FixedSizeListArray.from_arrays(pa.array(made.numpy().reshape(-1)), width)
        with scratch() as folder:
            path = folder / "embeddings.parquet"
            pq.write_table(pa.table({"row": pa.array(rows, pa.int64()), "embedding": flat}), path)
            self.store.put_file(f"{self._prefix(view)}/{digest_of(rows)}-{file_digest(path)}.parquet", path)
