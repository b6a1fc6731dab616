"""Gradient-boosted trees on the rows that the rankers have, and the requests that they learn from.

Shape suffixes: ``R`` exposed rows.
"""

from __future__ import annotations

from datetime import date

import numpy as np
import pyarrow as pa
from sklearn.ensemble import HistGradientBoostingClassifier

from benchmarks.judging import Floats
from benchmarks.tabular import TreeColumns
from dig_models.bundle import Bundle
from dig_models.evaluate.scoring import exposed_rows
from dig_models.train.data import RequestTable, request_columns
from jobs.config import Config
from jobs.dates import days_between
from jobs.lake import Lake


class Data:
    """Requests of days as arrays, on one item table."""

    def __init__(self, config: Config, bundle: Bundle) -> None:
        self.spec, self.items, self.lake = bundle.spec, bundle.items, Lake(config.paths.at("lake"))
        self.affinity = bundle.model.affinity

    def requests(self, first: date, last: date) -> RequestTable:
        """Examples of some days."""
        columns = request_columns(self.spec)
        table: pa.Table = self.lake.read_arrow("examples", days_between(first, last), columns=columns)
        return RequestTable.from_arrow(table, self.spec, self.items)


def trees(config: Config, day: date, data: Data, test: RequestTable, seed: int, *, shares: bool = True) -> Floats:
    """Scores of gradient-boosted trees, stopped early on the validation days.

    Args:
        config: its window says which days to learn from.
        day: the run date.
        data: examples, on the catalogue of the model compared with.
        test: requests whose exposed rows to score.
        seed: of the fit.
        shares: whether they read what was bought of a field's bucket on earlier days (``TreeColumns.seen``), which no network here does.
    """
    window = config.run_window(day)
    fit, validation = data.requests(window.train_first, window.fit_last), data.requests(window.validation_first, window.train_last)
    columns = TreeColumns.fit(data.spec, data.items, fit, data.affinity, shares=shares)
    model = HistGradientBoostingClassifier(
        max_iter=400, learning_rate=0.08, max_leaf_nodes=63, l2_regularization=1.0, categorical_features=columns.categorical,
        early_stopping=True, n_iter_no_change=15, scoring="roc_auc", random_state=seed,
    )  # fmt: skip
    model.fit(columns.of(fit), exposed_rows(fit).label_R, X_val=columns.of(validation), y_val=exposed_rows(validation).label_R)
    return np.asarray(model.decision_function(columns.of(test)), dtype=np.float64)
