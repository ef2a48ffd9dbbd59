import os

# Who started this program: asked as early as can be, since DVC may be killed while the libraries are loaded.
PARENT = os.getppid()
