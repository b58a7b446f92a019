"""One core's large matrix product, timed on request: the rate that the floor is reckoned with.

A process of its own, since XLA gives a product all the cores that its process may use. It reads
the number of products, line by line, and answers with the seconds that they took.
"""

import os
import sys
import time

os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before XLA counts its threads

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402


def main() -> None:
    side = int(sys.argv[1])
    square = jax.random.normal(jax.random.key(0), (side, side), jnp.float32)
    product = jax.jit(jnp.matmul)
    product(square, square).block_until_ready()
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            product(square, square).block_until_ready()
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
