"""Layers are called alike: in order, with the same or the result before, and they do the same."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from burnish.exporter.calls import need_called_alike
from burnish.exporter.layer_nodes import UnlikeError
from burnish.exporter.layers import Stack

pytestmark = pytest.mark.torch

STACK = Stack("layers", 8, 3)


class Layer(nn.Module):
    def __init__(self, place: int, inside: Callable[[int, Any, Any], Any]) -> None:
        super().__init__()
        self.place, self.inside = place, inside
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Any, mask: Any, **more: Any) -> Any:
        return self.inside(self.place, self.linear(x), mask)


def masked(_place: int, x: Any, mask: Any) -> Any:
    return torch.where(mask, x, 0.0)


class Net(nn.Module):
    def __init__(self, walk: Callable[[Any, Any, Any], Any], inside: Callable[..., Any] = masked) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(place, inside) for place in range(8))
        self.walk = walk

    def forward(self, x: Any, mask: Any) -> Any:
        return self.walk(self, x, mask)


def check(net: Net) -> None:
    x, mask = torch.randn(2, 4), torch.ones(2, 4, dtype=torch.bool)
    hooks = [len(layer._forward_hooks) + len(layer._forward_pre_hooks) for layer in net.layers]
    try:
        need_called_alike(net, [STACK], lambda: net(x, mask))
    finally:
        assert hooks == [len(each._forward_hooks) + len(each._forward_pre_hooks) for each in net.layers]


def plainly(net: Any, x: Any, mask: Any) -> Any:
    for number, layer in enumerate(net.layers):
        x = layer(x, mask=mask, number=number, flag=False, scale=float("nan"))
    return x


def mask_for_every_fourth(net: Any, x: Any, mask: Any) -> Any:
    """At this size both masks are the same: no comparison of results would tell."""
    local = mask.clone()
    for number, layer in enumerate(net.layers):
        x = layer(x, local if number % 4 == 3 else mask)
    return x


def code_after_one(net: Any, x: Any, mask: Any) -> Any:
    for number, layer in enumerate(net.layers):
        x = layer(x, mask)
        x = x * 1.0 if number == 5 else x
    return x


def another_number(net: Any, x: Any, mask: Any) -> Any:
    for number, layer in enumerate(net.layers):
        x = layer(x, mask, number=min(number, 6))
    return x


def one_argument_more(net: Any, x: Any, mask: Any) -> Any:
    for number, layer in enumerate(net.layers):
        x = layer(x, mask, **({"last": True} if number == 7 else {}))
    return x


def from_two_layers_before(net: Any, x: Any, mask: Any) -> Any:
    found = [x, x]
    for layer in net.layers:
        found.append(layer(found[-2], mask))
    return found[-1]


def one_left_out(net: Any, x: Any, mask: Any) -> Any:
    for layer in net.layers[:-1]:
        x = layer(x, mask)
    return x


def one_twice(net: Any, x: Any, mask: Any) -> Any:
    return net.layers[7](plainly(net, x, mask), mask)


def test_a_plain_loop() -> None:
    check(Net(plainly))


def test_layers_that_are_not_called() -> None:
    check(Net(lambda _net, x, _mask: x))


@pytest.mark.parametrize(
    ("walk", "why"),
    [(mask_for_every_fourth, "given .1 in different ways"), (code_after_one, "given .0 in different ways"),
     (another_number, "given .number in different ways"), (one_argument_more, "takes or returns"),
     (from_two_layers_before, "given .0 in different ways"), (one_left_out, "not called once each"),
     (one_twice, "not called once each")],
)  # fmt: skip
def test_ways_to_call_that_differ(walk: Callable[[Any, Any, Any], Any], why: str) -> None:
    with pytest.raises(UnlikeError, match=why):
        check(Net(walk))


def a_window_in_every_fourth(place: int, x: Any, mask: Any) -> Any:
    """Longer than the example: no comparison of results would tell."""
    return masked(place, x[:, -1000:] if place % 4 == 3 else x, mask)


def another_constant_in_one(place: int, x: Any, mask: Any) -> Any:
    return masked(place, x, mask).clamp(max=1e6 if place == 6 else 1e7)


@pytest.mark.parametrize("inside", [a_window_in_every_fourth, another_constant_in_one])
def test_layers_that_do_different_things(inside: Callable[..., Any]) -> None:
    with pytest.raises(UnlikeError, match="does something else"):
        check(Net(plainly, inside))


def test_what_follows_a_size_that_depends_on_values_is_not_compared() -> None:
    def chosen(_place: int, x: Any, _mask: Any) -> Any:
        rows = (x[:, 0] > 0).nonzero()[:, 0].tolist()
        for row in rows:
            x = x + row
        return x

    torch.manual_seed(0)
    check(Net(plainly, chosen))
