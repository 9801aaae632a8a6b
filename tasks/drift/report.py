"""Evidently's report beside our own numbers: the page that people of this field know how to read.

``report``, ``beside`` and ``workspace`` are the only importers of evidently, inside their functions, since importing it
takes seconds. Its verdict is kept from contradicting ours for no reason. Left alone it calls each column drifted at
p < 0.05, uncorrected, and the data set only when half of the columns are, so quiet windows show drifted columns and
moved ones say "not detected"; and where the reference has more than 1,000 rows it trades its tests for distances with
fixed thresholds, which say nothing of chance. Here its tests are asked for by name, so that any number of rows is
tested; a column counts as drifted at the declared rate divided by the number of columns, and the data set when one is.
What its defaults would have said stands in ``differences.json``, next to ours and with the reason.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from everfresh.tasks.records import ColumnDrift

if TYPE_CHECKING:
    import pandas as pd

    from everfresh.tasks.drift.frame import Frame

MAX_ROWS = 5_000
MAX_CATEGORIES = 20
COMPONENTS = 4
LEVEL = 0.05


@dataclass(frozen=True)
class Shelf:
    """Where a report also becomes a snapshot of an Evidently workspace, for the UI that a team has already."""

    folder: Path
    """Of the workspace; made if it is not there."""
    project: str
    """Its name in the UI: the pipeline's."""
    run: str
    """Which window's report it is: the same run is kept once."""
    at: datetime
    """When the window came: its place on the time axis."""


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>Data drift</title></head>
<body>
<p id="wait">Unpacking the report; it needs JavaScript and a browser of 2023 or later.</p>
<script id="packed" type="text/plain">{packed}</script>
<script>
const packed = Uint8Array.from(atob(document.getElementById("packed").textContent), c => c.charCodeAt(0));
const page = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
new Response(page).text().then(html => {{ document.open(); document.write(html); document.close(); }});
</script>
</body>
</html>
"""


def write_report(
    reference: Frame,
    current: Frame,
    folder: Path,
    *,
    columns: Sequence[ColumnDrift] = (),
    rate: float = LEVEL,
    shelf: Shelf | None = None,
) -> dict[str, Path]:
    """Evidently's data drift report over the columns that people can read, as HTML and as JSON.

    These are image properties, confidence, prediction, slices, and the first four principal components of the
    embeddings of both frames together ("embedding 1" …). Columns that hold one value in both frames are left
    out, as are those with no finite value in one of them; of a column with many categories the 20 most frequent
    are told apart. A frame of more than 5,000 samples is cut to a seeded sample of 5,000.

    Args:
        reference: what the window is compared against.
        current: the window.
        folder: where to write; made if it is not there.
        columns: our own results; those that the report has too are set beside Evidently's default verdict.
        rate: declared false-alarm rate; each column is tested at its share of it.
        shelf: the workspace to keep a snapshot in; what goes wrong there is a warning.

    Returns:
        ``evidently.html`` (packed: unpacks itself in the browser, fetches nothing), ``evidently.json`` and, with
        `columns`, ``differences.json``; nothing where no column varies or a frame is empty.
    """
    from everfresh.tasks.drift.beside import differences

    tables = _tables(reference, current)
    if tables is None:
        return {}
    snapshot = _snapshot(*tables, rate, shelf)
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "evidently.html": _pack(snapshot.get_html_str(as_iframe=False)),
        "evidently.json": json.dumps(_finite(json.loads(snapshot.json())), indent=1, allow_nan=False),
    }
    if columns:
        texts["differences.json"] = differences(*tables, columns, rate).model_dump_json(indent=1)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    if shelf is not None:
        from everfresh.tasks.drift.workspace import keep

        keep(snapshot, shelf.folder, shelf.project, shelf.run)
    return {name: folder / name for name in texts}


@contextmanager
def quietly() -> Iterator[None]:
    """Evidently without its telemetry, the deprecations at its import, and words on constant halves of columns."""
    os.environ.setdefault("DO_NOT_TRACK", "1")
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


def _snapshot(reference: pd.DataFrame, current: pd.DataFrame, rate: float, shelf: Shelf | None) -> Any:
    """Evidently's own result, with its tests."""
    with quietly():
        from evidently import DataDefinition, Dataset, Report
        from evidently.presets import DataDriftPreset

        definition = DataDefinition(
            numerical_columns=[name for name in reference if reference[name].dtype.kind == "f"],
            categorical_columns=[name for name in reference if reference[name].dtype.kind != "f"],
        )
        count = reference.shape[1]
        preset = DataDriftPreset(
            threshold=rate / count,
            drift_share=math.floor(100 / count) / 100 or 1 / count,
            num_method="ks",
            per_column_method={name: _test(reference[name], current[name]) for name in definition.categorical_columns},
        )
        return Report([preset], include_tests=True).run(
            Dataset.from_pandas(current, data_definition=definition),
            Dataset.from_pandas(reference, data_definition=definition),
            timestamp=shelf.at if shelf else None,
            name=shelf.run if shelf else None,
        )


