"""Train your own network in plain PyTorch: imitate the actions of a dataset."""

import torch
from torch import nn
from torch.utils.data import DataLoader

from avtd3.learn import ReplayDataset


def main():
    dataset = ReplayDataset("data", batch_size=64, n_step=3, batches=100)
    stack, height, width = dataset.spec.image.observation_shape
    network = nn.Sequential(
        nn.Flatten(),
        nn.Linear(stack * height * width, 64),
        nn.ReLU(),
        nn.Linear(64, dataset.spec.action_size),
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for batch in DataLoader(dataset, batch_size=None, num_workers=1):
        actions = network(batch.observation_frames / 255.0)
        loss = nn.functional.mse_loss(actions, batch.action)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"loss {loss.item():.3f}")


if __name__ == "__main__":
    main()
