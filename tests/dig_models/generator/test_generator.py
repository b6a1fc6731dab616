"""The generator on a small catalogue with a planted rule: it learns it, stays in the catalogue, and goes on where it was stopped."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dig_models.generator import search
from dig_models.generator.examples import Examples
from dig_models.generator.search import NONE, TrieTensors, beam_search, recommend
from dig_models.generator.settings import GeneratorSettings
from dig_models.generator.t5 import SidT5
from dig_models.generator.tokens import END, PAD, SidTokens, tokens_of
from dig_models.generator.train import Progress, train
from dig_models.retrieve.trie import Trie
from dig_models.tokenizers.registry import MissingExtra
from dig_models.tokenizers.sequences import Sequences

SIZES = (4, 4, 3)
ITEMS = 12
SMALL = GeneratorSettings(
    layers=1, dim=24, feed_forward=32, heads=2, head_dim=12, dropout=0.0, history=3, lr=0.01, warmup_steps=5, batch=32, epochs=20, beam=8,
    search_batch=16, seed=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def code_NL() -> np.ndarray:
    """Twelve items with SIDs of their own, out of 48."""
    every = np.stack(np.meshgrid(*map(np.arange, SIZES), indexing="ij"), axis=-1).reshape(-1, 3)
    chosen = np.random.default_rng(4).permutation(len(every))[:ITEMS]
    return np.concatenate([np.full((1, 3), -1), every[chosen]])


@pytest.fixture(scope="module")
def sequences() -> Sequences:
    """Each user starts anywhere and then always takes the item that the rule puts next."""
    start_U = np.random.default_rng(5).integers(0, ITEMS, 60)
    item_UE = (start_U[:, None] + 5 * np.arange(6)) % ITEMS + 1
    return Sequences(start=np.arange(0, 361, 6), item_P=item_UE.ravel().astype(np.int64))


def parts(sequences: Sequences) -> tuple[Examples, Examples]:
    return Examples.every(sequences.without_last(2)), Examples.last(sequences.without_last(1))


@pytest.fixture(scope="module")
def trained(code_NL: np.ndarray, sequences: Sequences) -> tuple[SidT5, Progress]:
    return train(code_NL, SIZES, SMALL, *parts(sequences))


def test_a_planted_rule_is_learned_to_recall_1(trained: tuple[SidT5, Progress], code_NL: np.ndarray, sequences: Sequences) -> None:
    model, progress = trained
    assert progress.losses[-1] < 0.25 < 1.0 < progress.losses[0]
    assert progress.ndcg[progress.best] == 1.0
    test = Examples.last(sequences)
    trie = TrieTensors.of(Trie.build(code_NL), model.device)
    ranked = recommend(model, trie, test.history(3), beam=4, batch=7, count=1)
    np.testing.assert_array_equal(ranked[:, 0], test.target_X.numpy())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_planted_rule_is_learned_on_a_gpu(code_NL: np.ndarray, sequences: Sequences) -> None:
    model, _ = train(code_NL, SIZES, SMALL, *parts(sequences), device="cuda")
    test = Examples.last(sequences)
    ranked = recommend(model, TrieTensors.of(Trie.build(code_NL), model.device), test.history(3), beam=4, batch=7, count=1)
    np.testing.assert_array_equal(ranked[:, 0], test.target_X.numpy())


@pytest.mark.slow
def test_the_same_training_gives_the_same_weights_and_leaves_the_global_generator(
    trained: tuple[SidT5, Progress], code_NL: np.ndarray, sequences: Sequences, tmp_path: Path
) -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)

    class Stopped(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.epoch == 4:
            raise Stopped

    # Too slow to get better by the second settings: the best weights are then those of an epoch before the stop.
    settings = SMALL.model_copy(update={"dropout": 0.2, "epochs": 6})
    still = SMALL.model_copy(update={"epochs": 6, "lr": 1e-5})
    unmoved, _ = train(code_NL, SIZES, still, *parts(sequences))
    with pytest.raises(Stopped):
        train(code_NL, SIZES, still, *parts(sequences), folder=tmp_path / "still", report=stop)
    moved, progress = train(code_NL, SIZES, still, *parts(sequences), folder=tmp_path / "still")
    assert progress.best < 4
    for name, value in unmoved.state_dict().items():
        torch.testing.assert_close(moved.state_dict()[name], value, rtol=0, atol=0)
    torch.manual_seed(11)
    whole, told = train(code_NL, SIZES, settings, *parts(sequences))
    torch.testing.assert_close(torch.rand(3), expected)
    with pytest.raises(Stopped):
        train(code_NL, SIZES, settings, *parts(sequences), folder=tmp_path, report=stop)
    seen: list[int] = []
    resumed, again = train(code_NL, SIZES, settings, *parts(sequences), folder=tmp_path, report=lambda p: seen.append(p.epoch))
    assert seen == [5, 6]
    assert (again.losses, again.ndcg, again.best) == (told.losses, told.ndcg, told.best)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0)
    with pytest.raises(ValueError, match="of another training"):
        train(code_NL, SIZES, SMALL, *parts(sequences), folder=tmp_path)


def test_training_ends_when_validation_gets_no_better_and_the_best_weights_are_kept(code_NL: np.ndarray, sequences: Sequences) -> None:
    settings = SMALL.model_copy(update={"epochs": 30, "patience": 2, "lr": 1e-7})
    model, progress = train(code_NL, SIZES, settings, *parts(sequences))
    assert progress.epoch == progress.best + 1 + 2 < 30
    assert progress.ndcg[progress.best] == max(progress.ndcg)
    ranked = recommend(model, TrieTensors.of(Trie.build(code_NL), model.device), parts(sequences)[1].history(3), beam=8, batch=16, count=10)
    target = parts(sequences)[1].target_X.numpy()
    gain = (1 / np.log2(np.arange(2, 12)) * (ranked == target[:, None])).sum(1).mean()
    assert gain == pytest.approx(progress.ndcg[progress.best])


def fresh(code_NL: np.ndarray, sizes: tuple[int, ...] = SIZES) -> SidT5:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return SidT5(code_NL, sizes, SMALL).eval()


def brute_force(model: SidT5, code_NL: np.ndarray, history_BH: torch.Tensor) -> np.ndarray:
    """Score of every item for every history, without cache or trie, ``(B, N - 1)``."""
    token_NL = model.tokens.token_NL[1:]
    token_BT, there_BT = model.tokens.history(history_BH)
    start_NL = torch.cat([torch.full((len(token_NL), 1), PAD), token_NL[:, :-1]], dim=1)
    out = []
    for row in range(len(history_BH)):
        with torch.no_grad():
            logit_NLV = model.t5(
                input_ids=token_BT[row].expand(len(token_NL), -1),
                attention_mask=there_BT[row].expand(len(token_NL), -1),
                decoder_input_ids=start_NL,
            ).logits
        total_N = torch.zeros(len(token_NL))
        for level in range(model.tokens.levels):
            block = model.tokens.block(level)
            log_NK = torch.log_softmax(logit_NLV[:, level, block], dim=1)
            total_N += log_NK.gather(1, (token_NL[:, level] - block.start).unsqueeze(1)).squeeze(1)
        out.append(total_N.numpy())
    return np.stack(out)


HISTORY = torch.tensor([[1, 2, 3, 0], [4, 0, 0, 0], [0, 0, 0, 0], [7, 7, 12, 1]])


def test_a_beam_as_large_as_the_catalogue_finds_what_brute_force_finds(code_NL: np.ndarray) -> None:
    model = fresh(code_NL)
    trie = Trie.build(code_NL)
    leaf_BW, score_BW = beam_search(model, TrieTensors.of(trie, model.device), HISTORY, 50)
    expected = brute_force(model, code_NL, HISTORY)
    order = np.argsort(-expected, axis=1, kind="stable")
    assert leaf_BW.shape[1] >= ITEMS and not torch.isfinite(score_BW[:, ITEMS:]).any()
    np.testing.assert_array_equal(trie.order_M[leaf_BW[:, :ITEMS].numpy()], order + 1)
    np.testing.assert_allclose(score_BW[:, :ITEMS].numpy(), np.take_along_axis(expected, order, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("beam", [1, 2, 5])
def test_a_small_beam_never_leaves_the_catalogue_and_scores_what_it_keeps_as_brute_force_does(code_NL: np.ndarray, beam: int) -> None:
    model = fresh(code_NL)
    trie = Trie.build(code_NL)
    leaf_BW, score_BW = beam_search(model, TrieTensors.of(trie, model.device), HISTORY, beam)
    assert leaf_BW.shape == (4, beam)
    found_BW = trie.order_M[leaf_BW.numpy()]
    there = torch.isfinite(score_BW).numpy()
    expected = brute_force(model, code_NL, HISTORY)
    np.testing.assert_allclose(score_BW.numpy()[there], np.take_along_axis(expected, found_BW - 1, 1)[there], rtol=1e-4, atol=1e-5)
    for row in range(4):
        assert len(set(found_BW[row][there[row]])) == there[row].sum() >= 1
    greedy = code_NL[found_BW[:, 0]]
    if beam == 1:  # the best first code that exists must be the first code of the answer
        assert set(greedy[:, 0]) <= set(code_NL[1:, 0])


def test_an_answer_does_not_depend_on_the_histories_beside_it(code_NL: np.ndarray) -> None:
    model, trie = fresh(code_NL), Trie.build(code_NL)
    tensors = TrieTensors.of(trie, model.device)
    together = recommend(model, tensors, HISTORY, beam=3, batch=4, count=5)
    alone = recommend(model, tensors, HISTORY, beam=3, batch=1, count=5)
    np.testing.assert_array_equal(together, alone)
    longer = torch.cat([torch.zeros(4, 3, dtype=torch.int64), HISTORY], dim=1)  # padding in front and more of it
    np.testing.assert_array_equal(recommend(model, tensors, longer, beam=3, batch=4, count=5), together)


def test_histories_are_searched_by_length_and_answers_come_in_the_order_of_the_questions(
    code_NL: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fresh(code_NL)
    tensors, widths = TrieTensors.of(Trie.build(code_NL), model.device), []

    def watched(model: SidT5, trie: TrieTensors, history_BH: torch.Tensor, beam: int) -> tuple[torch.Tensor, torch.Tensor]:
        widths.append(tuple(history_BH.shape))
        return beam_search(model, trie, history_BH, beam)

    together = recommend(model, tensors, HISTORY, beam=50, batch=4, count=14)
    monkeypatch.setattr(search, "beam_search", watched)
    wide = torch.nn.functional.pad(HISTORY, (0, 9))
    np.testing.assert_array_equal(recommend(model, tensors, wide, beam=50, batch=2, count=14), together)
    assert widths == [(2, 1), (2, 4)]
    assert (together[[2, 1, 0, 3]] != together).any()  # else their order would not be told


def test_equal_scores_are_in_order_of_sid_then_row_and_items_of_one_sid_come_together() -> None:
    code_NL = np.array([[-1, -1, -1], [2, 1, 0], [0, 0, 1], [2, 1, 0], [0, 0, 0], [3, 3, 2], [2, 0, 0]])
    model = fresh(code_NL)
    with torch.no_grad():  # all codes of a level are as likely as each other: every SID has one score
        model.t5.lm_head.weight.zero_()
    ranked = recommend(model, TrieTensors.of(Trie.build(code_NL), model.device), HISTORY % 6, beam=20, batch=2, count=8)
    np.testing.assert_array_equal(ranked, np.tile([4, 2, 6, 1, 3, 5, NONE, NONE], (4, 1)))
    cut = recommend(model, TrieTensors.of(Trie.build(code_NL), model.device), HISTORY % 6, beam=2, batch=4, count=4)
    np.testing.assert_array_equal(cut, np.tile([4, 2, NONE, NONE], (4, 1)))


def test_a_cold_item_is_found_by_its_sid_alone(trained: tuple[SidT5, Progress], code_NL: np.ndarray) -> None:
    """It joins a trained SID, or has one that was never seen; an unknown item in a history is skipped."""
    model, _ = trained
    taken = {tuple(c) for c in code_NL[1:].tolist()}
    free = next(c for c in np.ndindex(*SIZES) if c not in taken)
    grown = np.concatenate([code_NL, code_NL[6:7], [free]])  # rows 13 and 14
    tensors = TrieTensors.of(Trie.build(grown), model.device)
    history = torch.tensor([[0, 8, 0, 1]])  # after row 1 the rule has row 6
    ranked = recommend(model, tensors, history, beam=30, batch=1, count=14)[0]
    assert ranked[:2].tolist() == [6, 13]
    assert sorted(ranked.tolist()) == list(range(1, 15))


def test_tokens_have_a_block_for_each_level(code_NL: np.ndarray) -> None:
    tokens = SidTokens(np.array([[-1, -1], [0, 0], [3, 4]]), (4, 5))
    assert tokens.vocabulary == 11
    assert (tokens.block(0), tokens.block(1)) == (slice(2, 6), slice(6, 11))
    token_BT, there_BT = tokens.history(torch.tensor([[0, 2, 0, 1], [0, 0, 0, 0]]))
    assert token_BT[0, :5].tolist() == [5, 10, 2, 6, END]
    assert token_BT[1, 0] == END
    assert there_BT.sum(1).tolist() == [5, 1]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ([[0, 0], [0, 5], [1, 1]], "item row 1: code 5 found at level 2, which has the codes 0..4"),
        ([[0, 0], [0, 0], [-1, 1]], "item row 2: code -1 found at level 1"),
        ([[0, 0, 0], [1, 1, 1]], r"shape \(2, 3\)"),
        ([[0, 0]], r"shape \(1, 2\)"),
    ],
)
def test_a_sid_outside_its_level_is_refused(code: list[list[int]], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        tokens_of(np.array(code), (4, 5))


def test_a_trie_that_the_generator_cannot_write_is_refused(code_NL: np.ndarray) -> None:
    model = fresh(code_NL)
    wider = code_NL.copy()
    wider[3, 2] = 3
    with pytest.raises(ValueError, match=r"code 3 found at level 3, where the generator knows the codes 0\.\.2"):
        beam_search(model, TrieTensors.of(Trie.build(wider), model.device), HISTORY, 2)
    with pytest.raises(ValueError, match="a trie of 2 levels found, the generator writes SIDs of 3"):
        beam_search(model, TrieTensors.of(Trie.build(code_NL[:, :2]), model.device), HISTORY, 2)


def test_nothing_to_learn_from_is_refused(code_NL: np.ndarray, sequences: Sequences) -> None:
    one = Sequences(start=np.array([0, 1]), item_P=np.array([3]))
    with pytest.raises(ValueError, match="0 examples to learn from"):
        train(code_NL, SIZES, SMALL, Examples.every(one), Examples.last(sequences))


def test_without_transformers_the_error_names_the_extra(code_NL: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtra, match=r"dig-pipeline\[generator\]"):
        SidT5(code_NL, SIZES, SMALL)


def test_examples_are_all_events_with_one_before_them_and_batches_hold_each_once() -> None:
    sequences = Sequences(start=np.array([0, 3, 4, 8]), item_P=np.array([1, 2, 3, 9, 5, 6, 7, 8]))
    every = Examples.every(sequences)
    assert every.target_X.tolist() == [2, 3, 6, 7, 8]
    assert every.history(2).tolist() == [[1, 0], [1, 2], [5, 0], [5, 6], [6, 7]]
    last = Examples.last(sequences)  # the user of one event has none
    assert last.target_X.tolist() == [3, 8]
    assert last.history(9).tolist() == [[1, 2, 0], [5, 6, 7]]
    assert every.take(torch.tensor([2])).history(9).tolist() == [[5]]
    for seed in (0, 1):
        batches = list(every.batches(2, 9, seed))
        assert sorted(t for b in batches for t in b.target_X.tolist()) == [2, 3, 6, 7, 8]
        assert sorted(len(b) for b in batches) == [1, 2, 2]
    assert [b.target_X.tolist() for b in every.batches(2, 9, 0)] == [b.target_X.tolist() for b in every.batches(2, 9, 0)]
