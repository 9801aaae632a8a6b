"""The detectors of the literature that ours is measured against: each a score that grows with drift. No benchmark itself.

All see the same reference and window. Powers are compared at thresholds measured on quiet windows, so a method's own
level plays no part there.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np
from scipy.stats import ks_2samp

from everfresh.tasks.drift.frame import Frame
from everfresh.tasks.drift.shift import kolmogorov_smirnov

COMPONENTS = 32


def bbsd(reference: Frame, current: Frame, _seed: int) -> float:
    """Univariate black-box shift detection: the largest Kolmogorov-Smirnov distance over the soft outputs.

    With Bonferroni's correction the smallest p-value decides, and at given sizes it belongs to the largest distance.
    Rabanser et al., "Failing Loudly", NeurIPS 2019.
    """
    return _largest_ks(reference.probabilities, current.probabilities)


def components(reference: Frame, current: Frame, _seed: int) -> float:
    """Kolmogorov-Smirnov on the 32 leading principal components of the reference's embeddings, Bonferroni."""
    centre = reference.embeddings.mean(axis=0)
    centred = (reference.embeddings - centre).astype(np.float32)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    axes = vectors[:, ::-1][:, :COMPONENTS]
    return _largest_ks(centred @ axes, (current.embeddings - centre).astype(np.float32) @ axes)


def mmd(reference: Frame, current: Frame, _seed: int) -> float:
    """Maximum mean discrepancy of the embeddings, Gaussian kernel of median bandwidth. Gretton et al., JMLR 2012."""
    x = np.concatenate([reference.embeddings, current.embeddings]).astype(np.float32)
    x = x - x.mean(axis=0)
    squares = (x**2).sum(axis=1)
    apart = np.maximum(squares[:, None] + squares[None, :] - 2 * (x @ x.T), 0)
    some = apart[:: max(1, len(x) // 300), :: max(1, len(x) // 300)]
    kernel = np.exp(-apart / np.median(some[some > 0]))
    m, n = len(reference), len(current)
    within = (kernel[:m, :m].sum() - m) / (m * (m - 1)) + (kernel[m:, m:].sum() - n) / (n * (n - 1))
    return float(within - 2 * kernel[:m, m:].mean())


def classifier(reference: Frame, current: Frame, seed: int) -> float:
    """Held-out AUC of a logistic domain classifier on half of the rows. Lopez-Paz & Oquab, ICLR 2017."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(seed)
    x = np.concatenate([reference.embeddings, current.embeddings])
    x = (x - x.mean(axis=0)) / (x.std(axis=0) + 1e-9)
    y = np.arange(len(x)) >= len(reference)
    train = np.zeros(len(x), dtype=bool)
    for side in (True, False):
        rows = rng.permutation(np.flatnonzero(y == side))
        train[rows[: len(rows) // 2]] = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = LogisticRegression(C=0.01, max_iter=60, tol=1e-3, class_weight="balanced").fit(x[train], y[train])
    return float(roc_auc_score(y[~train], fit.decision_function(x[~train])))


BASELINES = {
    "BBSD, Bonferroni": bbsd,
    "KS on embedding components": components,
    "MMD on embeddings": mmd,
    "domain classifier": classifier,
}


def bbsd_p(reference: Frame, current: Frame) -> float:
    """Bonferroni's p-value of univariate black-box shift detection, as published."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        p = [ks_2samp(a, b).pvalue for a, b in zip(reference.probabilities.T, current.probabilities.T, strict=True)]
    return min(1.0, min(p) * len(p))


def _largest_ks(ours: np.ndarray, theirs: np.ndarray) -> float:
    pairs = zip(np.sort(ours, axis=0).T, np.sort(theirs, axis=0).T, strict=True)
    return max(kolmogorov_smirnov(a, b) for a, b in pairs)


# --- Evidently, with its defaults ------------------------------------------------------------------------------------


def evidently_preset(reference: Frame, current: Frame) -> tuple[float, bool, bool]:
    """Its data drift preset over all readable columns, outputs and 16 embedding components.

    Returns:
        Share of drifted columns, whether it calls the data set drifted, whether any column is.
    """
    os.environ.setdefault("DO_NOT_TRACK", "1")
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        from evidently import DataDefinition, Dataset, Report
        from evidently.presets import DataDriftPreset

        tables = [_table(frame, reference) for frame in (current, reference)]
        definition = DataDefinition(
            numerical_columns=[c for c in tables[0] if c != "prediction"], categorical_columns=["prediction"]
        )
        run = Report([DataDriftPreset()]).run(*(Dataset.from_pandas(t, data_definition=definition) for t in tables))
        values: dict[str, Any] = next(m for m in run.dict()["metrics"] if "DriftedColumnsCount" in m["metric_name"])["value"]
    return float(values["share"]), bool(values["share"] >= 0.5), bool(values["count"] > 0)


def evidently_embeddings(reference: Frame, current: Frame) -> tuple[float, bool]:
    """Its embedding drift with the default method: score and verdict."""
    import pandas as pd

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        from evidently.legacy.metrics.data_drift.embedding_drift_methods import model

        names = [f"e{i}" for i in range(reference.embeddings.shape[1])]
        frames = [pd.DataFrame(f.embeddings, columns=names) for f in (current, reference)]
        score, drifted, _ = model()(*frames)
    return float(score), bool(drifted)


def _table(frame: Frame, reference: Frame) -> Any:
    import pandas as pd

    centre = reference.embeddings.mean(axis=0)
    _, vectors = np.linalg.eigh(np.cov((reference.embeddings - centre).T))
    parts = (frame.embeddings - centre) @ vectors[:, ::-1][:, :16]
    columns = {name: values for name, values in frame.numerical.items() if np.ptp(reference.numerical[name]) > 0}
    columns |= {f"P({name})": frame.probabilities[:, i] for i, name in enumerate(frame.classes)}
    columns |= {f"embedding {i}": values for i, values in enumerate(parts.T)}
    return pd.DataFrame({**columns, "prediction": frame.categorical["prediction"]})
