"""SpatialNet-ViT: a vision transformer with a head for each task.

Section III of the paper: patches (equations 1-2), 12 layers of 8 heads with a ReLU feed-forward
(equations 3-5), task heads (equation 9), a weighted sum of losses (equation 6). The paper leaves
out the width, the question encoder, the caption decoder and the position embedding. Here:

- pre-norm layers, a learned class token and learned positions;
- `patches = "linear"` is the paper's patch embedding; `hybrid` puts the stride-16 features of a
  pretrained CNN in the place of raw patches (Dosovitskiy et al., ICLR 2021), which is what learns
  from two thousand tiles;
- the question is read by a small transformer and looks at the tile's tokens by cross-attention;
  the answer is chosen from a fixed list;
- the count head regresses log(1 + count) and only helps training: the answer is a class.
"""

from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from tilesight.manifest import Strict
from training.models.backbone import Backbone, Normalization, Normalize
from training.sentences import BOS, PAD


class SpatialNetVitConfig(Strict):
    """The architecture's options."""

    normalization: Normalization = "half"
    patches: Literal["linear", "hybrid"] = "hybrid"
    image_size: int = Field(default=224, gt=0, multiple_of=16)
    width: int = Field(default=192, gt=0)
    layers: int = Field(default=12, gt=0)
    heads: int = Field(default=8, gt=0)
    text_layers: int = Field(default=2, gt=0)
    max_question: int = Field(default=20, gt=0)
    max_caption: int = Field(default=22, gt=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width: {self.width} is no multiple of {self.heads} heads")
        return self

    @property
    def patch_size(self) -> int:
        """Pixels a patch is wide."""
        return 16

    @property
    def tokens(self) -> int:
        """Tokens of a tile, the class token included."""
        return (self.image_size // self.patch_size) ** 2 + 1


class Attention(nn.Module):
    """Multi-head attention of (B, Q, D) queries over (B, S, D) keys, equations 3-4."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.merge = nn.Linear(width, width)

    def _split(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, H, S, D / H)

    def forward(self, queries: Tensor, keys: Tensor, mask: Tensor | None = None) -> Tensor:
        """The attended values (B, Q, D); `mask` is True where a query may look."""
        attended = F.scaled_dot_product_attention(
            self._split(self.query(queries)),
            self._split(self.key(keys)),
            self._split(self.value(keys)),
            attn_mask=mask,
        )
        return self.merge(attended.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """A pre-norm transformer layer, with cross-attention where a memory is given."""

    def __init__(self, width: int, heads: int, dropout: float, cross: bool = False) -> None:
        super().__init__()
        self.norm_self = nn.LayerNorm(width)
        self.attend_self = Attention(width, heads)
        if cross:
            self.norm_cross = nn.LayerNorm(width)
            self.attend_cross = Attention(width, heads)
        self.norm_feed = nn.LayerNorm(width)
        self.feed = nn.Sequential(  # equation 5
            nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, tokens: Tensor, mask: Tensor | None = None, memory: Tensor | None = None
    ) -> Tensor:
        """The tokens (B, S, D) after the layer; a memory (B / texts, M, D) may serve several."""
        normed = self.norm_self(tokens)
        tokens = tokens + self.dropout(self.attend_self(normed, normed, mask))
        if memory is not None:
            # Texts of one tile share its memory, so they look at it as one long sequence.
            texts = tokens.shape[0] // memory.shape[0]
            queries = self.norm_cross(tokens).unflatten(0, (-1, texts)).flatten(1, 2)
            looked = self.attend_cross(queries, memory)  # (B, texts * S, D)
            tokens = tokens + self.dropout(looked.unflatten(1, (texts, -1)).flatten(0, 1))
        return tokens + self.dropout(self.feed(self.norm_feed(tokens)))


class LinearPatches(nn.Module):
    """Equation 1: each 16 x 16 patch flattened and mapped to the width."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, kernel_size=patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, N, D)."""
        return self.embed(images).flatten(2).transpose(1, 2)


class HybridPatches(nn.Module):
    """The stride-16 features of MobileNetV2 in the place of raw patches."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.backbone = Backbone("layer3")
        self.embed = nn.Linear(self.backbone.channels, width)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, N, D)."""
        return self.embed(self.backbone(images).flatten(2).transpose(1, 2))


class TileEncoder(nn.Module):
    """The vision transformer: (B, H, W, 3) tiles -> (B, 1 + N, D) tokens."""

    def __init__(self, config: SpatialNetVitConfig) -> None:
        super().__init__()
        width = config.width
        self.normalize = Normalize(config.normalization)
        self.patches: nn.Module = (
            HybridPatches(width)
            if config.patches == "hybrid"
            else LinearPatches(width, config.patch_size)
        )
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, config.tokens, width) * 0.02)
        self.layers = nn.ModuleList(
            Layer(width, config.heads, config.dropout) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, tiles: Tensor) -> Tensor:
        """The memory that all heads read; token 0 is the class token."""
        patches = self.patches(self.normalize(tiles))
        tokens = torch.cat([self.class_token.expand(patches.shape[0], -1, -1), patches], dim=1)
        tokens = tokens + self.positions
        for layer in self.layers:
            tokens = layer(tokens)
        return self.norm(tokens)


