"""A program that saves checkpoints without end, in children that it kills while they save.

It imports what they need once and never starts JAX itself, so that a child is a fork and costs
little. `python killed_saves.py FOLDER` prints the kills, the last step known to be saved, and how
many kills left a save half written.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from optdiff.learning.checkpoints import Checkpoints
from optdiff.learning.step import State

KILLS = 24


def large(step):
    """Two megabytes that say which step they are of, and do not compress."""
    values = np.random.default_rng(step).normal(size=2**18).astype(np.float32)
    params, ema = {"w": jnp.asarray(values)}, {"w": jnp.asarray(-values)}
    return State(jnp.array(step, jnp.int32), params, (), ema, jax.random.key(step))


def bits(state):
    plain = state._replace(key=jax.random.key_data(state.key))
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(plain)]


def save_without_end(folder, say):
    """Go on from the newest checkpoint and save as fast as the disk takes it."""
    with Checkpoints(folder, keep=2) as checkpoints:
        restored = checkpoints.restore(large(0))
        step = int(restored[0].step) if restored else 0
        if restored:
            assert restored[1] == {"step": step}
            assert bits(restored[0]) == bits(large(step))
        say(f"restored {step}")
        while True:
            step += 1
            checkpoints.save(large(step), {"step": step})
            checkpoints.wait()
            say(f"saved {step}")


def child(folder, writing):
    try:
        save_without_end(folder, lambda text: os.write(writing, f"{text}\n".encode()))
    finally:
        os._exit(1)


def main(folder):
    chance, saved, torn = random.Random(0), 0, 0
    for _ in range(KILLS):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            child(folder, writing)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            word, step = pipe.readline().split()
            assert word == "restored" and int(step) >= saved, (word, step, saved)
            time.sleep(chance.uniform(0.0, 0.3))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            saved = max([int(step), *(int(line.split()[1]) for line in pipe if line[-1:] == "\n")])
        torn += any(not path.name.isdigit() for path in folder.iterdir())
    print(KILLS, saved, torn)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
