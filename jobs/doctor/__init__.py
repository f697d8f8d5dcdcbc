"""What `admg-batch doctor` looks at, one file for each kind of thing."""
