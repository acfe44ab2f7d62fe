import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models.feature_extraction import create_feature_extractor

from tests.training.test_config import tiny_config
from tilesight.errors import WeightsError
from training.config import MODEL_NAMES, ModelName
from training.fit import make_task
from training.losses import dynamic_contrast_loss
from training.models.backbone import (
    ARCHITECTURES,
    STAGES,
    Architecture,
    Backbone,
    Stage,
    load_base_weights,
    stage_channels,
    weight_names,
)
from training.models.jtts import BeamSearch, Jtts, JttsConfig, Scene, sample_attributes
from training.models.label_graph import GNNS, Gnn, LabelBranch, LabelGraph, label_graph
from training.models.rivals import LabelClassifier, reweighted
from training.models.signa import (
    METHODS,
    ChannelHead,
    FullChannelHead,
    Method,
    Signa,
    SignaAttention,
    SignaConfig,
)
from training.models.spatialnet_vit import (
    HybridPatches,
    LinearPatches,
    SpatialNetVit,
    SpatialNetVitConfig,
    TileEncoder,
)
from training.sentences import BOS, EOS, PAD, UNK
from training.tasks.base import Task

SIDE = 64
pytestmark = [
    # Lightning's own call of a torch name that is going away
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),
    # tiles are in memory, workers would only copy them
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def tiles(count: int, side: int = SIDE) -> Tensor:
    return torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8)


def graph_of(*pairs: tuple[int, int]) -> LabelGraph:
    edges = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T.contiguous()
    return LabelGraph(edges, torch.linspace(0.5, 1, len(pairs)))


# MobileNetV2


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("stage", STAGES)
def test_a_backbone_ends_with_the_channels_and_stride_of_its_stage(
    stage: Stage, architecture: Architecture
) -> None:
    backbone = Backbone(stage, architecture).eval()
    side, channels = 64 // backbone.stride, stage_channels(architecture, stage)
    with torch.no_grad():
        assert backbone(torch.zeros(2, 3, 64, 64)).shape == (2, channels, side, side)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_backbone_computes_what_torchvision_does_with_the_same_weights(
    architecture: Architecture,
) -> None:
    whole = get_model(architecture, weights=None).eval()
    backbone = Backbone("layer4", architecture).eval()
    backbone.load_features(whole.state_dict(), "test")
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        if architecture.startswith("resnet"):
            expected = create_feature_extractor(whole, ["layer4"])(images)["layer4"]
        else:
            expected = whole.features(images)
        torch.testing.assert_close(backbone(images), expected)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_by_name_are_those_with_the_statistics_of_imagenet(
    architecture: Architecture,
) -> None:
    names = weight_names(architecture)
    assert "IMAGENET1K_V1" in names
    assert "IMAGENET1K_FEATURES" not in names  # of VGG16: no division by the deviations


def test_weights_of_another_backbone_are_refused() -> None:
    state = get_model("resnet18", weights=None).state_dict()
    with pytest.raises(WeightsError, match=r"mobilenet_v2 are needed"):
        Backbone().load_features(state, "test")


def base_weights() -> dict[str, Tensor]:
    """Weights under torchvision's names, as the data folder's file has them."""
    state = Backbone().state_dict()
    named = {f"features.{name.split('.', 1)[1]}": tensor for name, tensor in state.items()}
    assert len(named) == len(state)
    return {**named, "classifier.1.weight": torch.zeros(1000, 1280)}


def test_base_weights_reach_every_tensor_of_the_backbone(tmp_path: Path) -> None:
    state = base_weights()
    save_file(state, tmp_path / "base.safetensors")
    backbone = Backbone()
    load_base_weights(backbone, str(tmp_path / "base.safetensors"))
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, state[f"features.{name.split('.', 1)[1]}"]), name


def test_a_shorter_backbone_takes_its_share_of_the_weights(tmp_path: Path) -> None:
    state = base_weights()
    counts = [name for name in state if name.endswith("num_batches_tracked")]
    save_file({n: t for n, t in state.items() if n not in counts}, tmp_path / "base.safetensors")
    backbone = Backbone("layer2")
    load_base_weights(backbone, str(tmp_path / "base.safetensors"))
    assert torch.equal(backbone.state_dict()["layer1.0.0.weight"], state["features.0.0.weight"])


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    state = base_weights()
    del state["features.5.conv.1.0.weight"]
    save_file(state, tmp_path / "base.safetensors")
    with pytest.raises(WeightsError, match=r"base.*features\.5\.conv\.1\.0\.weight is missing"):
        load_base_weights(Backbone(), str(tmp_path / "base.safetensors"))


