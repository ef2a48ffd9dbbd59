from tasks.old_names import redirect

redirect.to("python -m benchmarks.case_images", "benchmarks.case_images")
