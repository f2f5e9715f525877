"""Training LeNet on Fashion-MNIST: networks as plain data, the training loop, checkpoints, data and pictures."""