def test_a_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    state = base_weights()
    state["features.18.1.bias"] = torch.zeros(640)
    save_file(state, tmp_path / "base.safetensors")
    with pytest.raises(WeightsError, match=r"features\.18\.1\.bias .*\(640,\).*\(1280,\)"):
        load_base_weights(Backbone(), str(tmp_path / "base.safetensors"))


def test_weights_that_do_not_fit_leave_the_backbone_as_it_was(tmp_path: Path) -> None:
    state = base_weights()
    del state["features.18.1.bias"]  # among the last
    save_file(state, tmp_path / "base.safetensors")
    backbone = Backbone()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    with pytest.raises(WeightsError):
        load_base_weights(backbone, str(tmp_path / "base.safetensors"))
    assert all(torch.equal(tensor, before[n]) for n, tensor in backbone.state_dict().items())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("absent.safetensors", "no such file"),
        ("folder", "no such file"),
        ("garbage.safetensors", "not a safetensors file"),
        ("IMAGENET1K_V9", "neither a file nor one of IMAGENET1K_V1"),
    ],
)
def test_what_is_no_weights_file_is_told(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "garbage.safetensors").write_bytes(b"this is no weights file at all" * 9)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=f"--weights {name}: {said}"):
        load_base_weights(Backbone(), name)


# SIGNA


def test_the_label_graph_of_a_matrix_made_by_hand() -> None:
    labels = torch.tensor(
        [
            [1, 1, 0, 0],
            [1, 0, 0, 0],
            [1, 0, 0, 0],
            [1, 0, 0, 0],
            [0, 0, 1, 0],  # label 2 is always alone; label 3 is never seen
        ],
        dtype=torch.float32,
    )
    # P(0 given 1) = 1, P(1 given 0) = 1 / 4
    assert label_graph(labels, 0.4).edges.tolist() == [[1], [0]]
    assert label_graph(labels, 0.25).edges.tolist() == [[0, 1], [1, 0]]
    assert label_graph(labels, 0.25).weights.tolist() == [0.25, 1]
    assert label_graph(labels[2:], 0.4).edges.shape == (2, 0)


def test_no_label_is_its_own_neighbour() -> None:
    labels = (torch.rand(40, 6) < 0.7).float()
    sources, targets = label_graph(labels, 0.1).edges
    assert len(sources) > 10
    assert not (sources == targets).any()


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("gnn", GNNS)
def test_a_label_hears_of_those_that_point_to_it_and_an_isolated_one_of_itself(
    gnn: Gnn, layers: int
) -> None:
    branch = LabelBranch(8, 6, gnn, layers)
    graph = graph_of((1, 0))  # label 2 is isolated
    vectors = torch.randn(3, 8)
    features = branch(vectors, graph)
    for changed, heard_by in ((0, [0]), (1, [0, 1]), (2, [2])):
        other = vectors.clone()
        other[changed] += 1
        differs = (branch(other, graph) != features).any(dim=1)
        assert differs.nonzero().flatten().tolist() == heard_by
    assert features[2].abs().sum() > 0


@pytest.mark.parametrize("gnn", GNNS)
def test_a_graph_without_edges_still_gives_features(gnn: Gnn) -> None:
    features = LabelBranch(8, 6, gnn)(torch.randn(3, 8), graph_of())
    assert features.shape == (3, 6)
    assert (features.abs().sum(dim=1) > 0).all()


def test_a_gcn_weighs_its_edges() -> None:
    branch, vectors = LabelBranch(8, 6, "gcn"), torch.randn(3, 8)
    graph = graph_of((1, 0))
    heavier = graph._replace(weights=graph.weights * 2)
    assert not torch.equal(branch(vectors, graph)[0], branch(vectors, heavier)[0])