class QuestionHead(nn.Module):
    """Answers a question about an encoded tile."""

    def __init__(self, words: int, answers: int, config: SpatialNetVitConfig) -> None:
        super().__init__()
        width, heads, dropout = config.width, config.heads, config.dropout
        self.embed = nn.Embedding(words, width, padding_idx=PAD)
        self.positions = nn.Parameter(torch.randn(1, config.max_question, width) * 0.02)
        self.read = nn.ModuleList(Layer(width, heads, dropout) for _ in range(config.text_layers))
        self.look = nn.ModuleList(
            Layer(width, heads, dropout, cross=True) for _ in range(config.text_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.fuse = nn.Linear(width, width)
        self.answer = nn.Sequential(
            nn.Linear(2 * width, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, answers)
        )
        self.count = nn.Linear(2 * width, 1)

    def forward(self, memory: Tensor, question: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (Q, answers) and log(1 + count) (Q, 1) of questions (Q, T).

        The memory is (Q, S, D), or (Q / n, S, D) where each tile has n questions in a row.
        """
        said = question != PAD  # (B, T)
        mask = said[:, None, None, :]  # every token may look at each word
        tokens = self.embed(question) + self.positions
        for layer in self.read:
            tokens = layer(tokens, mask)
        for layer in self.look:
            tokens = layer(tokens, mask, memory)
        tokens = self.norm(tokens)
        weight = said.unsqueeze(2).float()
        pooled = (tokens * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)  # (B, D)
        scene = torch.tanh(self.fuse(memory[:, 0]))
        scene = scene.repeat_interleave(question.shape[0] // memory.shape[0], dim=0)
        fused = torch.cat([pooled, pooled * scene], dim=1)
        return self.answer(fused), self.count(fused)


class CaptionHead(nn.Module):
    """A small transformer decoder over the tile's memory, its output tied to its embedding."""

    def __init__(self, words: int, config: SpatialNetVitConfig) -> None:
        super().__init__()
        width, heads, dropout = config.width, config.heads, config.dropout
        self.embed = nn.Embedding(words, width, padding_idx=PAD)
        nn.init.normal_(self.embed.weight, std=width**-0.5)
        self.positions = nn.Parameter(torch.randn(1, config.max_caption, width) * 0.02)
        self.layers = nn.ModuleList(
            Layer(width, heads, dropout, cross=True) for _ in range(config.text_layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, memory: Tensor, words: Tensor) -> Tensor:
        """(B, S, D) memory and (B, T) words before each place -> (B, T, words) logits."""
        length = words.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=words.device).tril()
        tokens = self.embed(words) + self.positions[:, :length]
        for layer in self.layers:
            tokens = layer(tokens, causal, memory)
        return self.norm(tokens) @ self.embed.weight.T

    @torch.no_grad()
    def greedy(self, memory: Tensor, length: int) -> Tensor:
        """(B, length) the most probable word at each place, until the end token."""
        words = torch.full((memory.shape[0], 1), BOS, dtype=torch.int64, device=memory.device)
        for _ in range(length):
            words = torch.cat([words, self(memory, words)[:, -1:].argmax(dim=2)], dim=1)
        return words[:, 1:]


class SpatialNetVit(nn.Module):
    """The tile encoder with its heads for answers, land use, caption and count."""

    def __init__(
        self,
        question_words: int,
        answers: int,
        scenes: int,
        caption_words: int,
        config: SpatialNetVitConfig,
    ) -> None:
        super().__init__()
        self.config = config
        self.encoder = TileEncoder(config)
        self.question = QuestionHead(question_words, answers, config)
        self.land_use = nn.Linear(config.width, scenes)
        self.caption = CaptionHead(caption_words, config)
