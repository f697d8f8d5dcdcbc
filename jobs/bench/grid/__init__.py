"""`admg-batch bench grid`: one system against plain decoding, workload by batch by temperature."""
