"""Analysis of training runs from their TensorBoard event files: gates and comparisons."""
