"""Read episodes, select some of them, and list them in a table."""

from avtd3.store import Dataset

dataset = Dataset.open("data")
print(dataset.spec)

for episode in dataset.episodes("driver=random", "end=terminated"):
    print(episode.seed, episode.length, episode.episode_return, episode.attributes["driver"])
    print(episode.frames.shape, episode.frames.dtype)  # (T + 1, C, H, W), uint8
    print(episode.vectors.shape, episode.actions.shape, episode.rewards.shape)

table = dataset.episode_table()
print(table.length.mean(), "steps per episode")
try:
    print(table.to_pandas().describe())
except ImportError as error:
    print(error)  # pandas is optional
