import numpy as np
import pytest

from dig_models.evaluate import bootstrap, ranking


def rows(seed=0, n=4000, users=80):
    rng = np.random.default_rng(seed)
    user = rng.integers(0, users, n)
    label = (rng.random(n) < 0.2).astype(float)
    score = np.round(label * 0.7 + rng.normal(size=n), 1)
    return score, label, rng.choice([1.0, 10.0], n), user, users


def test_a_replicate_is_the_auc_of_the_users_drawn():
    score, label, weight, user, users = rows()
    draw = bootstrap.draws(users, 5, seed=1)
    got = bootstrap.auc_samples(score, label, weight, user, draw)
    for s in range(5):
        picked = np.concatenate([np.flatnonzero(user == u) for u in range(users) for _ in range(int(draw[s, u]))])
        assert got[s] == pytest.approx(ranking.auc(score[picked], label[picked], weight[picked]), abs=1e-12)


def test_draws_are_seeded_and_keep_the_number_of_users():
    a, b, c = bootstrap.draws(50, 10, 3), bootstrap.draws(50, 10, 3), bootstrap.draws(50, 10, 4)
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)
    assert np.all(a.sum(axis=1) == 50)


def test_bootstrap_over_no_users_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        bootstrap.draws(0, 10, 1)


def test_mean_replicates_leave_out_requests_without_a_figure():
    value = np.array([1.0, np.nan, 3.0, 5.0])
    user = np.array([0, 0, 1, 2])
    draw = np.array([[1.0, 1.0, 1.0], [2.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    got = bootstrap.mean_samples(value, user, draw)
    assert got[:2].tolist() == [3.0, (2 * 1 + 5) / 3]
    assert np.isnan(got[2])


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(5)
    covered = 0
    for trial in range(200):
        value = rng.normal(2.0, 1.0, 100)
        low, high = bootstrap.interval(bootstrap.mean_samples(value, np.arange(100), bootstrap.draws(100, 200, trial)), 0.9)
        covered += low <= 2.0 <= high
    assert 0.84 <= covered / 200 <= 0.96


def test_users_not_rows_are_drawn_so_rows_that_repeat_do_not_narrow_the_interval():
    value = np.random.default_rng(6).normal(size=60)
    draw = bootstrap.draws(60, 300, 0)
    once = bootstrap.interval(bootstrap.mean_samples(value, np.arange(60), draw))
    often = bootstrap.interval(bootstrap.mean_samples(np.repeat(value, 50), np.repeat(np.arange(60), 50), draw))
    assert often == pytest.approx(once)


def test_a_paired_difference_of_a_method_with_itself_is_zero():
    score, label, weight, user, users = rows()
    draw = bootstrap.draws(users, 20, 2)
    one = bootstrap.auc_samples(score, label, weight, user, draw)
    assert bootstrap.interval(one - bootstrap.auc_samples(score * 2, label, weight, user, draw)) == (0.0, 0.0)


def test_an_interval_of_nothing_finite_is_nan():
    assert all(np.isnan(bootstrap.interval(np.array([np.nan]))))
