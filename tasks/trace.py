"""The old name of `vae trace`."""

from tasks.cli import app

if __name__ == "__main__":
    app.main_of_old_name("trace")
