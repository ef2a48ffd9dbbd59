from tasks.old_names import redirect

redirect.to("python -m benchmarks.sweep", "benchmarks.sweep")
