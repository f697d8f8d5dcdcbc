"""`admg-batch calibrate`: plans made from a sample of one's own prompts."""