def test_the_rows_of_the_interleaving_matrix_sum_to_one() -> None:
    head = ChannelHead(labels=5)
    nn.init.zeros_(head.value.weight)
    nn.init.ones_(head.value.bias)  # Z_v is all ones, so Z_w is the sums of the rows
    weights = head(torch.randn(2, 7) * 3, torch.randn(5, 7))
    torch.testing.assert_close(weights, torch.ones(2, 7))


def test_the_full_head_is_equation_5() -> None:
    head = FullChannelHead(labels=5, channels=7, scale=2.0)
    squeezed, label_features = torch.randn(2, 7), torch.randn(5, 7)
    z_s = (squeezed @ head.interleave.weight.T + head.interleave.bias).reshape(2, 7, 5)
    z_v = squeezed @ head.value.weight.T + head.value.bias
    attention = torch.softmax(2 * torch.einsum("bdc,ce->bde", z_s, label_features), dim=-1)
    expected = torch.einsum("bde,be->bd", attention, z_v)
    torch.testing.assert_close(head(squeezed, label_features), expected)


def test_the_matrix_of_ml_gcn_made_by_hand() -> None:
    # 0 -> 1 and 2 -> 1: label 1 hears of both; the neighbours share a quarter.
    heard = reweighted(graph_of((0, 1), (2, 1)), 3)
    apart = torch.tensor([[1.0, 0, 0], [0.125, 1, 0.125], [0, 0, 1]])
    degrees = torch.tensor([1.125, 1, 1.125])  # the rows of the matrix that says who is heard
    expected = apart / degrees.sqrt()[:, None] / degrees.sqrt()[None, :]
    torch.testing.assert_close(heard, expected)


@pytest.fixture
def signa() -> Signa:
    config = SignaConfig(heads=2, label_vector_width=8)
    return Signa(5, graph_of((0, 1), (3, 1), (1, 4)), config).eval()


@torch.no_grad()
def test_folding_the_label_branch_changes_nothing(signa: Signa) -> None:
    attention = signa.attention
    assert isinstance(attention, SignaAttention)
    features = torch.rand(2, 32, 8, 8) * 3
    before = attention(features)
    attention.fold()
    assert torch.equal(attention(features), before)
    attention.vectors.values.add_(1)
    assert torch.equal(attention(features), before), "the branch still runs"
    attention.constant = None
    assert not torch.equal(attention(features), before), "the branch does not matter here"


def test_the_folded_branch_is_no_part_of_a_checkpoint(signa: Signa) -> None:
    names = set(signa.state_dict())
    signa.fold()
    assert set(signa.state_dict()) == names


