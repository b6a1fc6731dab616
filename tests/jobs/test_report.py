from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser

import evaluation_world as ew
import pytest

from jobs import plots, runs
from jobs.answers import Answer, Past, Scored
from jobs.entry import JobError
from jobs.report import render
from jobs.summary import keep_latest, summarise

FIGURES = {f"{name}@{k}": 0.1 for name in ("recall", "ndcg") for k in (10, 50)}
METHOD = FIGURES | {"ci": {name: [0.08, 0.12] for name in FIGURES}}
FOUND = {"requests": 9, "relevant": 20} | dict.fromkeys(("dig", "dig_path", "popularity", "own_frequency"), METHOD)
LEVEL = {"codes": 4, "used": 3, "dead": 1, "perplexity": 2.7, "gini": 0.2, "gini_all": 0.4, "balance": 0.8, "counts": [5, 3, 0, 2]}
RANKING = {
    "auc": 0.86,
    "auc_ci": [0.85, 0.87],
    "gauc": 0.85,
    "logloss": 0.1,
    "calibration": 1.01,
    "recall_path": {"exact": {"auc": 0.8, "calibration": 1.0}, "mlp": {"auc": 0.75, "calibration": 1.1}},
    "auc_gap": {"exact": 0.06, "mlp": 0.11},
    "reliability": {"predicted": [0.01, 0.1], "actual": [0.012, 0.09], "weight": [5.0, 5.0]},
}
EVALUATION = {
    "date": "2017-11-15",
    "dataset": "complete_journey",
    "lineage": "a" * 64,
    "window": dict.fromkeys(("train_first", "train_last", "eval_first", "eval_last"), "2017-11-01"),
    "requests": 10,
    "users": 5,
    "rows": 100,
    "positives": 7,
    "ranking": RANKING,
    "retrieval": {"all": FOUND, "new": FOUND},
    "sid": {
        "items": 10,
        "sids": 9,
        "collision_rate": 0.1,
        "unique_rate": 0.8,
        "largest_bucket": 2,
        "entropy_ratio": 0.7,
        "levels": [LEVEL, LEVEL],
        "severity": [{"distance": 0, "pairs": 1, "cosine": 0.9}, {"distance": 1, "pairs": 0, "cosine": None}],
        "embedding_hit_rate@10": 0.2,
        "history_overlap": [0.9, None],
    },
    "champion": None,
    "churn": None,
    "difference": None,
}
TRAIN = {
    "steps": 10,
    "examples": 1234,
    "ancestor": None,
    "examples_per_s": 99.0,
    "wait_share": 0.03,
    "seconds": 12.0,
    "peak_rss_bytes": 1_000_000_000,
    "curves": {
        "steps": [{"step": 5, "rank": 0.5}, {"step": 10, "rank": 0.4, "recall": 0.6}],
        "epochs": [{"epoch": 0, "rank_exposed_auc": 0.8}],
    },
}
RULE = {"figure": "ranking AUC", "key": "min_auc", "value": 0.86, "low": 0.7, "high": None, "limit": "at least 0.7", "passed": True}
PARTS = {
    "evaluate": EVALUATION,
    "train": TRAIN,
    "register": {"name": "dig", "version": "4", "tags": {"lineage": "a" * 64, "code": "beef"}},
    "gate": {"passed": True, "compared": False, "message": "version 4 passes the gate", "rules": [RULE]},
    "promote": {"promoted": True, "message": "version 4 is champion and serves generation 2017-11-15-x"},
    "index": {"index": {"generation": "2017-11-15-x", "items": 10, "users": 3, "path": "/p"}},
}
SUMMARY_KEYS = {
    "": {"date", "dataset", "examples", "ranking", "retrieval", "sid", "model", "index", "seconds", "peak_rss_bytes"},
    "ranking": {"auc", "auc_ci", "gauc", "logloss", "calibration"},
    "retrieval": {"all", "new"},
    "sid": {"collision_rate", "levels", "churn", "churn_first", "churn_unaligned"},
    "model": {"name", "version", "alias"},
    "index": {"generation", "items", "path"},
}


@pytest.fixture
def config(tmp_path):
    settings = ew.settings(tmp_path)
    for name, value in PARTS.items():
        runs.save(settings, ew.DAY, name, value)
    return settings


def answer(name="User <1>"):
    item = Scored(place=1, item_id="77", name='MILK & "CREAM" <script>', sid=(1, 2, 3), probability=0.25)
    past = Past(day=ew.DAY, item_id="5", name="BREAD")
    return Answer(
        user=name, known=True, note="", items=(item,), history=(past,), generation="g", day=ew.DAY, model_name="dig", model_version="4"
    )


def page(config, **changes):
    parts = {name: copy.deepcopy(value) for name, value in PARTS.items()} | {"summary": summarise(config, ew.DAY)}
    for name, value in changes.items():
        parts[name] |= value
    return render(config, parts, [answer(), answer("2"), answer("3")])


def test_the_summary_has_exactly_the_promised_keys(config):
    summary = summarise(config, ew.DAY)
    for section, keys in SUMMARY_KEYS.items():
        assert set(summary[section] if section else summary) == keys
    assert set(summary["sid"]["levels"][0]) == {"codes", "used", "perplexity"}
    metrics = {"recall@10", "recall@50", "ndcg@10"}
    for variant in ("all", "new"):
        assert set(summary["retrieval"][variant]) == metrics | {"popularity", "own_frequency"}
        assert set(summary["retrieval"][variant]["popularity"]) == metrics
    assert summary["model"] == {"name": "dig", "version": "4", "alias": "champion"}
    assert summary["examples"] == 1234
    json.dumps(summary, allow_nan=False)


