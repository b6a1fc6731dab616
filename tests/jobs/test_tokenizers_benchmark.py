"""The protocol of the tokenizer benchmark on a data set of a few users, and runs that are resumed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import tokenizers, tokenizers_runs, tokenizers_sasrec, tokenizers_sids
from benchmarks.baseline_models import SasRec
from benchmarks.tokenizers_data import DataError, DataSet, Order, read, text_vectors
from benchmarks.tokenizers_modes import MODES, NOT_HERE, REFERENCES, Mode, SasRecSettings, kind_of, kind_settings, variant_of
from benchmarks.tokenizers_runs import Asked, drawn, figures, run, split
from benchmarks.tokenizers_table import label, markdown
from dig_models.features import hash_id
from dig_models.generator.examples import Examples
from dig_models.generator.settings import GeneratorSettings
from dig_models.tokenizers.registry import KINDS, tokenizer_class
from dig_models.tokenizers.settings import TokenizersConfig

DAY = 86_400
RESID = {"epochs": "1", "dim": "8", "heads": "2", "hidden": "8", "held_out": "0"}
ITEMS = 14
TINY = Mode(
    name="quick",
    generator=GeneratorSettings(
        layers=1, dim=16, feed_forward=16, heads=2, head_dim=8, history=4, lr=0.01, warmup_steps=2, batch=16, epochs=2, beam=4
    ),
    sasrec=SasRecSettings(dim=16, layers=1, history=4, batch=8, epochs=2),
    test_users=9,
)


def write(folder: Path, *, times: bool = True) -> Path:
    """Twelve users with six events each, of which the last three are on one day; items are named by number."""
    folder.mkdir(parents=True)
    lines = ["user_id\titem_id\tpos" + ("\tdt_seconds\telapsed_seconds" if times else "")]
    for user in range(12):
        for pos in range(6):
            day = min(pos, 3)
            item = (user + 3 * pos) % ITEMS + 1
            lines.append(f"u{user:02}\t{item}\t{pos}" + (f"\t0\t{day * DAY}" if times else ""))
    mixed = [lines[0], *(lines[1 + at] for at in np.random.default_rng(0).permutation(len(lines) - 1))]
    (folder / "interactions.tsv").write_text("\n".join(mixed) + "\n")
    branded, plain = ["Acme", "Shop", "Tools"], ["Shop", None, "Toys"]
    named = [
        {"item_id": i, "text": f"red thing {i}", "attr_names": [*branded, f"Kind {i % 3}"] if i % 2 else plain} for i in range(1, ITEMS + 1)
    ]
    named[-1]["attr_names"] = ["Unknown", "Shop", "Toys"]
    tagged = [{"item_id": i, "title": f"Place {i}", "categories": ["Food", f"Sort {i % 2}"]} for i in range(1, ITEMS + 1)]
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (named if times else tagged)))
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sets")
    write(path / "family" / "tiny")
    write(path / "places", times=False)
    return path


@pytest.fixture(scope="module")
def data(home: Path) -> DataSet:
    return read(home, "tiny")


def item(data: DataSet, name: int) -> int:
    return int(data.items.rows(np.array([hash_id(str(name))]))[0])


def asked(data: DataSet, work: Path, kind: str = "rkmeans", **changes: object) -> Asked:
    given = {"order": "published", "mode": TINY, "seed": 3, "levels": 2, "codes": 4, **changes}
    return Asked(data=data, kind=kind, work=work, **given)  # type: ignore[arg-type]


def sids(data: DataSet, work: Path, kind: str = "rkmeans", order: Order = "published", **given: Any) -> tuple[np.ndarray, dict[str, Any]]:
    learned = data.sequences(order, 0).without_last(2)
    shape: dict[str, Any] = {"changes": {}, "levels": 1, "codes": 8, "seed": 3, "conflicts": "suffix", "work": work} | given
    return tokenizers_sids.sids(data, kind, learned=learned, **shape)


@pytest.fixture
def given_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors of texts from their letters: the sentence encoder has a test of its own."""
    monkeypatch.setattr(
        tokenizers_sids,
        "text_vectors",
        lambda data, _: np.stack([np.bincount([ord(c) % 32 for c in text], minlength=32) for text in data.text_M]).astype(np.float32),
    )


