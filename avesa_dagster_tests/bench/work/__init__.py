"""What the benchmarks measure: functions that `child` calls in processes of their own."""
