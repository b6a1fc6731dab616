"""Spark's hashes and buckets against those that training and serving compute without Spark."""

from __future__ import annotations

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from dig_models.features import FieldSpec, bucket_of, hash_id
from jobs import hashing
from jobs.config import SourceField
from jobs.entry import JobError

pytestmark = pytest.mark.slow
VALUES = ["a", "A", "31 OZ", "Käse/Quark", "日本語", "😀", " ", "0", "x" * 100, "never seen before"]


def test_hashes_and_buckets_agree_with_the_model_side_for_any_text(spark: SparkSession) -> None:
    frame = spark.createDataFrame([(v,) for v in [*VALUES, "", None]], "v string")
    rows = frame.select("v", hashing.hash_id(F.col("v")), hashing.key_hash(F.col("v")), hashing.bucket(F.col("v"), 7)).collect()
    for value, hashed, key, bucket in rows:
        assert hashed == (hash_id(value) if value else None)
        assert key == (hash_id(value) if value else 0)
        assert bucket == bucket_of(value, 7)
    assert {bucket for *_, bucket in rows} <= set(range(7))


def test_an_array_column_and_a_separated_text_give_the_same_tokens(spark: SparkSession) -> None:
    frame = spark.createDataFrame([(["b", " a ", "", None, "b"], "b| a ||b"), (None, None)], "many array<string>, text string")
    spec = FieldSpec(name="tags", kind="multi", buckets=50)
    rows = frame.select(
        hashing.field(F.col("many"), spec, "array<string>").alias("many"), hashing.field(F.col("text"), spec, "string").alias("text")
    ).collect()
    assert rows[0]["many"] == rows[0]["text"] == sorted({bucket_of("a", 50), bucket_of("b", 50)})
    assert rows[1]["many"] == rows[1]["text"] == []


def test_a_number_that_is_none_is_missing(spark: SparkSession) -> None:
    frame = spark.createDataFrame([(v,) for v in ["1.5", "-2", "nan", "Infinity", "much", None]], "v string")
    spec = FieldSpec(name="price", kind="numeric")
    assert [r[0] for r in frame.select(hashing.field(F.col("v"), spec, "string")).collect()] == [1.5, -2.0, None, None, None, None]


def test_user_fields_must_be_categorical_and_present(spark: SparkSession) -> None:
    users = spark.createDataFrame([("u", "1")], "user_id string, age string")
    with pytest.raises(JobError, match="field age: kind numeric found"):
        hashing.user_buckets(users, {"u_age": SourceField.model_validate({"name": "age", "kind": "numeric"})}, "users")
    with pytest.raises(JobError, match=r"table users: column\(s\) income are missing, found user_id, age"):
        hashing.user_buckets(users, {"u_income": SourceField.model_validate({"name": "income"})}, "users")
