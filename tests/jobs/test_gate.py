import copy

import pytest

from jobs.config import GateConfig
from jobs.gate import judge

LIMITS = GateConfig()
COMPARED = {"ranking": {"auc": 0.852}, "retrieval": {"all": {"dig": {"recall@10": 0.125}}}}


def evaluation(champion=True):
    """Figures that pass every rule."""
    everything = {"requests": 90, "dig": {"recall@10": 0.12}, "popularity": {"recall@10": 0.05}}
    new = {"requests": 40, "dig": {"recall@10": 0.04}, "popularity": {"recall@10": 0.04}}
    return {
        "date": "2017-11-16",
        "ranking": {"auc": 0.85, "calibration": 1.02},
        "retrieval": {"all": everything, "new": new},
        "sid": {"collision_rate": 0.1, "items": 900, "levels": [{"used": 60, "codes": 64}, {"used": 64, "codes": 64}]},
        "champion": {"version": "3", "date": "2017-11-15"} | COMPARED if champion else None,
        "churn": {"items": 880, "rate": 0.025, "first": [0.01, 0.015]} if champion else None,
    }


def failing(figures, limits=LIMITS):
    return [rule.key for rule in judge(limits, figures) if not rule.passed]


def put(figures, path, value):
    changed = copy.deepcopy(figures)
    *parents, last = path
    at = changed
    for key in parents:
        at = at[key]
    at[last] = value
    return changed


def test_figures_inside_every_limit_pass_every_rule():
    assert failing(evaluation()) == []
    assert failing(evaluation(champion=False)) == []


@pytest.mark.parametrize(
    ("rule", "path", "value"),
    [
        ("min_auc", ("ranking", "auc"), 0.6999),
        ("calibration", ("ranking", "calibration"), 0.849),
        ("calibration", ("ranking", "calibration"), 1.151),
        ("min_recall_over_popularity", ("retrieval", "all", "dig", "recall@10"), 0.0749),
        ("min_new_recall_over_popularity", ("retrieval", "new", "dig", "recall@10"), 0.0359),
        ("max_collision_rate", ("sid", "collision_rate"), 0.2501),
        ("min_codes_used", ("sid", "levels", 1, "used"), 31),
        ("min_items", ("sid", "items"), 49),
    ],
)
def test_each_absolute_limit_fails_a_first_model_alone(rule, path, value):
    assert failing(put(evaluation(champion=False), path, value)) == [rule]


@pytest.mark.parametrize(
    ("rule", "path", "value"),
    [
        ("max_auc_loss", ("champion", "ranking", "auc"), 0.8551),
        ("max_recall_loss", ("champion", "retrieval", "all", "dig", "recall@10"), 0.134),
        ("max_churn", ("churn", "rate"), 0.0501),
    ],
)
def test_each_comparison_with_the_champion_fails_alone(rule, path, value):
    assert failing(put(evaluation(), path, value)) == [rule]


def test_another_model_of_the_champion_s_date_may_have_other_sids():
    assert failing(put(evaluation(), ("churn", "rate"), 0.99)) == ["max_churn"]
    same_date = put(evaluation(), ("champion", "date"), "2017-11-16")
    assert failing(put(same_date, ("churn", "rate"), 0.99)) == []
    assert failing(put(same_date, ("champion", "ranking", "auc"), 0.99)) == ["max_auc_loss"]


def test_a_value_on_its_limit_passes():
    exact = put(put(evaluation(), ("sid", "collision_rate"), 0.25), ("churn", "rate"), 0.05)
    assert failing(exact) == []


def test_without_a_champion_only_absolute_limits_apply():
    keys = {rule.key for rule in judge(LIMITS, evaluation(champion=False))}
    assert keys.isdisjoint({"max_auc_loss", "max_recall_loss", "max_churn"})
    incomparable = put(evaluation(), ("champion",), {"version": "3", "reason": "another feature spec"})
    assert {rule.key for rule in judge(LIMITS, incomparable)} == keys


@pytest.mark.parametrize(
    "path",
    [
        ("ranking", "auc"),
        ("ranking", "calibration"),
        ("retrieval", "all", "dig", "recall@10"),
        ("retrieval", "new", "dig", "recall@10"),
        ("churn",),
    ],
)
def test_a_figure_that_could_not_be_measured_fails_its_rule(path):
    rules = [rule for rule in judge(LIMITS, put(evaluation(), path, None)) if not rule.passed]
    assert rules
    assert all("could not be measured" in str(rule) for rule in rules)


def test_any_recall_beats_popularity_that_finds_nothing_but_nothing_does_not():
    nothing = put(evaluation(champion=False), ("retrieval", "all", "popularity", "recall@10"), 0.0)
    assert failing(nothing) == []
    assert failing(put(nothing, ("retrieval", "all", "dig", "recall@10"), 0.0)) == ["min_recall_over_popularity"]


def test_where_nobody_bought_anything_new_the_rule_on_new_items_does_not_apply():
    nothing = {"requests": 0, "dig": {"recall@10": None}, "popularity": {"recall@10": None}}
    rules = judge(LIMITS, put(evaluation(), ("retrieval", "new"), nothing))
    assert "min_new_recall_over_popularity" not in [rule.key for rule in rules]
    assert all(rule.passed for rule in rules)


def test_a_failed_rule_says_figure_value_limit_and_setting():
    [rule] = [r for r in judge(LIMITS, put(evaluation(), ("sid", "collision_rate"), 0.4)) if not r.passed]
    assert str(rule) == "SID collision rate is 0.4, expected at most 0.25 (gate.max_collision_rate)"
    assert rule.as_dict()["limit"] == "at most 0.25"


def test_a_refusal_over_churn_gives_numbers_of_items_by_level():
    churn = {"items": 880, "rate": 0.5, "first": [0.4, 0.1], "unaligned": None}
    [rule] = [r for r in judge(LIMITS, evaluation() | {"churn": churn}) if not r.passed]
    assert str(rule) == (
        "SID churn against the champion is 0.5, expected at most 0.05 (gate.max_churn): "
        "440 of 880 items have another SID, 352 first at level 1, 88 first at level 2"
    )
    assert failing(evaluation() | {"churn": churn}, GateConfig(max_churn=1.0)) == []
