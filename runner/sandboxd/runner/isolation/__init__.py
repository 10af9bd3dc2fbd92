"""What keeps a child process in: named layers, each applied and then verified.

Theory of operation. Three processes take part, in this order:

1. The outer zygote process calls :func:`namespaces.unshare` and forks. The fork is
   PID 1 of a new PID namespace.
2. PID 1 imports everything, creates every ctypes callback, calls
   :func:`libffi.find_writable_code` while /proc is still there, and then
   :func:`namespaces.enter_empty_root`. Namespaces and root are inherited by what it forks:
   entering them costs ten times a fork, so it happens once.
3. Each child that PID 1 forks calls :func:`lockdown.lock_down` first of all. A runner calls
   :func:`lockdown.seal_after_load` after it has loaded its module and before any guest runs.

Every layer is applied and then checked by an act that must now fail or a value that must now
read back, never by the return code alone. A required layer that does not hold raises
:class:`layers.IsolationError`, and the process must then exit.
"""
