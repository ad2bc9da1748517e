import torch


# A tiny model's operations are too small to share: more threads only wait for each other.
torch.set_num_threads(1)
