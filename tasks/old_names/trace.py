from tasks.old_names import redirect

redirect.to("vae trace", "tasks.cli.app", "trace")