def test_the_last_event_tests_and_the_one_before_validates(data: DataSet) -> None:
    kept, validation, test = split(data.sequences("published", 0))
    learned = Examples.every(kept)
    for user in range(12):
        named = [item(data, (user + 3 * pos) % ITEMS + 1) for pos in range(6)]
        assert test.history(50)[user].tolist() == named[:5]
        assert test.target_X[user] == named[5]
        assert validation.history(50)[user].tolist() == named[:4]
        assert validation.target_X[user] == named[4]
        assert learned.target_X[3 * user : 3 * user + 3].tolist() == named[1:4]
    assert len(learned) == 36


def test_shuffling_ties_changes_the_order_within_a_day_only(data: DataSet) -> None:
    published, other = data.sequences("published", 0), data.sequences("shuffled", 1)
    moved = 0
    for user in range(12):
        assert other.one(user)[:3].tolist() == published.one(user)[:3].tolist()
        assert sorted(other.one(user)[3:]) == sorted(published.one(user)[3:])
        moved += other.one(user)[3:].tolist() != published.one(user)[3:].tolist()
    assert 6 <= moved <= 12  # five of six orders differ from the published one
    np.testing.assert_array_equal(data.sequences("shuffled", 1).item_P, other.item_P)
    assert (data.sequences("shuffled", 2).item_P != other.item_P).any()
    assert data.tied() == 1.0


