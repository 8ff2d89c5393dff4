"""The zoo's models that are no language models: small networks that read handwritten digits.

Data, network, training and split are those of Abrantes et al. 2025 (*Competition and Attraction Improve Model Fusion*,
https://arxiv.org/abs/2508.16204): scikit-learn's digits of 8 × 8 pixels, a perceptron of one hidden layer, the first
80% of the images for the search and the rest for confirmation. Twenty networks are random, two are half trained: each
on five of the ten digits.

A network is one vector of 19,210 numbers, as in the paper, where a crossover may cut it anywhere: the hidden layer's
weights (pixels × units), its biases, the output layer's weights (units × digits), its biases.

The functions `correct`, `low`, `high`, `odd` and `even` are fitness functions of batches (docs/fitness.md): which
images a network reads correctly, of all digits or of some.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from rich.table import Table
from safetensors.torch import load_file, save_file

from evomerge.checkpoints.resolve import DIGITS, digits_folder
from evomerge.zoo.building import put_in_place, remove_stale

PIXELS, UNITS, DIGIT_COUNT = 64, 256, 10
PARAMETERS = (PIXELS + 1) * UNITS + (UNITS + 1) * DIGIT_COUNT
TENSOR = "parameters"
SEARCHED = 0.8  # share of the images, from the first on
SPREAD = 0.01  # standard deviation of random networks
STEPS, LEARNING_RATE = 10, 0.003  # of Adam, on all images at once
RANDOM = tuple(f"random-{number:02d}" for number in range(20))
HALVES: Mapping[str, Callable[[int], bool]] = {"low": lambda digit: digit < 5, "high": lambda digit: digit >= 5}
MODELS: Mapping[str, str] = {
    f"{DIGITS}low": "half trained, on the digits 0 to 4",
    f"{DIGITS}high": "half trained, on the digits 5 to 9",
    **{f"{DIGITS}{name}": "random" for name in RANDOM},
}


class Images(NamedTuple):
    """``pixels`` of shape (images, 64) from 0 to 16, ``digits`` of shape (images,), how many of them are searched."""

    pixels: torch.Tensor
    digits: torch.Tensor
    searched: int


@lru_cache(maxsize=1)
def images() -> Images:
    """Return scikit-learn's digits."""
    from sklearn.datasets import load_digits

    pixels, digits = load_digits(return_X_y=True)
    return Images(torch.from_numpy(pixels).float(), torch.from_numpy(digits).long(), int(SEARCHED * len(digits)))


def random_network(seed: int) -> torch.Tensor:
    """Return a network of random numbers, shape (19210,)."""
    return SPREAD * torch.randn(PARAMETERS, generator=torch.Generator().manual_seed(seed))


