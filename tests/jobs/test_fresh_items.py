"""Features of a few items without Spark: the rules that ``jobs.item_features`` follows."""

from __future__ import annotations

from datetime import date

import pyarrow as pa
import pytest

from dig_models.features import FieldSpec, bucket_of, hash_id
from jobs.config import DatasetConfig, load
from jobs.entry import JobError
from jobs.fresh_items import field_values, item_rows, words


def dataset() -> DatasetConfig:
    return load(environ={}).dataset


def items(**columns: object) -> pa.Table:
    rows = {"item_id": ["7", "8"], "manufacturer_id": [5, None], "department": ["GROCERY", ""], "brand": ["National", "never seen"]}
    rows |= {
        "product_category": ["BEERS/ALES", None],
        "product_type": ["Ale-12 Oz", None],
        "package_size": ["12 OZ", " "],
        "name": ["Ale", None],
    }
    return pa.table({**rows, **columns})


def test_a_value_takes_its_bucket_and_a_missing_one_takes_none() -> None:
    one, two = item_rows(items(), dataset()).to_pylist()
    assert one["f_manufacturer"] == bucket_of("5", 4096) and two["f_manufacturer"] == 0
    assert one["f_department"] == bucket_of("GROCERY", 64) and two["f_department"] == 0
    assert 1 <= two["f_brand"] < 8, "a value that nobody has seen has a bucket like any other"
    assert two["f_size"] == bucket_of(" ", 4096), "a blank is a value"
    assert (one["item_hash"], one["k_item"], one["k_manufacturer"], two["k_manufacturer"]) == (hash_id("7"), hash_id("7"), hash_id("5"), 0)
    assert (one["name"], two["name"]) == ("Ale", "8")


def test_words_are_runs_of_letters_and_numbers() -> None:
    assert words("Ale-12 Oz, crème_brûlée №5 Ⅷ") == ["ale", "12", "oz", "crème", "brûlée", "5", "ⅷ"]
    one, two = item_rows(items(), dataset()).to_pylist()
    assert one["f_type_words"] == sorted({bucket_of(w, 2048) for w in ("ale", "12", "oz")}) and two["f_type_words"] == []


@pytest.mark.parametrize("values", [pa.array([["a", " b ", "a", None, ""], None]), pa.array(["a| b |a||", None])])
def test_many_values_in_a_list_or_in_one_text(values: pa.Array) -> None:
    spec = FieldSpec(name="tags", kind="multi", buckets=512)
    found = field_values(pa.chunked_array([values]), spec).to_pylist()
    assert found == [sorted({bucket_of("a", 512), bucket_of("b", 512)}), []]


def test_a_number_that_is_none_is_missing() -> None:
    spec = FieldSpec(name="price", kind="numeric")
    column = pa.chunked_array([pa.array(["1.5", "x", "", None, "nan", "inf", "-2e3"])])
    assert field_values(column, spec).to_pylist() == [1.5, None, None, None, None, None, -2000.0]


def test_a_day_reads_as_spark_writes_it() -> None:
    spec = FieldSpec(name="since", buckets=4096)
    assert field_values(pa.chunked_array([pa.array([date(2017, 3, 9)])]), spec).to_pylist() == [bucket_of("2017-03-09", 4096)]


def test_a_type_whose_text_differs_is_refused() -> None:
    with pytest.raises(JobError, match=r"column manufacturer has type double.*make it a string"):
        item_rows(items(manufacturer_id=[1.5, 2.5]), dataset())


def test_a_missing_column_is_named() -> None:
    with pytest.raises(JobError, match="column brand is missing, found item_id"):
        item_rows(items().drop_columns(["brand"]), dataset())


def test_a_new_item_that_nobody_bought_has_no_popularity() -> None:
    rows = item_rows(items(), load(sets=["dataset.item_popularity=[7, 30]"], environ={}).dataset)
    assert rows.column("pop_7").to_pylist() == rows.column("pop_30").to_pylist() == [0.0, 0.0]
    assert "pop_7" not in item_rows(items(), dataset()).column_names