def test_a_data_set_without_times_has_no_ties_to_shuffle(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = read(home, "places")
    assert places.tied() is None
    with pytest.raises(DataError, match="places: has an order but no times"):
        places.sequences("shuffled", 0)
    assert tokenizers.orders_of(places, ["published", "shuffled"]) == ["published"]
    assert "no ties to shuffle" in capsys.readouterr().out


def test_attributes_become_a_brand_and_a_category_path(data: DataSet, home: Path) -> None:
    """``Shop`` stands second in eight items here, too seldom to be a category where it stands first."""
    fields = data.items.fields
    odd, even = item(data, 1), item(data, 2)
    assert data.items.id_N[odd] == "1"
    assert fields["brand"][odd] != fields["brand"][even] != 0
    same = [item(data, i) for i in (1, 3, 5)]
    assert len({int(fields["category_2"][row]) for row in same}) == 1
    assert len({int(fields["category_3"][row]) for row in same}) == 3
    assert fields["category_2"][even] == 0
    assert (fields["brand"][0], fields["words"][0].any()) == (0, False)
    assert data.text_M[even - 1] == "red thing 2. Shop, Toys"
    none = item(data, ITEMS)
    assert fields["brand"][none] == 0 and fields["category_1"][none] == fields["category_1"][odd] != 0
    assert data.text_M[none - 1] == f"red thing {ITEMS}. Shop, Toys"
    assert "attributes" not in fields and "attributes" not in {field.name for field in data.spec.item_fields}  # brand and path say it all
    places = read(home, "places")
    assert places.items.fields["attributes"][1:].all() and "attributes" in {field.name for field in places.spec.item_fields}
    assert not places.items.fields["brand"].any()
    assert len(np.unique(places.items.fields["category_1"][1:])) == 1  # the commonest tag is the coarsest


def test_figures_are_those_counted_by_hand() -> None:
    ranked = np.array([[4, 9, 1, -1], [1, 2, 3, 4], [5, 6, 7, 8], [8, 7, 6, 5]])
    ranked = np.concatenate([ranked, np.full((4, 1), -1), np.array([[0], [30], [31], [32]]) + 50], axis=1)  # a sixth place
    found = figures(ranked, np.array([4, 3, 81, 2]), seed=0)
    assert found["recall@5"]["mean"] == pytest.approx(2 / 4)
    assert found["recall@10"]["mean"] == pytest.approx(3 / 4)
    assert found["ndcg@5"]["mean"] == pytest.approx((1 + 1 / np.log2(4)) / 4)
    assert found["ndcg@10"]["mean"] == pytest.approx((1 + 1 / np.log2(4) + 1 / np.log2(7)) / 4)
    for value in found.values():
        assert 0.0 <= value["low"] <= value["mean"] <= value["high"] <= 1.0
    assert found["recall@5"]["low"] < 0.5 < found["recall@5"]["high"]


def test_users_are_drawn_by_a_seed(data: DataSet) -> None:
    examples = Examples.last(data.sequences("published", 0))
    assert drawn(examples, None, 0) is examples and drawn(examples, 99, 0) is examples
    some = drawn(examples, 5, 0)
    assert len(some) == 5 and len(set(some.at_X.tolist())) == 5
    assert some.at_X.tolist() == drawn(examples, 5, 0).at_X.tolist() != drawn(examples, 5, 1).at_X.tolist()


@pytest.mark.usefixtures("given_vectors")
@pytest.mark.parametrize("kind", ["sasrec", "rkmeans"])
def test_a_run_that_is_done_is_not_done_again(data: DataSet, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    one = asked(data, tmp_path, kind)
    record = run(one, said.append)
    assert record["judged"] == 9 and record["users"] == 12 and record["epochs"] == 2
    assert (record["sids"] is None) == (kind == "sasrec")
    assert sum("epoch" in line for line in said) == 2
    before = one.record.stat().st_mtime_ns
    said.clear()
    assert run(one, said.append) == json.loads(one.record.read_text())
    assert said == [f"{one.name}: done before"] and one.record.stat().st_mtime_ns == before
    assert not (tmp_path / "open" / one.name).exists()
    other = {asked(data, tmp_path, kind, **change).name for change in ({}, {"seed": 4}, {"order": "shuffled"}, {"mode": MODES["quick"]})}
    assert len(other) == 4
    assert (asked(data, tmp_path, kind, codes=5).name == one.name) == (kind == "sasrec")
    name = one.name
    monkeypatch.setattr(tokenizers_runs, "code_of", lambda *_: "of tomorrow")
    assert asked(data, tmp_path, kind).name != name


@pytest.mark.usefixtures("given_vectors")
def test_a_run_that_was_stopped_goes_on_with_its_sids_and_its_epoch(data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(asked(data, tmp_path / "whole"), lambda _: None)

    def stop(line: str) -> None:
        if "epoch 1 of 2" in line:
            raise KeyboardInterrupt

    one = asked(data, tmp_path / "stopped")
    with pytest.raises(KeyboardInterrupt):
        run(one, stop)
    monkeypatch.setattr(tokenizer_class("rkmeans"), "fit", None)  # fitted already
    said: list[str] = []
    resumed = run(one, said.append)
    assert sum("epoch" in line for line in said) == 1
    assert resumed["figures"] == whole["figures"] and resumed["validation"] == whole["validation"]
    assert resumed["sids"] | {"seconds": 0} == whole["sids"] | {"seconds": 0}


@pytest.mark.usefixtures("given_vectors")
def test_no_two_items_share_the_sids_that_the_generator_gets(data: DataSet, tmp_path: Path) -> None:
    code_NL, told = sids(data, tmp_path)
    assert code_NL.shape == (ITEMS + 1, 2) and told["collision_rate"] == pytest.approx(6 / 14)
    assert len(np.unique(code_NL[1:], axis=0)) == ITEMS and told["shared_after"] == 0
    again, same = sids(data, tmp_path)
    assert again.tolist() == code_NL.tolist() and same == told
    apart, told = sids(data, tmp_path, levels=3)
    assert (apart.shape[1] == 3) == (told["collision_rate"] == 0)


@pytest.mark.usefixtures("given_vectors")
def test_items_that_share_a_sid_get_other_last_codes_by_transport(data: DataSet, tmp_path: Path) -> None:
    code_NL, told = sids(data, tmp_path, levels=2, codes=4, conflicts="sinkhorn")
    suffixed, before = sids(data, tmp_path, levels=2, codes=4)
    assert code_NL.shape == (ITEMS + 1, 2) and suffixed.shape == (ITEMS + 1, 3)
    assert told["collision_rate"] == before["collision_rate"] > told["shared_after"]
    np.testing.assert_array_equal(code_NL[:, 0], suffixed[:, 0])


def watch(monkeypatch: pytest.MonkeyPatch, found: Any, fits: list[str]) -> None:
    inner = found.fit

    def fit(*args: Any, **given: Any) -> Any:
        fits.append(f"{found.kind} {given['sequences'] is not None}")
        return inner(*args, **given)

    monkeypatch.setattr(found, "fit", fit)


@pytest.mark.usefixtures("given_vectors")
def test_sids_are_made_once_for_all_runs_that_would_get_the_same(data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fits: list[str] = []
    for kind in ("rkmeans", "resid"):
        watch(monkeypatch, tokenizer_class(kind), fits)
    for order in ("published", "shuffled", "published"):
        sids(data, tmp_path, order=order)
        sids(data, tmp_path, "resid", order, levels=2, changes=RESID)
    assert fits == ["rkmeans False", "resid True", "resid True"]
    for other in ({"seed": 4}, {"codes": 7}, {"levels": 2}, {"conflicts": "sinkhorn"}):
        sids(data, tmp_path, **other)
    assert fits[3:] == ["rkmeans False"] * 4
    sids(data, tmp_path, "resid", levels=2, changes=RESID | {"lr": "0.002"})
    assert len(fits) == 8
    monkeypatch.setattr(tokenizers_sids, "code_of", lambda *_: "of tomorrow")
    sids(data, tmp_path)
    assert len(fits) == 9


@pytest.mark.usefixtures("given_vectors")
def test_a_record_tells_what_sids_are_like_and_what_their_kind_tells(data: DataSet, tmp_path: Path) -> None:
    record = run(asked(data, tmp_path, "resid", levels=2, codes=8, changes=RESID), lambda _: None)
    told = record["sids"]
    assert len(told["history_overlap"]) == len(told["gini"]) == len(told["perplexity"]) == 2
    assert 0 < told["entropy_ratio"] <= 1 and told["entropy"] == pytest.approx(np.log(ITEMS))  # no two items share one
    assert len(told["branching"]) == 2 and len(told["famae"]["losses"]) == 1
    assert len(record["ranks"]) == 9 and set(record["ranks"]) <= set(range(11))
    hits = np.array(record["ranks"])
    assert record["figures"]["recall@10"]["mean"] == pytest.approx((hits > 0).mean())


def test_sasrec_learns_a_planted_rule_and_its_loss_is_that_of_every_event(data: DataSet) -> None:
    whole = data.sequences("published", 0)
    settings = SasRecSettings(dim=32, layers=1, history=5, lr=0.01, batch=4, epochs=40, seed=1)
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    model, progress = tokenizers_sasrec.train(data, whole.without_last(2), Examples.last(whole.without_last(1)), settings)
    torch.testing.assert_close(torch.rand(2), expected)
    assert progress.ndcg[progress.best] > 0.8 > progress.ndcg[0]
    history = torch.tensor([[1, 2, 3, 0, 0], [4, 0, 0, 0, 0]])
    target = torch.tensor([5, 6])
    with torch.no_grad():
        loss = tokenizers_sasrec.loss_of(model, history, target)
        state = model.states(tokenizers_sasrec.in_front(history))
        logit = torch.stack([state[0, 3], state[0, 4], state[0, 5], state[1, 5]]) @ model.item.weight[1:].T
        by_hand = torch.nn.functional.cross_entropy(logit, torch.tensor([2, 3, 5, 6]) - 1)
    torch.testing.assert_close(loss, by_hand)


def test_sasrec_never_answers_with_the_unknown_item(data: DataSet) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SasRec(data.spec.model_copy(update={"history_length": 4}), data.items, 8, 1)
    ranked = tokenizers_sasrec.recommend(model, Examples.last(data.sequences("published", 0)), 99)
    assert np.sort(ranked[:, :ITEMS], axis=1).tolist() == [list(range(1, ITEMS + 1))] * 12
    assert ranked.shape == (12, 99) and (ranked[:, ITEMS:] == -1).all()


@pytest.mark.usefixtures("given_vectors")
def test_the_program_writes_table_and_figures(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(tokenizers.MODES, "quick", TINY)
    argv = ["tokenizers", "--datasets", "tiny", "places", "--kinds", "popular", "sasrec", "rqvae", "rqvae:tiger", "--levels", "2"]
    argv += ["--codes", "4", "--set", "rqvae.epochs=2", "--work", str(tmp_path / "work"), "--results", str(tmp_path)]
    argv += ["--orders", "published", "shuffled"]
    monkeypatch.setenv("TOKENIZER_DATA", str(home))
    monkeypatch.setattr(sys, "argv", argv)
    tokenizers.main()
    shown = capsys.readouterr().out
    found = json.loads((tmp_path / "tokenizers.json").read_text())
    rows = [(row["dataset"], row["order"], label(row)) for row in found["rows"]]
    orders = [("places", "published"), ("tiny", "published"), ("tiny", "shuffled")]
    labels = ["popularity", "SASRec", "RQ-VAE (small) (epochs=2)", "TIGER (epochs=2)"]
    assert rows == [(*order, name) for order in orders for name in labels]
    assert found["rows"][2]["sid"]["changes"] == {"epochs": "2"}
    text = (tmp_path / "tokenizers.md").read_text()
    assert "Not compared: dig" in text and "it has an order but no times" in text
    assert "100.0% test on the day of the event before" in text
    assert text == markdown(found["rows"]) and shown.endswith(text + "\n")
    assert not any("ranks" in row for row in found["rows"])
    assert [row["difference"] is None for row in found["rows"]] == [False, False, True, False] * 3
    argv[argv.index("--kinds") + 1 : argv.index("--levels")] = ["sasrec"]
    del argv[argv.index("--set") : argv.index("--work")]
    tokenizers.main()
    shown = capsys.readouterr().out
    assert shown.count("done before") == 3
    assert shown.count("| SASRec |") == 3 and "| popularity |" not in shown  # what was asked for
    assert (tmp_path / "tokenizers.md").read_text() == text


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--data", "nowhere"], "--data nowhere: no such folder; expected is PATH/<data set>/interactions.tsv"),
        (["--datasets", "other"], "0 data sets 'other' found beside places, tiny"),
        (["--kinds", "dig"], "--kinds dig: not compared here: learned by the training of a click ranker"),
        (["--kinds", "rqvae:lion"], "--kinds rqvae:lion: no such variant, expected one of rqvae:tiger, rqvae:letter"),
        (["--set", "resid.epochs=2"], "--set resid.epochs=2: of none of the kinds asked for with settings, sasrec, rqvae"),
        (["--kinds", "rvqae"], "tokenizer 'rvqae': unknown"),
        (["--set", "epochs=2"], "--set epochs=2: KIND.KEY=VALUE expected"),
        (["--kinds", "rqvae", "--set", "rqvae.epoch=2"], "epoch"),
        (["--kinds", "rkmeans", "--set", "rkmeans.epochs=2"], "tokenizer 'rkmeans' has no settings"),
    ],
)
def test_a_mistake_ends_the_program_with_one_message(
    home: Path, tmp_path: Path, options: list[str], expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--data", str(home), "--kinds", "sasrec", "rqvae", "--work", str(tmp_path), "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["tokenizers", *given, *options])
    with pytest.raises(SystemExit) as error:
        tokenizers.main()
    assert error.value.code == 2
    assert expected in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "odd")
    kept = (folder / "items.jsonl").read_text()
    (folder / "items.jsonl").write_text("\n".join(kept.splitlines()[1:]))
    with pytest.raises(DataError, match=r"events of interactions\.tsv are of items that items\.jsonl lacks, the first of '1'"):
        read(tmp_path, "odd")
    (folder / "items.jsonl").write_text(kept + '{"item_id": 99}\n')
    with pytest.raises(DataError, match="line 15 lacks item_id, or both text and title"):
        read(tmp_path, "odd")
    (folder / "items.jsonl").unlink()
    with pytest.raises(DataError, match=r"items\.jsonl: not found; expected is"):
        read(tmp_path, "odd")
    (folder / "items.jsonl").write_text(kept)
    (folder / "interactions.tsv").write_text("user\titem_id\tpos\n1\t1\t0\n")
    with pytest.raises(DataError, match="columns user_id are missing, found user, item_id, pos"):
        read(tmp_path, "odd")


def test_text_vectors_are_computed_once_for_the_same_texts(data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import tokenizers_data

    calls: list[int] = []

    def encode(texts: tuple[str, ...]) -> np.ndarray:
        calls.append(len(texts))
        return np.array([[len(text), 1.0] for text in texts], dtype=np.float32)

    monkeypatch.setattr(tokenizers_data, "sentence_vectors", encode)
    first, second = text_vectors(data, tmp_path / "cache"), text_vectors(data, tmp_path / "cache")
    assert calls == [ITEMS] and first.tolist() == second.tolist()


def test_settings_of_a_kind_come_from_words() -> None:
    found: Callable[..., Any] = kind_settings
    rqvae = found(tokenizer_class("rqvae"), {"epochs": "7", "lr": "0.01"})
    assert (rqvae.epochs, rqvae.lr) == (7, 0.01)
    assert found(tokenizer_class("rqvae"), {}) is None
    with pytest.raises(ValueError, match="tokenizer 'rqvae': RQ-VAE preset 'lion': unknown"):
        kind_settings(tokenizer_class("rqvae"), {"preset": "lion"})


def test_without_a_folder_of_data_the_program_says_how_to_give_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TOKENIZER_DATA", raising=False)
    monkeypatch.setattr(sys, "argv", ["tokenizers"])
    with pytest.raises(SystemExit):
        tokenizers.main()
    assert "give --data PATH, or set TOKENIZER_DATA=PATH in the environment; expected is" in capsys.readouterr().err


def test_by_default_it_is_a_quick_look_at_all_kinds_on_beauty_in_the_published_order() -> None:
    args = tokenizers.parser().parse_args([])
    assert (args.mode, args.datasets, args.orders, args.kinds) == ("quick", ["beauty"], ["published"], None)
    for mode in MODES.values():
        kinds = {kind_of(name) for name in mode.compared}
        assert kinds == {*REFERENCES, *KINDS} - {*NOT_HERE}
        tokenizers.require(list(mode.compared), mode, [], ["beauty", "yelp"])


def test_every_kind_that_has_epochs_has_fewer_or_as_many_in_a_quick_look() -> None:
    own = {kind: getattr(TokenizersConfig(), kind) for kind in KINDS if hasattr(TokenizersConfig(), kind)}
    assert {*MODES["quick"].kinds} == {kind for kind, settings in own.items() if hasattr(settings, "epochs")}
    for kind, changes in MODES["quick"].kinds.items():
        assert kind_settings(tokenizer_class(kind), changes).epochs <= own[kind].epochs  # type: ignore[union-attr]


def test_settings_are_those_of_mode_data_set_and_variant_and_then_what_is_asked_for() -> None:
    full = MODES["full"]
    tiger = kind_settings(tokenizer_class("rqvae"), tokenizers.changes_of(full, [], "rqvae:tiger"))
    assert (tiger.hidden, tiger.optimizer, tiger.epochs) == ((512, 256, 128), "adagrad", 2000)  # type: ignore[union-attr]
    yelp = tokenizers.changes_of(full, ["diger.tau=3", "diger:detached.lr=0.1"], "diger:detached", "yelp")
    diger: Any = kind_settings(tokenizer_class("diger"), yelp)
    assert (diger.tau, diger.frqud_ratio, diger.sdud_lambda, diger.gradient, diger.lr) == (3.0, 1.1, 1.7, "detached", 0.1)
    assert (diger.layers, diger.dim, diger.feed_forward, diger.head_dim, diger.history) == (6, 128, 512, 64, 50)
    assert (diger.warmup_steps, diger.tokenizer_lr) == (500, 1e-5)
    assert "lr" not in tokenizers.changes_of(full, ["diger:detached.lr=0.1"], "diger", "yelp")
    (published,) = (name for name in full.compared if kind_of(name) == "diger")
    joint: Any = kind_settings(tokenizer_class("diger"), tokenizers.changes_of(full, [], published))
    assert (joint.gradient, joint.dim, joint.tokenizer_lr) == ("joint", 128, 1e-5), "what full compares is as published"
    assert tokenizers.changes_of(MODES["quick"], [], "diger") == {"epochs": "1", "history": "6", "layers": "1"}, (
        "its records keep their names"
    )
    assert variant_of("rqvae", {"preset": "letter", "epochs": "3"}) == "rqvae:letter" and variant_of("rqvae", {}) == "rqvae"
