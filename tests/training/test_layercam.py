import pytest
import torch
from torch import Tensor, nn

from tilesight.errors import DataError
from training.models.layercam import layer_cam

WEIGHTS = torch.tensor([[2.0, -3.0], [0.0, 1.0]])


class Tiny(nn.Module):
    """Two channels, red and green at half the size; a logit is a weighted sum of their squares."""

    def __init__(self) -> None:
        super().__init__()
        self.halve = nn.AvgPool2d(2)
        self.colours = nn.Conv2d(3, 2, 1, bias=False)
        self.after = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(0.5)
        self.classifier = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.colours.weight.copy_(torch.eye(3)[:2].reshape(2, 3, 1, 1))
            self.classifier.weight.copy_(WEIGHTS)

    def forward(self, tiles: Tensor) -> Tensor:
        channels = self.after(self.colours(self.halve(tiles.permute(0, 3, 1, 2).float())))
        return self.classifier(self.dropout(channels).square().sum(dim=(2, 3)))


def red_and_green(red: list[list[float]], green: list[list[float]]) -> Tensor:
    """(1, 4, 4, 3) of which the halved tile has these red and green values."""
    small = torch.tensor([red, green, [[0.0] * 2] * 2])
    return small.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2).permute(1, 2, 0)[None]


def expected(small: list[list[float]]) -> Tensor:
    """Doubled bilinearly, by hand: the weights of a place's two neighbours are 3/4 and 1/4."""
    spread = torch.tensor([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
    return spread @ torch.tensor(small, dtype=torch.float32) @ spread.T


def test_each_place_is_weighted_by_its_own_gradient() -> None:
    tiles = red_and_green([[1, 2], [0, 4]], [[0, 5], [3, 0]])
    network = Tiny()
    # d logit_0 / d red = 2 * 2 red, times red: 4 red^2; green's gradient is negative and cut.
    maps = layer_cam(network, network.colours, tiles, 0)
    torch.testing.assert_close(maps, expected([[1 / 16, 4 / 16], [0, 1]])[None])
    # Label 1 has no weight for red: d logit_1 / d green * green = 2 green^2.
    maps = layer_cam(network, network.colours, tiles, 1)
    torch.testing.assert_close(maps, expected([[0, 1], [9 / 25, 0]])[None])


def test_each_tile_has_its_own_scale_and_no_evidence_stays_none() -> None:
    tiles = torch.cat(
        [
            red_and_green([[1, 0], [0, 2]], [[0, 0], [0, 0]]),
            red_and_green([[0, 100], [0, 0]], [[0, 0], [0, 0]]),
            red_and_green([[0, 0], [0, 0]], [[7, 0], [0, 7]]),
        ]
    )
    network = Tiny()
    maps = layer_cam(network, network.colours, tiles.to(torch.uint8), 0)
    assert maps.shape == (3, 4, 4)
    torch.testing.assert_close(maps[0], expected([[1 / 4, 0], [0, 1]]))
    torch.testing.assert_close(maps[1], expected([[0, 1], [0, 0]]))
    assert maps[2].count_nonzero() == 0


def test_negative_activations_do_not_speak_for_a_label() -> None:
    network = Tiny()
    network.after = nn.Identity()  # type: ignore[assignment]
    with torch.no_grad():
        network.classifier.weight.fill_(-1)
    # d logit / d A = -2 A is positive where A is negative, and the product -2 A^2 is cut.
    tiles = red_and_green([[-1, 2], [0, 0]], [[0, 0], [0, 0]])
    assert layer_cam(network, network.colours, tiles, 0).count_nonzero() == 0


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("without_grad", [False, True])
def test_the_network_is_left_as_it_was(frozen: bool, without_grad: bool) -> None:
    network = Tiny().requires_grad_(not frozen)
    network.train()
    network.halve.eval()
    if not frozen:
        for parameter in network.parameters():
            parameter.grad = torch.full_like(parameter, 7.0)
    tiles = red_and_green([[1, 2], [0, 4]], [[0, 5], [3, 0]])
    with torch.set_grad_enabled(not without_grad):
        maps = layer_cam(network, network.colours, tiles, 0)
    # With dropout at work the map would differ from call to call.
    torch.testing.assert_close(maps, expected([[1 / 16, 4 / 16], [0, 1]])[None])
    assert not maps.requires_grad
    assert not network.colours._forward_hooks
    assert [network.training, network.halve.training, network.dropout.training] == [
        True,
        False,
        True,
    ]
    for parameter in network.parameters():
        assert parameter.requires_grad is not frozen
        assert frozen or (parameter.grad == 7).all()  # type: ignore[union-attr]


def test_the_hook_goes_when_the_network_fails() -> None:
    network = Tiny()
    network.classifier = nn.Linear(5, 2)
    with pytest.raises(RuntimeError):
        layer_cam(network, network.colours, torch.ones(1, 4, 4, 3), 0)
    assert not network.colours._forward_hooks
    assert network.training


def test_what_has_no_map_is_an_error() -> None:
    network = Tiny()
    tiles = torch.ones(1, 4, 4, 3)
    with pytest.raises(DataError, match="not one of the network's modules"):
        layer_cam(network, nn.Conv2d(3, 2, 1), tiles, 0)
    with pytest.raises(DataError, match="no logit 2"):
        layer_cam(network, network.colours, tiles, 2)
    with pytest.raises(DataError, match=r"\(B, D, H, W\)"):
        layer_cam(network, network.classifier, tiles, 0)
    with pytest.raises(DataError, match=r"not \(1, 3, 4, 4\)"):
        layer_cam(network, network.colours, tiles.permute(0, 3, 1, 2), 0)
    network.add_module("unused", nn.Conv2d(3, 2, 1))
    with pytest.raises(DataError, match="ran 0 times"):
        layer_cam(network, network.get_submodule("unused"), tiles, 0)


def test_a_layer_that_the_logit_does_not_see_is_an_error() -> None:
    class Blind(Tiny):
        def forward(self, tiles: Tensor) -> Tensor:
            return super().forward(tiles).detach()

    network = Blind()
    with pytest.raises(DataError, match="does not depend"):
        layer_cam(network, network.colours, torch.ones(1, 4, 4, 3), 0)
