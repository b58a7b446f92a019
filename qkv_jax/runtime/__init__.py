"""The machine: files that survive, events, stopping, processes, devices. Nothing of training."""
