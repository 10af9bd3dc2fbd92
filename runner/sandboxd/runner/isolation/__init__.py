"""What keeps a child process in: named layers, each applied and then verified.

Theory of operation. Four processes take part, in this order:

1. The launcher calls :func:`cgroups.make`, once, and forks the outer zygote process, which calls
   :func:`namespaces.unshare` and forks. The fork is PID 1 of a new PID namespace.
2. PID 1 imports everything, creates every ctypes callback, calls
   :func:`libffi.find_writable_code`, :func:`ipc.forbidden` and :func:`memfd.refuse_executable`
   while /proc is still there, then :func:`namespaces.enter_empty_root`, and at last
   :func:`credentials.limit_zygote`. All that is inherited by what it forks: entering namespaces
   costs ten times a fork, so it happens once.
3. Before each fork it takes a slot of :class:`slots.Slots` and has a :class:`lockdown.Planner`
   work out the child's lock-down. Each child calls :func:`lockdown.lock_down` with that plan first
   of all. A runner calls :func:`lockdown.seal_after_load` after it has loaded its module and
   before any guest runs.

The supervisor takes one layer itself, on its end of each child's socket: see :mod:`passing`.

Every layer is applied and then checked by an act that must now fail or a value that must now
read back, never by the return code alone. A required layer that does not hold raises
:class:`layers.IsolationError`, and the process must then exit. :mod:`catalogue` lists all layers
and can tell without a daemon which of them this host has.
"""
