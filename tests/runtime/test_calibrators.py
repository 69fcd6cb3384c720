"""Each method against plain numpy over all data held in memory; states; what is refused."""

import itertools

import numpy as np
import pytest

from burnish.errors import CalibrationError
from burnish.runtime.calibrators import METHODS, Calibrator, new_calibrator
from burnish.runtime.histogram import BINS, Gains, Histogram

SEEDS = range(4)


def data(seed: int, kind: str = "normal") -> list[np.ndarray]:
    """Batches of several shapes: bell-shaped, long-tailed, after a Relu, or skewed."""
    rng = np.random.default_rng(seed)
    shapes = [(1, 40, 16), (3, 7, 16), (1, 1, 16), (2, 300, 16)]
    made = [rng.standard_normal(shape) for shape in shapes]
    if kind == "tailed":
        made = [np.where(rng.random(x.shape) < 2e-3, x * 40, x) for x in made]
    if kind == "relu":
        made = [np.maximum(x, 0) for x in made]
    if kind == "skewed":
        made = [np.exp(x) - 0.5 for x in made]
    return [x.astype(np.float32) for x in made]


KINDS = ("normal", "tailed", "relu", "skewed")


def found(method: str, batches: list[np.ndarray], **options: object) -> tuple[float, float]:
    calibrator = new_calibrator(method, **options)
    for batch in batches:
        calibrator.observe(batch)
    bounds = calibrator.bounds()
    assert bounds is not None
    return bounds


