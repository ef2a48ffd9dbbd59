from tasks.old_names import redirect

redirect.to("python -m benchmarks.speed", "benchmarks.speed")
