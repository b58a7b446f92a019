"""The first line of a command that computes: on what, and what it sets out to do."""

from rich.console import Console


def say(console: Console, doing: str) -> None:
    """Prints the line; after all that may be refused, since a refusal leaves stdout empty."""
    from qkv_jax.runtime.devices import devices_in_words  # JAX takes a second

    console.print(f"On {devices_in_words()}: {doing}", style="dim", soft_wrap=True, markup=False)
