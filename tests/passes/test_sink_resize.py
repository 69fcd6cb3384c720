import numpy as np
import pytest

from burnish.passes.base import Context
from burnish.passes.fusion.sink_resize import SinkResize
from burnish.testing import check_pass, parse

RNG = np.random.default_rng(0)
CHANNELS = 96
LINEAR = 'mode = "linear", nearest_mode = "floor"'
KEEPS = f"{LINEAR}, coordinate_transformation_mode = "
MODES = {
    "half pixels": LINEAR,
    "half pixels of torch": f'{KEEPS}"pytorch_half_pixel"',
    "corners aligned": f'{KEEPS}"align_corners"',
    "asymmetric": f'{KEEPS}"asymmetric"',
    "the nearest": 'mode = "nearest", nearest_mode = "floor", coordinate_transformation_mode = "asymmetric"',
}
HEAD = f"float[N, {CHANNELS}, 4, 5] a, float[N, {CHANNELS}, 8, 10] b"
SIZES = np.array([1, 1, 2, 2], np.float32)


def weights(read: int, made: int = CHANNELS, **more: np.ndarray) -> dict[str, np.ndarray]:
    weight = RNG.standard_normal((made, read, 1, 1)).astype(np.float32) / 8
    return {"w": weight, "c": np.linspace(-2, 2, made, dtype=np.float32), "twice": SIZES, **more}


def graph(nodes: str, made: int = CHANNELS, inputs: str = HEAD) -> str:
    return f"g ({inputs}) => (float[N, {made}, 8, 10] y) {{ {nodes} }}"


def resize(attributes: str = LINEAR, inputs: str = "a, , twice") -> str:
    return f"r = Resize <{attributes}> ({inputs})"


def misses(text: str, **constants: np.ndarray) -> list[str]:
    context = Context()
    model = parse(text, weights={k: v for k, v in constants.items() if k in text})
    assert SinkResize().rewrite(model, context) == 0
    return [miss.why for miss in context.misses]


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_a_part_that_is_enlarged(mode: str) -> None:
    nodes = f"{resize(mode)}  j = Concat <axis = 1> (r, b)  y = Conv (j, w, c)"
    check_pass(
        SinkResize(), graph(nodes), ["Conv", "Conv", "Resize", "Sum"], count=1, weights=weights(2 * CHANNELS)
    )


def test_all_parts() -> None:
    nodes = (
        f"{resize()}  s = Resize <{LINEAR}> (d, , twice)  j = Concat <axis = -3> (r, s)  y = Conv (j, w, c)"
    )
    inputs = f"float[N, {CHANNELS}, 4, 5] a, float[N, {CHANNELS}, 4, 5] d"
    after = ["Conv", "Resize", "Conv", "Resize", "Sum"]
    model = check_pass(
        SinkResize(), graph(nodes, inputs=inputs), after, count=1, weights=weights(2 * CHANNELS)
    )
    assert [len(node.inputs) for node in model.graph if node.op_type == "Conv"] == [3, 2]  # one bias


def test_several_that_stay() -> None:
    nodes = f"{resize()}  n = Neg (b)  j = Concat <axis = 1> (b, r, n)  y = Conv (j, w, c)"
    after = ["Neg", "Concat", "Conv", "Conv", "Resize", "Sum"]
    check_pass(SinkResize(), graph(nodes), after, count=1, weights=weights(3 * CHANNELS))


def test_without_a_concat() -> None:
    inputs = f"float[N, {CHANNELS}, 4, 5] a"
    text = graph(f"{resize()}  y = Conv (r, w, c)", 7, inputs)
    check_pass(SinkResize(), text, ["Conv", "Resize"], count=1, weights=weights(CHANNELS, 7))


def test_through_one_resize_after_the_other() -> None:
    inputs = f"float[N, {CHANNELS}, 2, 5] a"
    nodes = f"{resize(inputs='a, , high')}  s = Resize <{LINEAR}> (r, , high)  y = Conv (s, w, c)"
    given = weights(CHANNELS, 7, high=np.array([1, 1, 3, 1], np.float32))
    given.pop("twice")
    text = f"g ({inputs}) => (float[N, 7, 18, 5] y) {{ {nodes} }}"
    check_pass(SinkResize(), text, ["Conv", "Resize", "Resize"], count=2, weights=given)


