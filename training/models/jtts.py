"""JTTS: joint-training two-stage captioning (Ye et al.).

Equations 1-4 (encoder, attribute head), 11-15 (margin-based sampling operator), 16-24 (semantic
gates), 25-30 (attention LSTM and language LSTM). Deviations, each for a stated reason:

- The encoder is MobileNetV2, and it is trained too, ten times slower: frozen ImageNet features
  carry a nearest-neighbour caption to CIDEr 2.71 on UCM and little further.
- Equation 25 is taken literally: LSTM_1's recurrent hidden state is h2 of the step before, with a
  cell of its own. This matches the paper's parameter count best.
- Equation 26 writes V-bar where only the regions V_j make sense.
- Attributes and words are embedded apart; the paper writes one vocabulary for both.
- Embeddings are learned from a random start, not GloVe's.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn

from tilesight.manifest import Strict
from training.models.backbone import Backbone, Normalization, Normalize
from training.sentences import BOS, EOS, PAD, UNK

# Stands for log 0 while beams are compared: adding to it cannot give NaN, as -inf can.
_NEVER = -1e9


class JttsConfig(Strict):
    """The architecture's options; the paper has hidden 1000."""

    normalization: Normalization = "half"
    hidden: int = Field(default=384, gt=0, description="D")
    embedding: int = Field(default=300, gt=0, description="E")
    sampling_rate: float = Field(default=100.0, gt=0, description="beta of equation 11")
    margin: float = Field(default=0.2, gt=0, lt=1)
    sampling_coefficient: float = Field(default=0.5, gt=0, description="lambda of equation 11")
    dropout: float = Field(default=0.5, ge=0, lt=1)
    max_length: int = Field(default=22, gt=1, description="tokens of a sentence, end included")
    max_beams: int = Field(default=5, ge=1)


def sample_attributes(probs: Tensor, rate: float, width: float) -> Tensor:
    """The margin-based sampling operator, equations 11-13: (B, A) probabilities -> (B, A).

    Forward it is a steep logistic step `width` below the most probable attribute; backward its
    gradient is the step's own value (equation 14), which cannot explode.
    """
    detached = probs.detach()
    top = detached.amax(dim=1, keepdim=True)
    mask = torch.sigmoid(rate * (detached - top + width))
    return mask * probs + (mask - mask * detached)


class SemanticGate(nn.Module):
    """Equations 16-24: what a hidden state takes from the attributes."""

    def __init__(self, hidden: int, embedding: int) -> None:
        super().__init__()
        self.information = nn.Linear(hidden + embedding, hidden)
        self.gate = nn.Linear(hidden + embedding, hidden)

    def forward(self, state: Tensor, semantics: Tensor) -> Tensor:
        """(B, D) state and (B, E) attribute features -> (B, D) attended information."""
        both = torch.cat([state, semantics], dim=1)
        return self.information(both) * torch.sigmoid(self.gate(both))


class RegionAttention(nn.Module):
    """Equations 26-28: (B, R, D) regions weighted by what LSTM_1 looks for."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.of_region = nn.Linear(hidden, hidden, bias=False)
        self.of_state = nn.Linear(hidden, hidden)
        self.score = nn.Linear(hidden, 1)

    def forward(self, regions: Tensor, keys: Tensor, state: Tensor) -> Tensor:
        """The attended region feature (B, D); `keys` are the regions' projections (B, R, D)."""
        scores = self.score(torch.tanh(keys + self.of_state(state).unsqueeze(1)))  # (B, R, 1)
        weights = scores.softmax(dim=1)
        return (weights * regions).sum(dim=1)


@dataclass(frozen=True)
class Scene:
    """What the encoder says of a tile; each field has the tile in its first axis."""

    regions: Tensor  # (B, R, D)
    keys: Tensor  # (B, R, D)
    mean: Tensor  # (B, D)
    semantics: Tensor  # (B, E)

    def repeat(self, times: int) -> "Scene":
        """Each tile `times` in a row, for its sentences or beams."""
        return Scene(
            *(
                field.repeat_interleave(times, dim=0)
                for field in (self.regions, self.keys, self.mean, self.semantics)
            )
        )


State = tuple[Tensor, Tensor, Tensor, Tensor]  # h1, c1, h2, c2, each (B, D)