def flat(batches: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([batch.ravel() for batch in batches]).astype(np.float64)


def width_of(batches: list[np.ndarray]) -> float:
    """Of a bin of the histogram."""
    return 2.0 ** (int(np.frexp(np.abs(flat(batches)).max())[1]) - 12)


def rounded(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """As 8 bits hold them: the range is widened to hold 0, which is exact."""
    low, high = min(low, 0.0), max(high, 0.0)
    step = (high - low) / 255
    zero = np.rint(-low / step)
    return (np.clip(np.rint(values / step) + zero, 0, 255) - zero) * step


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", SEEDS)
def test_minmax(seed: int, kind: str) -> None:
    batches = data(seed, kind)
    assert found("minmax", batches) == (flat(batches).min(), flat(batches).max())


@pytest.mark.parametrize("seed", SEEDS)
def test_moving_average(seed: int) -> None:
    batches = data(seed) * 40
    weights = 0.01 * 0.99 ** np.arange(len(batches))[::-1]
    expected = [np.average([f(b) for b in batches], weights=weights) for f in (np.min, np.max)]
    np.testing.assert_allclose(found("moving-average", batches), expected, rtol=1e-6)
    few = found("moving-average", batches[:2])
    np.testing.assert_allclose(
        few, [np.mean([f(b) for b in batches[:2]]) for f in (np.min, np.max)], rtol=0.01
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("percent", [90.0, 99.0, 99.9, 100.0])
def test_percentile(percent: float, kind: str) -> None:
    batches = data(0, kind)
    values = np.sort(flat(batches))
    cut = (100 - percent) / 200
    low, high = found("percentile", batches, percent=percent)
    width = width_of(batches)
    exact = np.quantile(values, [cut, 1 - cut], method="inverted_cdf")
    assert exact[0] - width <= low <= exact[0] + 1e-12
    assert exact[1] - 1e-12 <= high <= exact[1] + width
    assert np.mean(values < low) <= cut + 1e-12
    assert np.mean(values > high) <= cut + 1e-12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", SEEDS)
def test_mse_is_as_good_as_the_best_of_the_grid(seed: int, kind: str) -> None:
    batches = data(seed, kind)
    values = flat(batches)
    shares = np.linspace(1.0, 0.2, 33)
    lows = [values.min() * s for s in shares] if values.min() < 0 else [0.0]
    errors = [
        np.sum((rounded(values, low, values.max() * s) - values) ** 2)
        for low, s in itertools.product(lows, shares)
    ]
    mine = np.sum((rounded(values, *found("mse", batches)) - values) ** 2)
    assert mine <= 1.05 * min(errors)


def test_mse_gives_up_an_outlier_but_not_a_uniform_tail() -> None:
    values = np.random.default_rng(0).standard_normal(1_000_000)
    assert found("mse", [np.random.default_rng(0).uniform(-1, 1, 100_000)])[1] > 0.95
    assert found("mse", [np.append(values, 30.0)])[1] < 20.0


def plain_divergence(values: np.ndarray, width: float, threshold: int) -> float:
    """TensorRT's: the values as counted, clipped to +-threshold bins, against those rounded to 256 levels."""
    bins = np.floor(values[values != 0] / width).astype(int)
    first, last = min(bins.min(), 0), max(bins.max() + 1, 0)
    low, high = max(first, -threshold), min(last, threshold)
    p, q = dict.fromkeys(range(low, high), 0.0), dict.fromkeys(range(low, high), 0.0)
    for b in bins:
        p[min(max(b, low), high - 1)] += 1
    levels: dict[int, list[int]] = {}
    for b in bins[(bins >= low) & (bins < high)].tolist():
        levels.setdefault((b - low) * 256 // max(high - low, 256), []).append(b)
    for here in levels.values():
        for b in set(here):
            q[b] = len(here) / len(set(here))
    total_p, total_q = sum(p.values()), sum(q.values())
    return sum(x / total_p * np.log(x / total_p / max(q[b] / total_q, 1e-9)) for b, x in p.items() if x)


@pytest.mark.parametrize("kind", KINDS)
def test_entropy_is_the_least_divergence(kind: str) -> None:
    batches = data(1, kind)
    values, width = flat(batches), width_of(batches)
    bins = np.floor(values[values != 0] / width).astype(int)
    furthest = max(-bins.min(), bins.max() + 1)
    thresholds = np.linspace(furthest, min(256, furthest), 128).astype(int)
    expected = [plain_divergence(values, width, int(t)) for t in thresholds[::16]]
    low, high = found("entropy", batches)
    mine = plain_divergence(values, width, max(int(np.rint(-low / width)), int(np.ceil(high / width - 1e-9))))
    assert mine <= min(expected) + 1e-9


def test_entropy_gives_up_rare_outliers() -> None:
    values = np.random.default_rng(0).standard_normal(200_000)
    low, high = found("entropy", [np.append(values, [60.0, -60.0])])
    assert -30 < low < -3
    assert 3 < high < 30
    assert found("entropy", [np.zeros((3, 4), np.float32)]) == (0.0, 0.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", SEEDS)
def test_layerwise_percentile_is_the_best_for_the_layer(seed: int, kind: str) -> None:
    batches = data(seed, kind)
    rng = np.random.default_rng(seed + 100)
    weight = rng.standard_normal((16, 32)) * np.exp(rng.standard_normal((16, 1)))
    worth = np.square(weight).sum(axis=1)
    gains = Gains(-1, np.rint(worth / worth.max() * 4095).astype(np.int64))
    rows = np.concatenate([batch.reshape(-1, 16) for batch in batches]).astype(np.float64)

    def error(bounds: tuple[float, float]) -> float:
        return float(np.sum(((rounded(rows, *bounds) - rows) @ weight) ** 2))

    candidates = [found("percentile", batches, percent=p) for p in (99.0, 99.9, 99.99, 99.999, 100.0)]
    mine = found("layerwise-percentile", batches, gains=gains)
    assert mine in candidates
    assert error(mine) <= 1.1 * min(map(error, candidates))


def test_layerwise_percentile_follows_the_channel_that_counts() -> None:
    rng = np.random.default_rng(0)
    batch = rng.standard_normal((20_000, 2)).astype(np.float32)
    batch[:20, 0] *= 30.0
    wide = found("layerwise-percentile", [batch], gains=Gains(-1, np.array([4095, 0])))
    narrow = found("layerwise-percentile", [batch], gains=Gains(-1, np.array([0, 4095])))
    assert wide[1] > 3 * narrow[1]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_state_goes_on_bit_for_bit(method: str, kind: str) -> None:
    batches, gains = data(2, kind), Gains(-1, np.arange(1, 17))
    for cut in range(len(batches) + 1):
        first, second = (new_calibrator(method, gains=gains) for _ in range(2))
        for batch in batches[:cut]:
            first.observe(batch)
        second.restore({key: array.copy() for key, array in first.state().items()})
        for batch in batches[cut:]:
            second.observe(batch)
        assert second.bounds() == found(method, batches, gains=gains)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_seen_and_nothing_there(method: str) -> None:
    calibrator = new_calibrator(method)
    assert calibrator.bounds() is None
    calibrator.observe(np.zeros((0, 4), np.float32))
    assert calibrator.bounds() is None
    calibrator.observe(np.full((2, 2), 3.0, np.float32))
    assert calibrator.bounds() == (3.0, 3.0)


@pytest.mark.parametrize("method", METHODS)
def test_the_bytes_of_a_state_are_bounded(method: str) -> None:
    calibrator = new_calibrator(method, gains=Gains(-1, np.arange(1, 17)))
    for seed in range(30):
        for batch in data(seed, "tailed"):
            calibrator.observe(batch)
    assert sum(array.nbytes for array in calibrator.state().values()) <= 2 * BINS * 8 + 200


@pytest.mark.parametrize("method", METHODS)
def test_a_foreign_state_is_refused(method: str) -> None:
    calibrator: Calibrator = new_calibrator(method)
    with pytest.raises((KeyError, ValueError)):
        calibrator.restore({"nothing": np.zeros(3)})


def test_no_such_method_or_percentile() -> None:
    with pytest.raises(CalibrationError, match="no calibration method 'entrophy'") as caught:
        new_calibrator("entrophy")
    assert "entropy" in caught.value.hint
    with pytest.raises(CalibrationError, match="cannot hold 101 %"):
        new_calibrator("percentile", percent=101.0)


def test_a_range_of_one_value_costs_what_it_loses() -> None:
    histogram = Histogram()
    histogram.add(np.append(np.zeros(100_000), [1.0]))
    assert histogram.percentile(99.0) == (0.0, pytest.approx(0.0, abs=1e-3))
    assert found("layerwise-percentile", [np.append(np.zeros(100_000), [1.0])]) == (0.0, 1.0)