def test_sizes_that_are_constant_get_the_new_channels() -> None:
    inputs = f"float[2, {CHANNELS}, 4, 5] a"
    given = weights(CHANNELS, 7, sizes=np.array([2, CHANNELS, 8, 10]))
    given.pop("twice")
    text = f"g ({inputs}) => (float[2, 7, 8, 10] y) {{ {resize(inputs='a, , , sizes')}  y = Conv (r, w, c) }}"
    check_pass(SinkResize(), text, ["Conv", "Resize"], count=1, weights=given)


SIZED = "h = Shape <start = 0, end = 2> (a)  t = Concat <axis = 0> (h, place)"


def test_sizes_that_are_computed_stay_for_as_many_channels() -> None:
    nodes = f"{SIZED}  {resize(inputs='a, , , t')}  j = Concat <axis = 1> (r, b)  y = Conv (j, w, c)"
    given = weights(2 * CHANNELS, place=np.array([8, 10]))
    given.pop("twice")
    check_pass(SinkResize(), graph(nodes), count=1, weights=given)


def test_sizes_that_are_computed_hold_the_channels() -> None:
    nodes = f"{SIZED}  {resize(inputs='a, , , t')}  j = Concat <axis = 1> (r, b)  y = Conv (j, w, c)"
    given = weights(2 * CHANNELS, 7, place=np.array([8, 10]))
    assert misses(graph(nodes, 7), **given) == [
        "the sizes of its Resize are computed, its channels among them"
    ]


REGION = '"tf_crop_and_resize"'
NEAR = {
    "cubic": (resize('mode = "cubic"'), "over space"),
    "anti-aliased": (resize(f"{LINEAR}, antialias = 1"), "over space"),
    "of a region": (resize(f"{KEEPS}{REGION}", "a, region, twice"), "how many channels"),
    "of the channels": (resize(inputs="a, , wide"), "not proved to keep"),
    "hardly larger": (resize(inputs="a, , some"), "not be less"),
    "of nothing": ("r = Neg (a)", ""),
}  # fmt: skip


@pytest.mark.parametrize(("nodes", "why"), NEAR.values(), ids=NEAR)
def test_what_is_kept(nodes: str, why: str) -> None:
    constants = weights(
        CHANNELS, 7, wide=np.array([1, 2, 2, 2], np.float32), some=np.array([1, 1, 1.2, 1.2], np.float32),
        region=np.array([0, 0, 0, 0, 1, 1, 1, 1], np.float32),
    )  # fmt: skip
    if "wide" in nodes:
        constants["w"] = np.ones((7, 2 * CHANNELS, 1, 1), np.float32)
    text = f"g (float[N, {CHANNELS}, 4, 5] a) => (float[N, 7, P, Q] y) {{ {nodes}  y = Conv (r, w, c) }}"
    found = misses(text, **constants)
    assert why in found[0] if why else not found


CONVS = {
    "a kernel that sees neighbours": ("y = Conv <pads = [1, 1, 1, 1]> (r, k)", False),
    "steps": ("y = Conv <strides = [2, 2]> (r, w, c)", False),
    "something around the image": ("y = Conv <pads = [1, 0, 0, 0]> (r, w, c)", False),
    "groups": ("y = Conv <group = 2> (r, half)", False),
    "more channels than are read": ("y = Conv (r, more)", True),
    "weights that are not constant": ("v = Neg (w)  y = Conv (r, v, c)", False),
    "something else reads the Resize": ("z = Neg (r)  y = Conv (r, w, c)", True),
}


@pytest.mark.parametrize(("nodes", "told"), CONVS.values(), ids=CONVS)
def test_convolutions_that_stay_behind(nodes: str, told: bool) -> None:
    constants = weights(
        CHANNELS, 8, k=np.ones((7, CHANNELS, 3, 3), np.float32),
        half=np.ones((8, CHANNELS // 2, 1, 1), np.float32), more=np.ones((97, CHANNELS, 1, 1), np.float32),
    )  # fmt: skip
    text = f"g (float[N, {CHANNELS}, 4, 5] a) => (float[N, K, P, Q] y) {{ {resize()}  {nodes} }}"
    assert bool(misses(text, **constants)) == told