class AttributeGuidedDecoder(nn.Module):
    """Section III-C: two LSTMs with three semantic gates, one word a step."""

    def __init__(self, words: int, config: JttsConfig) -> None:
        super().__init__()
        hidden, embedding = config.hidden, config.embedding
        self.hidden = hidden
        self.embed = nn.Embedding(words, embedding, padding_idx=PAD)
        self.gate_attention = SemanticGate(hidden, embedding)
        self.gate_language = SemanticGate(hidden, embedding)
        self.gate_output = SemanticGate(hidden, embedding)
        self.attention_lstm = nn.LSTMCell(2 * hidden + embedding, hidden)
        self.attend = RegionAttention(hidden)
        self.language_lstm = nn.LSTMCell(3 * hidden, hidden)
        self.dropout = nn.Dropout(config.dropout)
        self.output = nn.Linear(hidden, words)

    def start(self, scene: Scene) -> State:
        """The state before the first word: zeros, each a tensor of its own for the traced loop."""
        mean = scene.mean
        return (
            torch.zeros_like(mean),
            torch.zeros_like(mean),
            torch.zeros_like(mean),
            torch.zeros_like(mean),
        )

    def forward(self, word: Tensor, state: State, scene: Scene) -> tuple[Tensor, State]:
        """One step: (B,) word ids and the state -> (B, words) logits and the next state."""
        h1, c1, h2, c2 = state
        heard = self.gate_attention(h1, scene.semantics)
        recalled = self.gate_language(h2, scene.semantics)
        embedded = self.dropout(self.embed(word))
        h1, c1 = self.attention_lstm(torch.cat([heard, scene.mean, embedded], dim=1), (h2, c1))
        seen = self.attend(scene.regions, scene.keys, h1)
        h2, c2 = self.language_lstm(torch.cat([h1, recalled, seen], dim=1), (h2, c2))
        spoken = self.gate_output(h2, scene.semantics)
        return self.output(self.dropout(spoken)), (h1, c1, h2, c2)


class Jtts(nn.Module):
    """The captioner: encoder, attribute head, sampling operator, attribute-guided decoder."""

    def __init__(self, words: int, attributes: int, config: JttsConfig) -> None:
        super().__init__()
        self.config = config
        self.normalize = Normalize(config.normalization)
        self.backbone = Backbone("layer4")
        hidden = config.hidden
        self.project = nn.Linear(self.backbone.channels, hidden)  # equation 2
        self.classify = nn.Sequential(  # equation 4
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(hidden, attributes),
        )
        self.attribute_vectors = nn.Parameter(torch.randn(attributes, config.embedding) * 0.1)
        self.decoder = AttributeGuidedDecoder(words, config)

    def encode(self, tiles: Tensor) -> tuple[Scene, Tensor, Tensor]:
        """(B, H, W, 3) tiles -> the scene, attribute logits (B, A), sampled attributes (B, A)."""
        features = self.backbone(self.normalize(tiles))  # (B, 1280, h, w)
        regions = self.project(features.flatten(2).transpose(1, 2))  # (B, R, D)
        mean = regions.mean(dim=1)
        logits = self.classify(mean)
        config = self.config
        sampled = sample_attributes(
            logits.sigmoid(), config.sampling_rate, config.sampling_coefficient * config.margin
        )
        semantics = sampled @ self.attribute_vectors / sampled.sum(dim=1, keepdim=True)  # (15)
        scene = Scene(regions, self.decoder.attend.of_region(regions), mean, semantics)
        return scene, logits, sampled

    def forward(self, tiles: Tensor, sentences: Tensor) -> tuple[Tensor, Tensor]:
        """Teacher forcing.

        Args:
            tiles: (B, H, W, 3).
            sentences: (B, S, T) token ids, S sentences a tile, without the first token.

        Returns:
            (B, S, T, words) word logits and (B, A) attribute logits.
        """
        scene, attribute_logits, _ = self.encode(tiles)
        batch, count, length = sentences.shape
        scene = scene.repeat(count)
        spoken = sentences.reshape(batch * count, length)
        word = torch.full_like(spoken[:, 0], BOS)
        state = self.decoder.start(scene)
        steps = []
        for position in range(length):
            logits, state = self.decoder(word, state, scene)
            steps.append(logits)
            word = spoken[:, position]
        return torch.stack(steps, dim=1).unflatten(0, (batch, count)), attribute_logits


# step, tokens (B, K, T), scores (B, K), finished (B, K), word (B * K,), then the LSTM's State
Search = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
Loop = Callable[[Callable[..., Tensor], Callable[..., Search], Search], Search]


def python_loop(
    unfinished: Callable[..., Tensor], step: Callable[..., Search], search: Search
) -> Search:
    """A plain loop; an export passes torch's traceable `while_loop` in its place."""
    while bool(unfinished(*search)):
        search = step(*search)
    return search