def test_the_mean_of_the_evidence_and_the_bias_are_the_logit(signa: Signa) -> None:
    shown = tiles(2)
    with torch.no_grad():
        evidence = signa.evidence(signa.features(shown))
        logits = signa(shown)
    assert evidence.shape == (2, 5, SIDE // 32, SIDE // 32)
    torch.testing.assert_close(evidence.mean(dim=(2, 3)) + signa.classifier.bias, logits)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_learns_from_the_labels_alone_what_it_should(method: Method) -> None:
    config = SignaConfig(method=method, heads=1, label_vector_width=4)
    network = Signa(3, graph_of((0, 1)), config).eval()
    assert (network.vectors is not None) == (method in ("signa", "ml_gcn"))
    with torch.no_grad():
        shown = tiles(2)
        before = network(shown)
        network.fold()
        torch.testing.assert_close(network(shown), before)
        assert network.evidence(network.features(shown)).shape == (2, 3, 2, 2)
    assert not any(isinstance(module, LabelClassifier) for module in network.modules())


def test_vectors_of_a_file_are_not_learned() -> None:
    learned = Signa(3, graph_of((0, 1)), SignaConfig(heads=1, label_vector_width=4))
    fixed = SignaConfig(heads=1, label_vector_width=4, label_vectors="file")
    names = {name for name, _ in learned.named_parameters()}
    kept = {name for name, _ in Signa(3, graph_of((0, 1)), fixed).named_parameters()}
    assert names - kept == {"attention.vectors.values"}


def test_a_gate_bounds_the_weights() -> None:
    config = SignaConfig(heads=1, label_vector_width=4, gate="sigmoid")
    attention = Signa(3, graph_of((0, 1)), config).attention
    features = torch.rand(1, 32, 4, 4) * 1e3
    with torch.no_grad():
        weights = attention(features) / features - 1
    assert float(weights.min()) >= 0
    assert float(weights.max()) <= 1 + 1e-3


@pytest.mark.parametrize("stage", STAGES)
def test_signa_can_be_plugged_in_after_each_stage(stage: Stage) -> None:
    config = SignaConfig(stage=stage, heads=1, label_vector_width=4)
    network = Signa(3, graph_of((0, 1)), config).eval()
    with torch.no_grad():
        assert network(tiles(1, 32)).shape == (1, 3)


# JTTS


def test_the_sampling_operator_is_a_step_whose_gradient_is_itself() -> None:
    probs = torch.tensor([[0.9, 0.85, 0.75, 0.1], [0.2, 0.3, 0.05, 0.21]], requires_grad=True)
    rate, width = 100.0, 0.1
    mask = torch.sigmoid(rate * (probs - probs.amax(dim=1, keepdim=True) + width)).detach()
    sampled = sample_attributes(probs, rate, width)
    torch.testing.assert_close(sampled, mask)
    assert (sampled > 0.5).tolist() == [[True, True, False, False], [False, True, False, True]]
    weights = torch.randn(2, 4)
    (gradient,) = torch.autograd.grad((sampled * weights).sum(), probs)
    torch.testing.assert_close(gradient, mask * weights)  # equation 14


def contrast(*probs: float, truth: Sequence[float] = (1, 1, 0, 0)) -> float:
    return float(dynamic_contrast_loss(torch.tensor([probs]), torch.tensor([truth]), margin=0.2))


def test_the_contrast_loss_falls_with_the_positives_and_rises_with_the_hardest_negative() -> None:
    assert contrast(0.5, 0.7, 0.55, 0.1) == pytest.approx(0.55 - 0.6 + 0.2)
    assert contrast(0.6, 0.7, 0.55, 0.1) < contrast(0.5, 0.7, 0.55, 0.1)
    assert contrast(0.5, 0.7, 0.6, 0.1) > contrast(0.5, 0.7, 0.55, 0.1)
    assert contrast(0.5, 0.7, 0.55, 0.5) == contrast(0.5, 0.7, 0.55, 0.1)  # not the hardest
    assert contrast(0.9, 0.9, 0.6, 0.6) == 0  # the margin is kept


def test_a_tile_without_positives_costs_no_contrast() -> None:
    assert contrast(0.9, 0.9, 0.9, 0.9, truth=(0, 0, 0, 0)) == 0
    probs = torch.tensor([[0.5, 0.5], [0.9, 0.9]], requires_grad=True)
    loss = dynamic_contrast_loss(probs, torch.tensor([[1.0, 0.0], [0.0, 0.0]]), margin=0.2)
    assert float(loss.detach()) == pytest.approx(0.1)  # the mean over both tiles
    (gradient,) = torch.autograd.grad(loss, probs)
    assert gradient[0, 0] < 0 < gradient[0, 1]
    assert not gradient[1].any()


WORDS = 12
LANES = 5


@pytest.fixture
def jtts() -> Jtts:
    """A speaker of sharp opinions, so that sentences end at different lengths."""
    config = JttsConfig(hidden=16, embedding=8, max_length=9, max_beams=LANES)
    network = Jtts(WORDS, 6, config).eval()
    with torch.no_grad():
        network.decoder.output.weight.mul_(3)
        network.decoder.embed.weight[PAD + 1 :].mul_(3)
        for lstm in (network.decoder.attention_lstm, network.decoder.language_lstm):
            for weights in lstm.parameters():
                weights.mul_(4)
    return network


def random_scene(network: Jtts, count: int) -> Scene:
    hidden, embedding = network.config.hidden, network.config.embedding
    regions = torch.randn(count, 4, hidden)
    keys = network.decoder.attend.of_region(regions)
    return Scene(regions, keys, regions.mean(dim=1), torch.randn(count, embedding))


def reference_beam_search(network: Jtts, scene: Scene, width: int) -> list[tuple[list[int], float]]:
    """The sentences of a scene of one tile with their scores, best mean first, in plain Python."""
    allowed = [EOS, *range(UNK + 1, WORDS)]
    hypotheses = [([], 0.0, network.decoder.start(scene))]
    for _ in range(network.config.max_length):
        candidates = []
        for said, score, state in hypotheses:
            if said and said[-1] == EOS:
                candidates.append((said, score, state))
                continue
            word = torch.tensor([said[-1] if said else BOS])
            logits, after = network.decoder(word, state, scene)
            log_probs = logits[0].log_softmax(dim=0).tolist()
            candidates += [([*said, w], score + log_probs[w], after) for w in allowed]
        hypotheses = sorted(candidates, key=lambda candidate: -candidate[1])[:width]
    ranked = sorted(hypotheses, key=lambda found: -found[1] / len(found[0]))
    return [(said, score) for said, score, _ in ranked]


def part(scene: Scene, row: int) -> Scene:
    fields = (scene.regions, scene.keys, scene.mean, scene.semantics)
    return Scene(*(field[row : row + 1] for field in fields))


@torch.no_grad()
def test_each_width_in_one_batch_finds_what_a_plain_beam_search_finds(jtts: Jtts) -> None:
    widths = (1, 3, LANES)
    scene = random_scene(jtts, 6).repeat(len(widths))  # each tile is asked with each width
    beams = torch.tensor(widths * 6).unsqueeze(1)
    tokens, log_probs = BeamSearch(jtts).search(scene, beams)
    assert tokens.shape == (18, LANES, jtts.config.max_length)
    for row, width in enumerate(beams.flatten().tolist()):
        for lane, (said, score) in enumerate(reference_beam_search(jtts, part(scene, row), width)):
            found = tokens[row, lane].tolist()
            assert found == said + [PAD] * (len(found) - len(said)), (row, width, lane)
            assert float(log_probs[row, lane]) == pytest.approx(score, abs=1e-4)
        assert (log_probs[row, width:] == -torch.inf).all()
    # What shows that the search was tried: sentences of many lengths, and beams that pay.
    assert len((tokens != PAD).sum(dim=2).unique()) > 3
    assert (log_probs[1::3, 0] > log_probs[0::3, 0] + 1e-3).any()


@torch.no_grad()
def test_width_one_takes_the_most_probable_word_at_each_place(jtts: Jtts) -> None:
    shown = tiles(3)
    tokens = BeamSearch(jtts)(shown, torch.ones(3, 1, dtype=torch.int64))[0][:, 0]
    logits, _ = jtts(shown, tokens.unsqueeze(1))  # told its own words, what would it say?
    logits[..., [PAD, BOS, UNK]] = -torch.inf
    said = logits[:, 0].argmax(dim=2)
    before_the_end = tokens != PAD
    assert before_the_end.any(dim=1).all()
    assert torch.equal(said[before_the_end], tokens[before_the_end])


@torch.no_grad()
def test_a_width_beyond_the_lanes_is_taken_as_all_lanes(jtts: Jtts) -> None:
    shown = tiles(2)
    search = BeamSearch(jtts)
    asked = search(shown, torch.tensor([[99], [LANES]]))
    most = search(shown, torch.tensor([[LANES], [LANES]]))
    assert all(torch.equal(a, b) for a, b in zip(asked, most, strict=True))


@torch.no_grad()
def test_what_was_sampled_is_what_is_near_the_most_probable_attribute(jtts: Jtts) -> None:
    nn.init.normal_(jtts.classify[-1].weight, std=3)
    _, _, probs, sampled = BeamSearch(jtts)(tiles(4), torch.ones(4, 1, dtype=torch.int64))
    width = jtts.config.sampling_coefficient * jtts.config.margin
    assert torch.equal(sampled, probs > probs.amax(dim=1, keepdim=True) - width)
    assert 4 <= sampled.sum() < sampled.numel()


# SpatialNet-ViT

Head = TypeVar("Head", bound=nn.Module)
TINY_VIT = SpatialNetVitConfig(
    image_size=SIDE, width=16, layers=2, heads=2, text_layers=2, max_question=8, max_caption=6
)
QUESTIONS = torch.tensor(
    [
        [5, 2, 7, 0, 0, 0, 0, 0],
        [3, 0, 0, 0, 0, 0, 0, 0],
        [4, 4, 6, 2, 9, 8, 3, 5],
        [9, 8, 0, 0, 0, 0, 0, 0],
        [2, 6, 5, 3, 0, 0, 0, 0],
        [7, 3, 3, 2, 4, 0, 0, 0],
    ]
)


@pytest.fixture
def vit() -> SpatialNetVit:
    return SpatialNetVit(10, 7, 4, 11, TINY_VIT).eval()


def sharpened(head: Head) -> Head:
    """The head with larger weights, so that all it reads shows in what it says."""
    with torch.no_grad():
        for name, weights in head.named_parameters():
            if weights.dim() == 2 and "embed" not in name:
                weights.mul_(3)
    return head


@torch.no_grad()
def test_questions_in_a_row_of_a_tile_are_answered_as_each_alone(vit: SpatialNetVit) -> None:
    head = sharpened(vit.question)
    memory = torch.randn(2, TINY_VIT.tokens, TINY_VIT.width)
    answers, counts = head(memory, QUESTIONS)  # three questions a tile
    for row in range(len(QUESTIONS)):
        tile = row // 3
        alone, count = head(memory[tile : tile + 1], QUESTIONS[row : row + 1])
        torch.testing.assert_close(answers[row : row + 1], alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(counts[row : row + 1], count, rtol=1e-4, atol=1e-5)
    swapped, _ = head(memory.flip(0), QUESTIONS)
    assert (swapped - answers).abs().amax(dim=1).min() > 1e-3, "the tile does not matter here"


@torch.no_grad()
def test_the_padding_of_a_question_does_not_change_its_answer(vit: SpatialNetVit) -> None:
    head = sharpened(vit.question)
    memory = torch.randn(6, TINY_VIT.tokens, TINY_VIT.width)
    before, _ = head(memory, QUESTIONS)
    head.embed.weight[PAD] = 9.0
    after, _ = head(memory, QUESTIONS)
    torch.testing.assert_close(after, before)
    head.positions[:, 3:] += torch.randn(TINY_VIT.width)  # the first two questions end before
    after, _ = head(memory, QUESTIONS)
    torch.testing.assert_close(after[:2], before[:2])
    assert (after[2] - before[2]).abs().max() > 1e-3, "the words' places do not matter here"


@torch.no_grad()
def test_a_shorter_row_of_the_same_question_gives_the_same_answer(vit: SpatialNetVit) -> None:
    head = sharpened(vit.question)
    memory = torch.randn(1, TINY_VIT.tokens, TINY_VIT.width)
    before, _ = head(memory, QUESTIONS[:1])
    head.positions = nn.Parameter(head.positions[:, :3])
    torch.testing.assert_close(head(memory, QUESTIONS[:1, :3])[0], before)


@torch.no_grad()
def test_both_patch_embeddings_give_a_token_a_patch() -> None:
    images = torch.randn(2, 3, SIDE, SIDE)
    linear = LinearPatches(TINY_VIT.width, TINY_VIT.patch_size)(images)
    hybrid = HybridPatches(TINY_VIT.width)(images)
    assert linear.shape == hybrid.shape == (2, (SIDE // 16) ** 2, TINY_VIT.width)
    for patches in ("linear", "hybrid"):
        config = TINY_VIT.model_copy(update={"patches": patches})
        memory = TileEncoder(config).eval()(tiles(2))
        assert memory.shape == (2, config.tokens, config.width) == (2, 17, 16)


@torch.no_grad()
def test_a_word_of_a_caption_is_foreseen_from_the_words_before_it_alone(
    vit: SpatialNetVit,
) -> None:
    memory = torch.randn(1, TINY_VIT.tokens, TINY_VIT.width)
    words = torch.tensor([[BOS, 5, 6, 7, 8, 9]])
    other = words.clone()
    other[0, 3:] = 4
    logits, changed = vit.caption(memory, words), vit.caption(memory, other)
    torch.testing.assert_close(changed[:, :3], logits[:, :3])
    assert (changed[:, 3] - logits[:, 3]).abs().max() > 1e-4


@torch.no_grad()
def test_a_greedy_caption_takes_the_most_probable_word_at_each_place(vit: SpatialNetVit) -> None:
    memory = torch.randn(3, TINY_VIT.tokens, TINY_VIT.width)
    caption = sharpened(vit.caption)
    spoken = caption.greedy(memory, TINY_VIT.max_caption)
    before = torch.cat([torch.full((3, 1), BOS), spoken[:, :-1]], dim=1)
    assert torch.equal(caption(memory, before).argmax(dim=2), spoken)
    assert len(spoken.unique(dim=0)) > 1, "the tile does not matter here"


# One step of training, all three


class Watched(L.Callback):
    """Keeps the gradients of the first step, before they are clipped."""

    def __init__(self) -> None:
        self.gradients: dict[str, Tensor | None] = {}

    def on_before_optimizer_step(
        self, _trainer: L.Trainer, module: L.LightningModule, _optimizer: torch.optim.Optimizer
    ) -> None:
        if not self.gradients:
            self.gradients = {
                name: None if p.grad is None else p.grad.clone()
                for name, p in module.named_parameters()
            }


def one_epoch(task: Task, folder: Path) -> tuple[L.Trainer, dict[str, Tensor | None]]:
    watched = Watched()
    trainer = L.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_epochs=1,
        limit_val_batches=0,
        callbacks=[watched],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(task)
    return trainer, watched.gradients


# A softmax does not see what all its scores have in common.
SHIFTS_OF_A_SOFTMAX = r"\.attend\.score\.bias$|\.key\.bias$"
# Nor does batch normalisation see what the 1x1 convolution before it adds to every place alike, so
# the shift that ends a block of MobileNetV2 learns only where something else reads the block.
SHIFTS_OF_A_BLOCK = r"\.backbone\.layer\d\.\d+\.conv\.[23]\.bias$"
# What a label of a GAT adds to the scores of all that it hears is such a shift too, but for the
# bend of the LeakyReLU between them.
SHIFTS_BUT_FOR_A_BEND = r"\.att_dst$"
# Enough questions a step that one asks for a number.
ONE_STEP: dict[ModelName, dict[str, Any]] = {
    "signa": {"batch_size": 8},
    "jtts": {"batch_size": 8},
    "spatialnet-vit": {"batch_size": 8, "questions_per_tile": 24},
}


_SMALL: dict[str, Any] = {"heads": 2, "label_vector_width": 8}
# Whatever there is to choose in SIGNA has parameters of its own.
_CHOICES: list[dict[str, Any]] = [
    {},
    {"method": "plain"},
    {"method": "se"},
    {"method": "ml_gcn"},
    {"gnn": "gcn", "gnn_layers": 1, "interleave": "full", "gate": "sigmoid"},
    {"gnn": "gat"},
    {"backbone": "resnet18", "normalization": "imagenet"},
]


@pytest.mark.parametrize(
    ("model", "choice"),
    [
        *((model, {}) for model in MODEL_NAMES if model != "signa"),
        *(("signa", choice) for choice in _CHOICES),
    ],
)
def test_one_step_trains_every_parameter(
    model: ModelName, choice: dict[str, Any], ucm_miniature: Path, tmp_path: Path
) -> None:
    changed = {"architecture": _SMALL | choice} if choice else {}
    config = tiny_config(model, epochs=1, **ONE_STEP[model], **changed)
    task = make_task(config, ucm_miniature, None)
    trainable = {name: p for name, p in task.named_parameters() if p.requires_grad}
    trainer, gradients = one_epoch(task, tmp_path)

    (optimizer,) = trainer.optimizers
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len(set(held)), "a parameter is in two groups"
    assert set(held) == {id(p) for p in trainable.values()}
    rates = {id(p): group["max_lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in trainable.items():
        pretrained = ".backbone." in f".{name}"
        expected = config.fit.backbone_learning_rate if pretrained else config.fit.learning_rate
        assert rates[id(parameter)] == expected, name

    assert gradients.keys() == trainable.keys()
    for name, gradient in gradients.items():
        assert gradient is not None, name
        largest = float(gradient.abs().max())
        if re.search(SHIFTS_OF_A_SOFTMAX, name):
            assert largest < 1e-6, name
        elif not re.search(f"{SHIFTS_OF_A_BLOCK}|{SHIFTS_BUT_FOR_A_BEND}", name):
            assert largest > 1e-7, name
