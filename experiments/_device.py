"""What a job runs on, in words, for its row or note."""

import os

import jax


def device() -> str:
    devices = jax.devices()
    kind = devices[0].device_kind
    return f"{len(devices)} x {devices[0].platform} ({kind}), {os.cpu_count()} processor cores"
