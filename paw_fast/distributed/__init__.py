"""Trains on several devices: FSDP2 through torch.distributed, started by torchrun or `--trainer.gpus`."""
