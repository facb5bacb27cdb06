"""The driving task: observation, reward, expert, and the environment that combines them."""
