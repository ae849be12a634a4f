"""The optimizers of PyTorch as oracles: their learning rate set to each step's change of level."""

from itertools import pairwise

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from optdiff.samplers import from_optimizer, from_transformation, momentum, whole_batch

ORACLES = {
    # Heavy ball starting from the first gradient (arXiv 2307.11118) is SGD with equal damping.
    "averaging": (
        momentum(0.4),
        lambda p: torch.optim.SGD(p, momentum=0.4, dampening=0.4),
    ),
    "sum of gradients": (
        from_transformation(optax.trace(decay=0.3), wrap=whole_batch),
        lambda p: torch.optim.SGD(p, momentum=0.3),
    ),
    "classical Nesterov": (
        from_optimizer(optax.sgd(1.0, momentum=0.3, nesterov=True)),
        lambda p: torch.optim.SGD(p, momentum=0.3, nesterov=True),
    ),
    "elementwise Adam": (
        from_transformation(optax.scale_by_adam(b1=0.9, b2=0.999), wrap=whole_batch),
        lambda p: torch.optim.Adam(p, betas=(0.9, 0.999), eps=1e-8),
    ),
    "RMSprop": (
        from_transformation(optax.scale_by_rms(decay=0.9, eps=1e-8, eps_in_sqrt=False)),
        lambda p: torch.optim.RMSprop(p, alpha=0.9, eps=1e-8),
    ),
}


@pytest.mark.parametrize("name", ORACLES)
def test_trajectory_is_that_of_the_optimizer_in_pytorch(name, iterates, levels, eps):
    sampler, optimizer = ORACLES[name]
    visited = iterates(sampler, levels)
    x = torch.nn.Parameter(torch.tensor(visited[0]))
    optimizer = optimizer([x])
    for i, (sigma, sigma_next) in enumerate(pairwise(levels)):
        optimizer.param_groups[0]["lr"] = float(sigma - sigma_next)
        x.grad = torch.tensor(np.array(eps(jnp.asarray(x.detach().numpy()), sigma)))
        optimizer.step()
        np.testing.assert_allclose(visited[i + 1], x.detach().numpy(), rtol=1e-10, atol=1e-10)
