"""How a stage of training runs: Lightning, checkpoints, devices, adapters."""
