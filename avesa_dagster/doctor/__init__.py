"""What `avesa doctor` looks at, and what `avesa bootstrap` makes; Dagster's part is in `defs`."""
