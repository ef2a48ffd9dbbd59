from tasks.old_names import redirect

redirect.to("vae reproduce", "tasks.cli.app", "reproduce")
