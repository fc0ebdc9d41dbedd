"""The merged network trains as the original one under SGD with the factors, and not without them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_symmetry import Merged, merge_duplicates
from lightning_symmetry.merging.merge import MergeError
from tests import zoo
from tests.merging.nets import cnn, mlp, plant, plant_halves
from tests.training import assert_same

GENERATOR = torch.Generator().manual_seed(5)
INPUTS = torch.randn(16, 12, generator=GENERATOR, dtype=torch.float64)
TARGETS = torch.randn(16, 4, generator=GENERATOR, dtype=torch.float64)
Make = Callable[[Any], torch.optim.Optimizer]


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.mse_loss(net(INPUTS), TARGETS).backward()
        optimizer.step()


def scale_gradients(merged: Merged) -> None:
    parameters = dict(merged.model.named_parameters())
    for name, scale in merged.gradient_scale.items():
        parameters[name].register_hook(lambda gradient, scale=scale: gradient * scale)


def planted_mlp() -> nn.Module:
    """Locked groups of two and three units in both hidden layers, mirror images among them."""
    net = mlp(12, 9, 8, 4, activation=nn.Tanh)
    plant(net, "2", [(0, 3), (2, 5, 7)], "4")
    return plant(net, "0", [(0, 3), (1, 5, 7)], "2")


def planted_cnn() -> nn.Module:
    net = plant_halves(cnn(), equal_outgoing=True).double()
    with torch.no_grad():  # a channel is four columns here, so halves of columns are halves of channels
        assert torch.equal(zoo.linear(net, "8").weight[:, :24], zoo.linear(net, "8").weight[:, 24:])
    return net


def planted_mobilenet() -> nn.Module:
    """Residual branches and depthwise filters."""
    return plant_halves(zoo.mobilenet(), equal_outgoing=True).double()


def gap(net: nn.Module, merged: nn.Module) -> float:
    """Return the largest distance of outputs, and of weights, after merging the trained original as well."""
    net, merged = copy.deepcopy(net).eval(), copy.deepcopy(merged).eval()
    with torch.no_grad():
        distances = [float((net(INPUTS) - merged(INPUTS)).abs().max())]
    again = merge_duplicates(net, INPUTS).model.state_dict()
    for name, tensor in merged.state_dict().items():
        if tensor.shape != again[name].shape:
            return float("inf")
        distances.append(float((tensor - again[name]).abs().max()))
    return max(distances)


PLAIN: Make = lambda parameters: torch.optim.SGD(parameters, lr=0.05)  # noqa: E731
FULL: Make = lambda parameters: torch.optim.SGD(parameters, lr=0.02, momentum=0.9, weight_decay=0.01)  # noqa: E731
NESTEROV: Make = lambda parameters: torch.optim.SGD(parameters, lr=0.02, momentum=0.9, nesterov=True)  # noqa: E731
ADAM: Make = lambda parameters: torch.optim.Adam(parameters, lr=0.01)  # noqa: E731


@pytest.mark.parametrize("make", [PLAIN, FULL, NESTEROV], ids=["plain", "momentum and weight decay", "Nesterov"])
@pytest.mark.parametrize("planted", [planted_mlp, planted_cnn])
def test_sgd_goes_on_as_before_with_the_factors(planted: Callable[[], nn.Module], make: Make) -> None:
    net = planted()
    merged = merge_duplicates(net, INPUTS)
    assert merged.removed
    scale_gradients(merged)
    train(net, make(net.parameters()), 100)
    train(merged.model, make(merged.model.parameters()), 100)
    assert gap(net, merged.model) <= 1e-9


def test_expanded_weights_are_those_of_the_original() -> None:
    net = planted_mlp()
    merged = merge_duplicates(net, INPUTS)
    scale_gradients(merged)
    start = [parameter.detach().clone() for parameter in net.parameters()]
    train(net, FULL(net.parameters()), 100)
    train(merged.model, FULL(merged.model.parameters()), 100)
    assert any(float((a - b.detach()).abs().max()) > 0.1 for a, b in zip(start, net.parameters(), strict=True))
    homes = {"0": [0, 1, 2, 0, 3, 1, 4, 1, 5], "2": [0, 1, 2, 0, 3, 2, 4, 2]}  # the merged unit of each unit
    sizes = {name: torch.bincount(torch.tensor(home)) for name, home in homes.items()}
    first, second, third = (zoo.linear(merged.model, name) for name in ("0", "2", "4"))
    torch.testing.assert_close(first.weight[homes["0"]], zoo.linear(net, "0").weight, rtol=0, atol=1e-9)
    torch.testing.assert_close(first.bias[homes["0"]], zoo.linear(net, "0").bias, rtol=0, atol=1e-9)
    spread = (second.weight / sizes["0"])[homes["2"]][:, homes["0"]]
    torch.testing.assert_close(spread, zoo.linear(net, "2").weight, rtol=0, atol=1e-9)
    spread = (third.weight / sizes["2"])[:, homes["2"]]
    torch.testing.assert_close(spread, zoo.linear(net, "4").weight, rtol=0, atol=1e-9)


def test_mirror_images_go_on_as_before_too() -> None:
    net = zoo.mirrored(mlp(12, 8, 4, activation=nn.Tanh), "0", "2")
    net(INPUTS).square().sum().backward()
    merged = merge_duplicates(net, INPUTS)
    assert merged.removed == {"0": (4, 5, 6, 7)}
    scale_gradients(merged)
    train(net, FULL(net.parameters()), 100)
    train(merged.model, FULL(merged.model.parameters()), 100)
    with torch.no_grad():
        torch.testing.assert_close(merged.model(INPUTS), net(INPUTS), rtol=0, atol=1e-9)


def test_without_the_factors_it_does_not() -> None:
    net = planted_mlp()
    merged = merge_duplicates(net, INPUTS)
    train(net, PLAIN(net.parameters()), 100)
    train(merged.model, PLAIN(merged.model.parameters()), 100)
    assert gap(net, merged.model) > 1e-3


def test_units_with_different_outgoing_weights_part_and_the_merged_network_cannot_follow() -> None:
    net = plant(mlp(12, 8, 4, activation=nn.Tanh), "0", [(0, 3), (1, 5, 7)])
    merged = merge_duplicates(net, INPUTS)
    scale_gradients(merged)
    train(net, PLAIN(net.parameters()), 100)
    train(merged.model, PLAIN(merged.model.parameters()), 100)
    with torch.no_grad():
        assert float((net(INPUTS) - merged.model(INPUTS)).abs().max()) > 1e-3


@pytest.mark.parametrize("with_factors", [False, True])
def test_adam_goes_another_way(with_factors: bool) -> None:
    net = planted_mlp()
    merged = merge_duplicates(net, INPUTS)
    if with_factors:
        scale_gradients(merged)
    train(net, ADAM(net.parameters()), 100)
    train(merged.model, ADAM(merged.model.parameters()), 100)
    with torch.no_grad():
        assert float((net(INPUTS) - merged.model(INPUTS)).abs().max()) > 1e-3


def test_adam_needs_a_larger_learning_rate_for_outgoing_weights_and_no_factor() -> None:
    net = mlp(12, 8, 6, 4, activation=nn.Tanh)
    plant(net, "2", [(0, 3), (1, 4), (2, 5)], "4")
    plant(net, "0", [(0, 4), (1, 5), (2, 6), (3, 7)], "2")
    merged = merge_duplicates(net, INPUTS)
    # Every column stands for two. Rows of the second layer are also merged, which Adam does not see.
    groups = [
        {"params": [parameter], "lr": 0.01 * (2 if name in ("2.weight", "4.weight") else 1)}
        for name, parameter in merged.model.named_parameters()
    ]
    train(net, torch.optim.Adam(net.parameters(), lr=0.01, eps=1e-30), 100)
    train(merged.model, torch.optim.Adam(groups, eps=1e-30), 100)
    assert gap(net, merged.model) <= 1e-9


# ----------------------------------------------------------------- the optimizer carried on


@pytest.mark.parametrize("planted", [planted_mlp, planted_cnn, planted_mobilenet])
def test_sgd_goes_on_in_the_middle(planted: Callable[[], nn.Module]) -> None:
    net = planted()
    optimizer = FULL(net.parameters())
    train(net, optimizer, 50)
    merged = merge_duplicates(net, INPUTS, optimizer=optimizer)
    assert merged.removed
    assert merged.optimizer is not None
    scale_gradients(merged)
    train(net, optimizer, 50)
    train(merged.model, merged.optimizer, 50)
    assert gap(net, merged.model) <= 1e-9


@pytest.mark.parametrize("amsgrad", [False, True])
def test_a_step_of_adam_moves_the_merged_column_as_one_of_the_columns(amsgrad: bool) -> None:
    net = planted_mlp()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.0, amsgrad=amsgrad, eps=1e-30)
    train(net, optimizer, 20)
    merged = merge_duplicates(net, INPUTS, optimizer=optimizer)
    assert merged.optimizer is not None
    scale_gradients(merged)
    before, merged_before = columns(net), columns(merged.model)
    train(net, optimizer, 1)
    train(merged.model, merged.optimizer, 1)
    kept = [0, 1, 2, 4, 6, 8]
    torch.testing.assert_close(
        zoo.linear(merged.model, "0").weight, zoo.linear(net, "0").weight[kept], rtol=0, atol=1e-10
    )
    rows = [0, 1, 2, 4, 6]
    moved = (columns(net) - before)[rows][:, kept]
    torch.testing.assert_close(columns(merged.model) - merged_before, moved, rtol=0, atol=1e-10)


def columns(net: nn.Module) -> Tensor:
    weight: Tensor = zoo.linear(net, "2").weight.detach().clone()
    return weight


def test_settings_and_counts_of_steps_stay() -> None:
    net = planted_mlp()
    groups: list[dict[str, Any]] = [
        {"params": [*net.get_submodule("0").parameters()], "lr": 0.5},
        {"params": [*net.get_submodule("4").parameters()]},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.9))
    train(net, optimizer, 3)
    before = copy.deepcopy(optimizer.state_dict())
    carried = merge_duplicates(net, INPUTS, optimizer=optimizer).optimizer
    assert type(carried) is torch.optim.AdamW
    assert_same(optimizer.state_dict(), before)
    assert [group["lr"] for group in carried.param_groups] == [0.5, 0.01]
    assert [len(group["params"]) for group in carried.param_groups] == [2, 2]
    assert carried.param_groups[0]["betas"] == (0.8, 0.9)
    assert {float(state["step"]) for state in carried.state.values()} == {3.0}
    shapes = [(parameter.shape, state["exp_avg_sq"].shape) for parameter, state in carried.state.items()]
    assert all(a == b for a, b in shapes)


@pytest.mark.parametrize(
    "make",
    [
        torch.optim.RMSprop,
        torch.optim.Adagrad,
        torch.optim.NAdam,
        torch.optim.RAdam,
        torch.optim.ASGD,
        torch.optim.SGD,
    ],
)
def test_other_optimizers_can_step_on(make: type[torch.optim.Optimizer]) -> None:
    net = planted_mlp()
    options: dict[str, Any] = {"lr": 0.001}
    optimizer = make(net.parameters(), **options)
    train(net, optimizer, 2)
    merged = merge_duplicates(net, INPUTS, optimizer=optimizer)
    assert merged.optimizer is not None
    train(merged.model, merged.optimizer, 2)


@pytest.mark.parametrize("make", [torch.optim.Rprop, torch.optim.Adadelta, torch.optim.LBFGS])
def test_a_state_that_cannot_be_carried_over_is_refused(make: type[torch.optim.Optimizer]) -> None:
    net = planted_mlp()
    options: dict[str, Any] = {"lr": 0.01}
    optimizer = make(net.parameters(), **options)
    if make is not torch.optim.LBFGS:
        train(net, optimizer, 2)
    with pytest.raises(MergeError, match="merge without `optimizer`"):
        merge_duplicates(net, INPUTS, optimizer=optimizer)
