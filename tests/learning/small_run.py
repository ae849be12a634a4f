"""A training run small enough to be killed often: a matrix that learns a tanh.

As a program, `python small_run.py FOLDER STEPS [option=value ...]` trains it and leaves the last
state in FOLDER/state.npz, so that tests run it in processes of their own, and end those.
"""

import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optdiff.learning.layouts import replicated, sharded
from optdiff.learning.loop import train
from optdiff.types import Stream

ROWS = 8


def parameters():
    return {"w": np.zeros((4, 8), np.float32), "b": np.zeros(8, np.float32)}


def stream(rows=ROWS, read=lambda count: None, host=0, hosts=1):
    """Rows of batch `count`, this host's share; `read(count)` is called before each reading."""

    def batch(position):
        count = position["count"]
        read(count)
        x = np.random.default_rng(count).normal(size=(rows, 4)).astype(np.float32)
        x = x[host * rows // hosts : (host + 1) * rows // hosts]
        return {"x": x, "y": np.tanh(np.tile(x, 2))}, {"count": count + 1}

    return Stream({"count": 0}, batch)


def loss(params, frozen, batch, key, noise=0.1):
    """Mean squared error, of inputs with noise on them, so that keys matter."""
    x = batch["x"] + noise * jax.random.normal(key, batch["x"].shape, batch["x"].dtype)
    y = x @ params["w"] + params["b"][None]
    return jnp.mean((y - batch["y"]) ** 2), {"size": jnp.mean(jnp.abs(y))}


def optimizer():
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2))


def run(folder=None, steps=20, **options):
    """Train with this file's parts, where options do not replace them."""
    parts = {"loss": loss, "params": parameters(), "stream": stream(), "optimizer": optimizer()}
    parts |= {name: options.pop(name) for name in list(options) if name in parts}
    return train(*parts.values(), steps=steps, folder=folder, **options)


def arrays(state):
    """All numbers of a state, keys as theirs, in one order."""
    leaves = jax.tree.leaves(state._replace(key=jax.random.key_data(state.key)))
    return [np.asarray(leaf) for leaf in leaves]


def assert_same(one, other):
    """Two states, or what `arrays` makes of them, are the same bit for bit."""
    one, other = ([*x] if isinstance(x, list) else arrays(x) for x in (one, other))
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.dtype == b.dtype and a.tobytes() == b.tobytes()


def _main(folder, steps, *arguments):
    options = dict(argument.split("=") for argument in arguments)
    host, hosts = int(options.pop("host", 0)), int(options.pop("hosts", 1))
    if hosts > 1:
        jax.distributed.initialize(f"127.0.0.1:{options.pop('port')}", hosts, host)
    pause, ask = float(options.pop("pause", 0)), int(options.pop("stop", -1))

    def read(count):
        time.sleep(pause)
        if count == ask:
            os.kill(os.getpid(), signal.SIGTERM)

    layout = partial(sharded, smallest=0) if options.pop("layout", "") == "sharded" else replicated
    every = {name: int(value) for name, value in options.items()}
    state = run(folder, int(steps), stream=stream(ROWS, read, host, hosts), layout=layout, **every)
    if hosts == 1:
        np.savez(Path(folder) / "state.npz", *arrays(state))


if __name__ == "__main__":
    _main(*sys.argv[1:])