def _test(reference: pd.Series[Any], current: pd.Series[Any]) -> str:
    """The test that Evidently takes for this column of categories where it tests at all."""
    return "z" if len(set(reference) | set(current)) <= 2 else "chisquare"


def _tables(reference: Frame, current: Frame) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """Both frames as tables with the same columns; None where nothing is left to compare."""
    import pandas as pd

    reference, current = _bounded(reference), _bounded(current)
    if not (len(reference) and len(current)):
        return None
    first = len(reference)
    columns: dict[str, NDArray[Any]] = {}
    for name in reference.numerical.keys() & current.numerical.keys():
        columns[name] = np.concatenate([reference.numerical[name], current.numerical[name]])
    for number, values in enumerate(_components(np.concatenate([reference.embeddings, current.embeddings])), 1):
        columns[f"embedding {number}"] = values
    for name in sorted(reference.categorical.keys() | current.categorical.keys()):
        parts = [f.categorical.get(name, np.full(len(f), "")) for f in (reference, current)]
        columns[name if name not in columns else f"{name} (slice)"] = _categories(np.concatenate(parts))
    kept = {name: values for name, values in sorted(columns.items()) if _comparable(values, first)}
    if not kept:
        return None
    pooled = pd.DataFrame({_harmless(name): values for name, values in kept.items()})
    return pooled.iloc[:first].reset_index(drop=True), pooled.iloc[first:].reset_index(drop=True)


def _bounded(frame: Frame) -> Frame:
    if len(frame) <= MAX_ROWS:
        return frame
    return frame.take(np.sort(np.random.default_rng(0).choice(len(frame), MAX_ROWS, replace=False)))


def _components(embeddings: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values (K, N) of the first principal components of embeddings (N, D)."""
    from sklearn.utils.extmath import randomized_svd

    if not embeddings.size:
        return np.zeros((0, len(embeddings)))
    centred = embeddings - embeddings.mean(axis=0)
    rank = min(COMPONENTS, *centred.shape)
    left, spread, _ = randomized_svd(centred, rank, random_state=0)  # (N, K), (K,)
    real = spread > 1e-9 * max(1.0, np.abs(embeddings).max())
    values: NDArray[np.float64] = (left * spread).T[real]
    return values


def _categories(values: NDArray[Any]) -> NDArray[Any]:
    """Categories as text, the rare ones of many as one."""
    names, counts = np.unique(values, return_counts=True)
    frequent = set(names[np.argsort(-counts, kind="stable")[:MAX_CATEGORIES]])
    return np.array([_harmless(str(v)) or "(none)" if v in frequent else "(other)" for v in values], dtype=object)


def _harmless(text: str) -> str:
    """Text of other people as Evidently's page may hold it: it puts names and categories into a script as they are."""
    return text.replace("<", "‹").replace(">", "›")


def _comparable(values: NDArray[Any], first: int) -> bool:
    if values.dtype.kind != "f":
        return len(set(values)) > 1
    finite = np.isfinite(values)
    return bool(finite[:first].any() and finite[first:].any() and np.ptp(values[finite]) > 0)


def _pack(html: str) -> str:
    """The page as one that unpacks itself: of its 4 MB, 3.5 are the library that draws it, which pack to a third."""
    titled = re.sub(r"<head>", "<head><title>Data drift</title>", html, count=1)
    return _PAGE.format(packed=base64.b64encode(gzip.compress(titled.encode(), compresslevel=6, mtime=0)).decode())


def _finite(node: Any) -> Any:
    """JSON has no NaN: null stands for it."""
    if isinstance(node, dict):
        return {key: _finite(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_finite(value) for value in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node
