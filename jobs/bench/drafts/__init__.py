"""`admg-batch bench drafts`: what each kind of draft brings, in numbers that no clock moves."""
