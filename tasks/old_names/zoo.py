from tasks.old_names import redirect

redirect.to("python -m benchmarks.collapse_cases", "benchmarks.collapse_cases")
