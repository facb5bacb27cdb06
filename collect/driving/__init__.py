"""The driving task: observation, reward, expert, and the environment they make."""
