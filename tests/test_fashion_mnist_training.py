"""Ten epochs on all of Fashion-MNIST, on each backend: the project's promises about training."""

from __future__ import annotations

import pytest

import polybn
from polybn.lenet import fashion_mnist, networks

# The last epoch of the notebook's recipe (batch 256, learning rate 1, sigmoids): all published runs that we know end
# between 0.24 and 0.29 in loss and 0.89 and 0.91 in training accuracy, whatever the framework and seed.
LOSS = (0.24, 0.29)
ACCURACY = (0.89, 0.91)


def _full_data() -> fashion_mnist.Dataset:
    try:
        return fashion_mnist.load(download=False)
    except polybn.DataIntegrityError as error:
        pytest.skip(f"no full copy of Fashion-MNIST here: {error}")


def test_ten_epochs_end_in_the_band_and_batch_norm_leads_throughout(backend: str) -> None:
    """With batch norm the tenth epoch is in the band; without it every epoch is behind in loss and accuracy."""
    data = _full_data()
    spec, none = (
        polybn.train(networks.lenet(norm), backend, data=data, epochs=10, seed=0).epochs for norm in ("spec", None)
    )
    assert LOSS[0] <= spec[-1].loss <= LOSS[1]
    assert ACCURACY[0] <= spec[-1].train_accuracy <= ACCURACY[1]
    for ahead, behind in zip(spec, none, strict=True):
        assert ahead.loss < behind.loss
        assert ahead.train_accuracy > behind.train_accuracy
