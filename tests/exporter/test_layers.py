"""Which layers are alike, and which are not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from burnish.exporter.alike import alike, same
from burnish.exporter.layers import Stack, find_stacks, shortened

pytestmark = pytest.mark.torch

SMALL: dict[str, Any] = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 6,
    "num_attention_heads": 2,
}  # fmt: skip
GROUPED = SMALL | {"num_key_value_heads": 1, "head_dim": 8}


class Layer(nn.Module):
    def __init__(self, place: int) -> None:
        super().__init__()
        self.place = place
        self.settings: dict[str, Any] = {"scales": [1.0, float("nan")], "name": "layer"}
        self.linear = nn.Linear(4, 4)
        self.register_buffer("shift", torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + self.shift


class Net(nn.Module):
    """Six layers; `change` is done to it in the end."""

    def __init__(self, change: Callable[[Any], object] = lambda _: None, count: int = 6) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(place) for place in range(count))
        change(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def test_layers_that_differ_in_their_weights_and_their_number() -> None:
    assert find_stacks(Net()) == (Stack("layers", 6, 3),)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda net: setattr(net.layers[0].linear, "in_features", 5), (Stack("layers", 6, 4),)),
        (lambda net: setattr(net.layers[2].linear, "in_features", 5), ()),
        (lambda net: setattr(net.layers[5], "place", 7), ()),
        (lambda net: setattr(net.layers[5], "extra", None), ()),
        (lambda net: net.layers[3].settings.update(name="other"), ()),
        (lambda net: net.layers[3].settings.update(scales=[1.0, 2.0]), ()),
        (lambda net: net.layers[3].linear.register_forward_hook(print), ()),
        (lambda net: net.layers[3].linear.register_forward_pre_hook(lambda *_: None), ()),
        (lambda net: net.layers[3].train(not net.training), ()),
        (lambda net: setattr(net.layers[3].linear, "forward", net.layers[3].linear.forward), ()),
        (lambda net: setattr(net.layers[3], "linear", nn.Linear(4, 4, bias=False)), ()),
        (lambda net: net.layers[3].double(), ()),
        (lambda net: nn.utils.parametrizations.weight_norm(net.layers[3].linear), ()),
        (lambda net: setattr(net.layers[3].linear, "weight", net.layers[4].linear.weight), ()),
        (lambda net: setattr(net, "head", net.layers[3].linear), ()),
        (lambda net: setattr(net.layers[3].linear.weight, "data", net.layers[1].linear.weight.data), ()),
        (lambda net: setattr(net, "kinds", ["a", "b"] * 3), ()),
        (lambda net: setattr(net, "kinds", ["first"] + ["other"] * 5), ()),
        (lambda net: setattr(net, "kinds", ["a"] * 6), (Stack("layers", 6, 3),)),
        (lambda net: setattr(net, "layers", net.layers[:4]), ()),
        (lambda net: net.layers.insert(2, nn.Identity()), ()),
        (lambda net: setattr(net, "again", nn.Sequential(*(Layer(0) for _ in range(5)))),
         (Stack("layers", 6, 3), Stack("again", 5, 3))),
    ],
)  # fmt: skip
def test_what_makes_layers_unlike(change: Callable[[Any], object], found: tuple[Stack, ...]) -> None:
    assert find_stacks(Net(change)) == found


def test_hooks_of_one_kind_make_no_difference() -> None:
    def hook_on_each(net: Any) -> None:
        for layer in net.layers:
            layer.register_forward_hook(lambda *_: None)

    assert find_stacks(Net(hook_on_each)) == (Stack("layers", 6, 3),)


@pytest.mark.parametrize("name", ["Gemma2", "Gemma3"])
def test_layers_of_kinds_that_take_turns_are_left_alone(name: str) -> None:
    kind = {"Gemma2": "Gemma2Config", "Gemma3": "Gemma3TextConfig"}[name]
    config = getattr(transformers, kind)(**GROUPED)
    assert find_stacks(getattr(transformers, f"{name}ForCausalLM")(config)) == ()


def test_what_a_configuration_lists_for_each_layer() -> None:
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**GROUPED))
    assert find_stacks(model) == (Stack("model.layers", 6, 3),)
    model.config.layer_types = ["full_attention"] * 6
    assert find_stacks(model) == (Stack("model.layers", 6, 3),)
    model.config.layer_types = ["full_attention", "sliding_attention"] * 3
    assert find_stacks(model) == ()


def test_the_twin_has_fewer_layers_and_the_model_all() -> None:
    net = Net()
    layers = list(net.layers)
    twin = shortened(net, find_stacks(net))
    assert len(twin.layers) == 3
    assert all(one is other for one, other in zip(twin.layers, net.layers, strict=False))
    assert [id(each) for each in net.layers] == [id(each) for each in layers]
    x = torch.randn(2, 4)
    assert torch.equal(twin(x), layers[2](layers[1](layers[0](x))))


def test_two_stacks_in_one_module_share_its_twin() -> None:
    net = nn.Module()
    net.both = Net()
    net.both.others = nn.ModuleList(Layer(place) for place in range(5))
    twin = shortened(net, find_stacks(net))
    assert (len(twin.both.layers), len(twin.both.others)) == (3, 3)
    assert (len(net.both.layers), len(net.both.others)) == (6, 5)


def test_what_is_not_understood_is_not_alike() -> None:
    generator, other = torch.Generator(), torch.Generator()
    assert same(generator, generator)
    assert not same(generator, other)
    assert not same(lambda x: x, lambda x: x)
    assert not alike(nn.Sequential(nn.Linear(2, 2)), nn.Sequential(), (0, 1))
    assert same({"a": (1, [torch.zeros(2)])}, {"a": (1, [torch.zeros(2)])})
    assert not same({"a": (1, [torch.zeros(2)])}, {"a": (1, [torch.ones(2)])})
    assert not same(1, True)
    assert not same(1, 1.0)