class BeamSearch(nn.Module):
    """Beam search over JTTS with a beam width of each tile's own, up to `max_beams`.

    The search always carries `max_beams` lanes; a tile that asks for fewer has its further lanes
    silenced after each step, which gives exactly the search of the narrower width. The search
    compares sums of log probabilities; of the sentences it ends with, the one with the highest
    mean over its words comes first, because sums favour short and general sentences (on UCM's
    validation captions the mean raised CIDEr from 3.15 to 3.38 with three beams, greedy has 3.29).
    """

    def __init__(self, model: Jtts, loop: Loop = python_loop) -> None:
        super().__init__()
        self.model = model
        self.loop = loop

    def forward(self, tiles: Tensor, beams: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Sentences of the tiles.

        Args:
            tiles: (B, H, W, 3) uint8.
            beams: (B, 1) int64, 1 to `max_beams`; more is taken as `max_beams`.

        Returns:
            tokens (B, K, T), best first, padded; their log probabilities (B, K), -inf in lanes
            that were not asked for; attribute probabilities (B, A); which attributes the sampling
            operator took (B, A) bool.
        """
        scene, attribute_logits, sampled = self.model.encode(tiles)
        tokens, log_probs = self.search(scene, beams)
        return tokens, log_probs, attribute_logits.sigmoid(), sampled > 0.5

    def search(self, scene: Scene, beams: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K, T) tokens, best first, and their (B, K) log probabilities."""
        config = self.model.config
        decoder = self.model.decoder
        lanes, length = config.max_beams, config.max_length
        batch = beams.shape[0]
        lane = torch.arange(lanes, device=beams.device).unsqueeze(0)  # (1, K)
        silent = lane >= beams.clamp(min=1)  # (B, K)
        wide = scene.repeat(lanes)
        words = decoder.output.out_features
        word_ids = torch.arange(words, device=beams.device)
        # A living hypothesis never says PAD, BOS or UNK; a finished one says nothing but PAD.
        forbidden = torch.where((word_ids == EOS) | (word_ids > UNK), 0.0, _NEVER)
        only_pad = torch.where(word_ids == PAD, 0.0, _NEVER)
        positions = torch.arange(length, device=beams.device)
        first_row = torch.arange(batch, device=beams.device).unsqueeze(1) * lanes  # (B, 1)

        def unfinished(
            step: Tensor, _tokens: Tensor, _scores: Tensor, finished: Tensor, *_rest: Tensor
        ) -> Tensor:
            return (step < length) & ~(finished | silent).all()

        def advance(
            step: Tensor,
            tokens: Tensor,
            scores: Tensor,
            finished: Tensor,
            word: Tensor,
            *state: Tensor,
        ) -> Search:
            h1, c1, h2, c2 = state
            logits, after = decoder(word, (h1, c1, h2, c2), wide)
            spoken = logits.log_softmax(dim=1).unflatten(0, (batch, lanes))  # (B, K, V)
            spoken = torch.where(finished.unsqueeze(2), only_pad, spoken + forbidden)
            total = (scores.unsqueeze(2) + spoken).flatten(1)  # (B, K * V)
            best, index = total.topk(lanes, dim=1)
            parent = torch.div(index, words, rounding_mode="floor")  # (B, K)
            said = index - parent * words
            rows = (first_row + parent).flatten()
            history = tokens.gather(1, parent.unsqueeze(2).expand(-1, -1, length))
            history = torch.where(positions == step, said.unsqueeze(2), history)
            done = finished.gather(1, parent) | (said == EOS)
            best = torch.where(silent, _NEVER, best)
            kept = tuple(field.index_select(0, rows) for field in after)
            return (step + 1, history, best, done, said.flatten(), *kept)

        scores = torch.where(lane == 0, 0.0, _NEVER).expand(batch, lanes).clone()
        start: Search = (
            torch.zeros((), dtype=torch.int64, device=beams.device),
            torch.zeros(batch, lanes, length, dtype=torch.int64, device=beams.device) + PAD,
            scores,
            torch.zeros(batch, lanes, dtype=torch.bool, device=beams.device),
            torch.full((batch * lanes,), BOS, dtype=torch.int64, device=beams.device),
            *decoder.start(wide),
        )
        found = self.loop(unfinished, advance, start)
        return _ranked(found[1], torch.where(silent, -torch.inf, found[2]))


def _ranked(tokens: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """The sentences (B, K, T) and their sums of log probabilities (B, K), best mean first."""
    spoken = (tokens != PAD).sum(dim=2).clamp(min=1)
    order = (scores / spoken).topk(scores.shape[1], dim=1).indices
    places = order.unsqueeze(2).expand(-1, -1, tokens.shape[2])
    return tokens.gather(1, places), scores.gather(1, order)
