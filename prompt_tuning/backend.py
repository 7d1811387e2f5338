"""The devices that a program is traced for, which the mesh tells: they need not be those of this machine."""

import jax


def platform() -> str | None:
    """cpu, gpu or tpu; None where no mesh is set."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else None


def compute_capability() -> float:
    """Of NVIDIA's GPUs, 8.0 being Ampere; 0 for those of others."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is None or "NVIDIA" not in device.device_kind:
        return 0.0
    return float(getattr(jax.local_devices()[0], "compute_capability", 9.0))
