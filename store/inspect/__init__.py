"""The audit: reads datasets, and says what they hold and what is wrong with them."""
