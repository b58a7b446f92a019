"""What a survey measures: the name of each quantity, what it is, and what does not change it."""

from typing import NamedTuple

ROLES = "XQKV"
# Pairs of roles; where one is compared with the other, the second with the first.
PAIRS = ("XQ", "XK", "XV", "QK", "QV", "KV")

HEAD = "any basis within the head"
TURN = "rotations within the head"


class Quantity(NamedTuple):
    """A quantity of the table.

    Attributes:
      title: with its unit, as a figure's axis says it.
      meaning: the formula, in words and symbols, and where it comes from.
      invariant: the changes of basis within heads that leave it as it is; "" where a rotation
        changes it, so that it is to be read beside `null_rotation`.
    """

    title: str
    meaning: str
    invariant: str


QUANTITIES = {
    "cka": Quantity(
        "linear CKA",
        "How alike two clouds of the same tokens are, up to rotation, shift and scale: 1 equal, 0 "
        "unrelated. HSIC(A, B) / √(HSIC(A, A) HSIC(B, B)), linear kernels (Kornblith et al. 2019), "
        "unbiased estimator (Song et al. 2012).",
        TURN,
    ),
    "cosine": Quantity(
        "cosine of tokens",
        "a·b / |a||b| of a token's two vectors, mean over the tokens; X is cut into heads. Under "
        "another basis within the head it is another number.",
        "",
    ),
    "norm_ratio": Quantity(
        "ratio of root mean squares",
        "Root mean square of the numbers of the second over that of the first.",
        TURN,
    ),
    "effective_rank": Quantity(
        "effective rank (dimensions)",
        "exp of the entropy of the singular values, as shares of their sum, of the tokens without "
        "their mean (Roy and Vetterli 2007): in how many directions a cloud spreads.",
        TURN,
    ),
    "overlap": Quantity(
        "overlap of subspaces",
        "Mean cos² of the principal angles between the column spaces of two projections (Björck "
        "and Golub 1973): 1 where both read the same directions of X. X stands for its first "
        "principal components, as many as a head is wide.",
        HEAD,
    ),
    "smallest_angle": Quantity(
        "smallest principal angle (degrees)",
        "The smallest angle between directions of the two column spaces.",
        HEAD,
    ),
    "weight_cosine": Quantity(
        "cosine of weights",
        "⟨W, W'⟩ / |W||W'| of two projections of a head. Under another basis within the head it is "
        "another number.",
        "",
    ),
    "aligned_weight_cosine": Quantity(
        "cosine of weights, best rotation",
        "The same after the rotation within the head that makes it largest (orthogonal "
        "Procrustes).",
        TURN,
    ),
    "antisymmetric_share": Quantity(
        "antisymmetric share",
        "|A|² / (|S|² + |A|²) of the QK circuit W_Q W_Kᵀ, S its symmetric and A its antisymmetric "
        "part: 0 under Q=K, a half at random.",
        HEAD,
    ),
    "symmetry": Quantity(
        "symmetry score",
        "(|S|² − |A|²) / |M|² of M = W_Q W_Kᵀ (Saponati et al. 2025): −1 antisymmetric, 1 "
        "symmetric; 1 − 2 × the antisymmetric share.",
        HEAD,
    ),
    "directionality": Quantity(
        "directionality score",
        "(c − r) / (c + r): how far columns (c) and rows (r) of W_Q W_Kᵀ stand out by more than "
        "two standard deviations (Saponati et al. 2025): 1 a few large columns (keys), −1 a few "
        "large rows (queries).",
        HEAD,
    ),
    "matching": Quantity(
        "matching score",
        "Σλ / Σ|λ| of the eigenvalues of W_Q W_Kᵀ (Elhage et al. 2021): 1 where tokens score what "
        "is like themselves.",
        HEAD,
    ),
    "copying": Quantity(
        "copying score",
        "Σλ / Σ|λ| of the eigenvalues of the OV circuit W_V W_O (Elhage et al. 2021, here without "
        "embedding and unembedding): 1 where what is attended to is written back as it is, −1 "
        "where its opposite is.",
        HEAD,
    ),
    "circuit_rank": Quantity(
        "effective rank of the circuit",
        "Effective rank (Roy and Vetterli 2007) of W_Q W_Kᵀ and W_V W_O.",
        HEAD,
    ),
    "entropy": Quantity(
        "entropy (nats)",
        "−Σ a ln a of a query's weights, mean over the queries: 0 where one key has all.",
        HEAD,
    ),
    "distance": Quantity(
        "distance (tokens)",
        "Σ a |i − j|: how far from itself a query looks, mean over the queries.",
        HEAD,
    ),
    "diagonal": Quantity(
        "weight on itself",
        "The weight of a token on itself, mean over the queries.",
        HEAD,
    ),
}  # fmt: skip