def logits(network: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Return how much a network takes each image for each digit, shape (images, 10).

    Args:
        network: shape (19210,).
        pixels: shape (images, 64).
    """
    weights, biases, out_weights, out_biases = network.split([PIXELS * UNITS, UNITS, UNITS * DIGIT_COUNT, DIGIT_COUNT])
    hidden = torch.addmm(biases, pixels, weights.view(PIXELS, UNITS)).relu_()
    # The second product the other way round: a third of the time where images are many and digits ten.
    return torch.addmm(out_biases[:, None], out_weights.view(UNITS, DIGIT_COUNT).t(), hidden.t()).t()


def trained(network: torch.Tensor, known: Callable[[int], bool]) -> torch.Tensor:
    """Return the network after some steps of Adam on those searched images whose digit it is to know."""
    data = images()
    rows = [row for row in range(data.searched) if known(int(data.digits[row]))]
    network = network.clone().requires_grad_()
    adam = torch.optim.Adam([network], lr=LEARNING_RATE)
    for _ in range(STEPS):
        adam.zero_grad()
        torch.nn.functional.cross_entropy(logits(network, data.pixels[rows]), data.digits[rows]).backward()
        adam.step()
    return network.detach()


def build_digits(*, force: bool = False) -> Path:
    """Make the networks, which takes seconds, and return their folder; at once when it is already there.

    Args:
        force: make them again even so.
    """
    folder = digits_folder()
    if folder.is_dir() and not force:
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(folder)
    partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.partial-", dir=folder.parent))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # sums depend on how they are shared out
        networks = {name: random_network(seed) for seed, name in enumerate(RANDOM)}
        for seed, (name, known) in enumerate(HALVES.items(), len(RANDOM)):
            networks[name] = trained(random_network(seed), known)
        for name, network in networks.items():
            (partial / name).mkdir()
            save_file({TENSOR: network}, partial / name / "model.safetensors")
        put_in_place(partial, folder, force)
    finally:
        torch.set_num_threads(threads)
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def digits_table() -> Table:
    """Return how many of the confirmation images each network reads correctly, as a table.

    Raises:
        OSError: the networks are not built.
    """
    table = Table("network", "all digits", *HALVES, title="Networks for digits on the images kept for confirmation")
    data = images()
    pixels, digits = data.pixels[data.searched :], data.digits[data.searched :]
    for reference in MODELS:
        folder = digits_folder() / reference.removeprefix(DIGITS)
        right = logits(load_file(folder / "model.safetensors")[TENSOR], pixels).argmax(1) == digits
        halves = [torch.tensor([known(int(digit)) for digit in digits]) for known in HALVES.values()]
        shares = [right, *(right[half] for half in halves)]
        table.add_row(reference, *(f"{share.float().mean():.3f}" for share in shares))
    return table


def correct(batch: Mapping[str, torch.Tensor], items: Sequence[str]) -> torch.Tensor:
    """Return 1 for each image that a network reads correctly, else 0: shape (networks, images).

    The networks are run one after the other: so each one's numbers do not depend on the others, and its hidden layer
    stays in the cache.
    """
    pixels, digits = _rows(tuple(items))
    answers = torch.stack([logits(network, pixels) for network in batch[TENSOR]]).argmax(2)
    return (answers == digits).float()


def low(batch: Mapping[str, torch.Tensor], items: Sequence[str]) -> torch.Tensor:
    """`correct`, of the digits 0 to 4."""
    return correct(batch, items)


def high(batch: Mapping[str, torch.Tensor], items: Sequence[str]) -> torch.Tensor:
    """`correct`, of the digits 5 to 9."""
    return correct(batch, items)


def odd(batch: Mapping[str, torch.Tensor], items: Sequence[str]) -> torch.Tensor:
    """`correct`, of the odd digits."""
    return correct(batch, items)


def even(batch: Mapping[str, torch.Tensor], items: Sequence[str]) -> torch.Tensor:
    """`correct`, of the even digits."""
    return correct(batch, items)


def correct_items() -> dict[str, list[str]]:
    """Return the images, by the numbers of their rows."""
    return _declared(lambda digit: True)


def low_items() -> dict[str, list[str]]:
    """Return the images of the digits 0 to 4."""
    return _declared(HALVES["low"])


def high_items() -> dict[str, list[str]]:
    """Return the images of the digits 5 to 9."""
    return _declared(HALVES["high"])


def odd_items() -> dict[str, list[str]]:
    """Return the images of the odd digits."""
    return _declared(lambda digit: digit % 2 == 1)


def even_items() -> dict[str, list[str]]:
    """Return the images of the even digits."""
    return _declared(lambda digit: digit % 2 == 0)


def _declared(wanted: Callable[[int], bool]) -> dict[str, list[str]]:
    data = images()
    rows = [row for row, digit in enumerate(data.digits.tolist()) if wanted(digit)]
    return {
        "search": [f"image {row}" for row in rows if row < data.searched],
        "confirmation": [f"image {row}" for row in rows if row >= data.searched],
    }


@lru_cache(maxsize=8)
def _rows(items: tuple[str, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pixels and digits of the images that items name."""
    rows = [int(item.removeprefix("image ")) for item in items]
    return images().pixels[rows], images().digits[rows]
