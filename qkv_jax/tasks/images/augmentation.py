"""Random crops and flips of training images: drawn from a batch's key, applied inside jit."""

import zlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PRNGKeyArray, Shaped

# What each kind draws.
DRAWS = {"none": (), "crop": ("crops",), "crop_flip": ("crops", "flips")}
PADDING = 4  # black pixels on every side before a crop (Krizhevsky's CIFAR recipe)
# Folded into the key of the data, so that augmentation leaves the order of examples alone.
SALT = zlib.crc32(b"augmentation")


def draw(key: PRNGKeyArray, images: int) -> dict[str, Array]:
    """What is to happen to a batch of images.

    Returns:
      `crops` [B, 2]: offsets (down, right), uniform; `PADDING` leaves the image where it was.
      `flips` [B]: which are mirrored, each with probability 1/2.
    """
    place, mirror = jax.random.split(key)
    crops = jax.random.randint(place, (images, 2), 0, 2 * PADDING + 1)
    return {"crops": crops, "flips": jax.random.bernoulli(mirror, 0.5, (images,))}


def crop(
    images: Shaped[Array, "B height width C"], offsets: Int[Array, "B 2"]
) -> Shaped[Array, "B height width C"]:
    """Each image cut out of itself on a black margin, at its own offset."""
    margin = ((0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0))
    cut = lambda image, at: jax.lax.dynamic_slice(image, (at[0], at[1], 0), images.shape[1:])
    return jax.vmap(cut)(jnp.pad(images, margin), offsets)


def flip(
    images: Shaped[Array, "B height width C"], flipped: Bool[Array, " B"]
) -> Shaped[Array, "B height width C"]:
    """Some of the images, mirrored left to right."""
    return jnp.where(flipped[:, None, None, None], images[:, :, ::-1], images)