def test_stage_times_and_memory_come_from_the_run_or_else_from_training(config):
    assert summarise(config, ew.DAY)["seconds"] == {"train": 12.0}
    runs.write_json(runs.run_dir(config, ew.DAY) / "stages.json", {"seconds": {"ingest": 3.0, "train": 13.0}, "peak_rss_bytes": 7})
    summary = summarise(config, ew.DAY)
    assert (summary["seconds"], summary["peak_rss_bytes"]) == ({"ingest": 3.0, "train": 13.0}, 7)


def test_a_run_that_did_not_finish_has_no_summary(config):
    (runs.run_dir(config, ew.DAY) / "index.json").unlink()
    with pytest.raises(JobError, match=r"index\.json: not found; run python -m jobs\.index"):
        summarise(config, ew.DAY)


def test_latest_holds_the_newest_date_and_a_backfill_leaves_it_alone(config):
    earlier = ew.DAY.replace(day=1)
    for day in (ew.DAY, earlier):
        runs.save(config, day, "summary", {"date": day.isoformat(), "dataset": "complete_journey"})
        latest = keep_latest(config, day, "summary.json")
    assert json.loads((latest / "summary.json").read_text())["date"] == "2017-11-15"
    assert [p.name for p in latest.iterdir()] == ["summary.json"]


class Links(HTMLParser):
    """Whatever a browser would fetch."""

    def __init__(self):
        super().__init__()
        self.fetched, self.ids, self.targets = [], [], []

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "srcset", "data", "xlink:href", "action"):
                (self.targets if (value or "").startswith("#") else self.fetched).append(value)


def test_the_report_names_no_other_document_and_every_anchor_is_there(config):
    html = page(config)
    links = Links()
    links.feed(html)
    assert links.fetched == []
    assert not re.search(r"https?:|//[a-z]|@import|<script", html)
    assert set(re.findall(r"url\((.*?)\)", html)) <= {f"#{i}" for i in links.ids}
    assert {t.removeprefix("#") for t in links.targets} <= set(links.ids)
    assert len(links.ids) == len(set(links.ids))


def test_names_from_the_data_are_escaped(config):
    html = page(config)
    assert "MILK &amp; &#34;CREAM&#34; &lt;script&gt;" in html
    assert "User User &lt;1&gt;" in html


def test_the_report_shows_figures_baselines_gate_and_users(config):
    text = re.sub(r"<style>.*?</style>|<svg.*?</svg>|<[^>]+>", " ", page(config), flags=re.DOTALL)
    for expected in ("0.8600", "[0.8500, 0.8700]", "user&#39;s own most frequent", "at least 0.7", "passed", "BREAD", "3 of 4", "beef"):
        assert expected in text
    assert "absolute limits only" in text
    assert text.count("User ") >= 3


def test_a_run_in_the_acceptance_period_says_so_and_others_do_not(config):
    assert "acceptance period" in page(config, evaluate={"acceptance": True})
    assert "acceptance period" not in page(config, evaluate={"acceptance": False})


def test_figures_that_could_not_be_measured_are_dashes(config):
    ranking = RANKING | {"auc": None, "auc_ci": [None, None], "calibration": None}
    html = page(config, evaluate={"ranking": ranking}, gate={"rules": [RULE | {"value": None, "passed": False}]})
    assert "—" in html
    assert "failed" in html


@pytest.mark.slow
def test_a_champion_stands_beside_the_challenger(config):
    found = FOUND | {"champion": METHOD, "champion_path": METHOD}
    champion = {"version": "3", "date": "2017-11-14", "lineage": "b", "ranking": RANKING, "retrieval": {}}
    churn = {"items": 8, "rate": 0.125, "first": [0.1, 0.025], "levels": [0.1, 0.05], "prefixes": [0.1, 0.125], "posting_lists": 0.3}
    churn["unaligned"] = churn | {"rate": 0.75, "first": [0.5, 0.25]}
    difference = {"auc": 0.0012, "auc_ci": [-0.001, 0.003]}
    changed = {"champion": champion, "churn": churn, "difference": difference, "retrieval": {"all": found, "new": found}}
    html = page(config, evaluate=changed)
    for expected in (
        "Champion v3",
        "+0.0012",
        "12.5% of the 8 items that the champion knows too have another ID (75.0% before codes were renamed)",
        "0.500 · 0.250",
        "champion v3, re-ranked",
    ):
        assert expected in html
    html = page(config, evaluate={"champion": {"version": "3", "reason": "its feature spec is another"}})
    assert "not compared: its feature spec is another" in html


def test_plots_are_the_same_twice_and_draw_in_the_colours_of_the_page():
    one, two = (plots.svg(plots.codebooks(EVALUATION["sid"]), label="codes") for _ in range(2))
    assert one == two
    assert "var(--series-0)" in one
    assert not re.search(r"#[0-9a-f]{6}", one)


def test_every_plot_is_drawn_as_png_too_also_of_a_run_without_figures():
    empty = {"curves": {"steps": [], "epochs": []}}
    none = {"predicted": [], "actual": [], "weight": []}
    blank = {v: {"dig": {"recall@10": None, "ci": {"recall@10": [None, None]}}} for v in ("all", "new")}
    figures = [plots.training(TRAIN), plots.training(empty), plots.calibration({"reliability": none}), plots.retrieval(blank)]
    for figure in [*figures, plots.stages({"train": 3.0}), plots.retrieval(EVALUATION["retrieval"])]:
        assert plots.png(figure).startswith(b"\x89PNG")
