"""The sizes that benchmarks are run at, as programs and as words of the command line."""

import dataclasses
import math

from absl import flags

from qkv_jax.model.config import ModelConfig
from qkv_jax.tasks import make_task
from qkv_jax.training import shared
from qkv_jax.training.costs import step_flops
from qkv_jax.training.state import TrainConfig
from qkv_jax.training.step import Trainer

HEADS = 4
LEARNING_RATE = 3e-3
_USUAL_LAYERS = 2
# A block of steps is long enough to be timed and short enough to be repeated: a second or two.
_BLOCK_FLOPS, _FEWEST_STEPS = 1e11, 10


@dataclasses.dataclass(frozen=True)
class Size:
    """Width, sequence length and batch size of a model on the task `reverse`, and its layers."""

    width: int
    length: int
    batch: int
    layers: int = _USUAL_LAYERS

    def __str__(self) -> str:
        usual = self.layers == _USUAL_LAYERS
        return f"{self.width}/{self.length}/{self.batch}" + ("" if usual else f"/{self.layers}")

    @property
    def columns(self) -> dict[str, int]:
        """As the tables of results have it."""
        return {"width": self.width, "length": self.length, "batch": self.batch,
                "layers": self.layers}  # fmt: skip

    def trainer(self, repeats: int, most_steps: int, tie: str = "separate") -> Trainer:
        """Its program, whose reports are blocks of so many steps at most, and whose learning rate
        falls to zero only when all blocks are done. It counts as a long run, so that what is timed
        is the program of the tie itself, not the one that short runs of all ties share."""
        task = make_task("reverse", {"length": self.length})
        model = ModelConfig(width=self.width, layers=self.layers, heads=HEADS, tie=tie)
        flops = step_flops(Trainer(model, task, TrainConfig(batch_size=self.batch)))
        steps = max(_FEWEST_STEPS, min(most_steps, round(_BLOCK_FLOPS / flops)))
        # One block more, which warms up; and one, so that the rate stays above zero.
        blocks = max(repeats + 2, math.ceil(2 * shared.LONG / (steps * flops)))
        config = TrainConfig(
            steps=steps * blocks,
            report_every=steps,
            batch_size=self.batch,
            learning_rate=LEARNING_RATE,
        )
        return Trainer(model, task, config)


class SizesParser(flags.ArgumentParser):
    """Sizes, comma by comma.

    Raises:
      ValueError: saying what is allowed.
    """

    syntactic_help = "sizes such as 64/16/32"

    def parse(self, argument: str | tuple[Size, ...]) -> tuple[Size, ...]:
        return tuple(map(_size, argument.split(","))) if isinstance(argument, str) else argument

    def flag_type(self) -> str:
        return "sizes"


def _size(text: str) -> Size:
    numbers = text.strip().split("/")
    if len(numbers) not in (3, 4) or not all(n.isdecimal() and int(n) for n in numbers):
        raise ValueError("write sizes as WIDTH/LENGTH/BATCH or WIDTH/LENGTH/BATCH/LAYERS")
    size = Size(*map(int, numbers))
    if size.width % HEADS:
        raise ValueError(f"the width must be a multiple of {HEADS}, the number of heads")
    if size.length < 2:
        raise ValueError("the length must be at least 2")
    return size
