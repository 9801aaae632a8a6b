"""Evidently's report beside our own numbers: the page that people of this field know how to read.

The only importer of evidently, and inside the function, since importing it takes seconds. Its verdict is kept
from contradicting ours for no reason: left alone it calls each column drifted at p < 0.05, uncorrected, and the
data set only when half of the columns are, so quiet windows show drifted columns and moved ones say "not
detected". Here a column counts as drifted at 0.05 divided by the number of columns, and the data set when one is.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
import os
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

    from everfresh.tasks.drift.frame import Frame

MAX_ROWS = 1000  # above it Evidently trades its tests for distances with fixed thresholds
MAX_CATEGORIES = 20
COMPONENTS = 4
LEVEL = 0.05

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


def write_report(reference: Frame, current: Frame, folder: Path) -> dict[str, Path]:
    """Evidently's data drift report over the columns that people can read, as HTML and as JSON.

    These are image properties, confidence, prediction, slices, and the first four principal components of the
    embeddings of both frames together ("embedding 1" …). Columns that hold one value in both frames are left
    out, as are those with no finite value in one of them; of a column with many categories the 20 most frequent
    are told apart. A frame of more than 1,000 samples is cut to a seeded sample of 1,000.

    Args:
        reference: what the window is compared against.
        current: the window.
        folder: where to write; made if it is not there.

    Returns:
        ``evidently.html`` (packed: unpacks itself in the browser, fetches nothing) and ``evidently.json``; nothing
        where no column varies or a frame is empty.
    """
    tables = _tables(reference, current)
    if tables is None:
        return {}
    html, values = _evidently(*tables)
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / name for name in ("evidently.html", "evidently.json")}
    files["evidently.html"].write_text(_pack(html), encoding="utf-8")
    files["evidently.json"].write_text(json.dumps(_finite(values), indent=1, allow_nan=False), encoding="utf-8")
    return files


def _evidently(reference: pd.DataFrame, current: pd.DataFrame) -> tuple[str, dict[str, Any]]:
    """The page and the numbers."""
    os.environ.setdefault("DO_NOT_TRACK", "1")
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # deprecations at its import, constant halves of columns in its tests
        from evidently import DataDefinition, Dataset, Report
        from evidently.presets import DataDriftPreset

        definition = DataDefinition(
            numerical_columns=[name for name in reference if reference[name].dtype.kind == "f"],
            categorical_columns=[name for name in reference if reference[name].dtype.kind != "f"],
        )
        count = reference.shape[1]
        preset = DataDriftPreset(threshold=LEVEL / count, drift_share=math.floor(100 / count) / 100 or 1 / count)
        snapshot = Report([preset]).run(
            Dataset.from_pandas(current, data_definition=definition),
            Dataset.from_pandas(reference, data_definition=definition),
        )
        return snapshot.get_html_str(as_iframe=False), json.loads(snapshot.json())


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
    pooled = pd.DataFrame(kept)
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
    return np.array([str(v) or "(none)" if v in frequent else "(other)" for v in values], dtype=object)


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
