"""The privileged process: root, standard library only, and as little of it as possible.

* ``protocol``  requests and replies, and their strict decoding; pure
* ``server``    one session's conversation: order, deadlines, undo at the end
* ``apply``     what one session has made in the kernel, and how it is undone
* ``nftables``, ``marks``, ``guard``, ``cgroups``, ``sweeper``, ``processes``, ``addresses``,
  ``interfaces``, ``resolvers``, ``chains``, ``privileges``, ``netlink``  serve ``apply`` alone:
  tables, who is alive, the client's control group, control groups, who removes it in the end, which
  process is which, addresses that stay local, those that the host has, whom it asks names,
  firewalls of others, our own process, how to speak to the kernel; nothing else touches it
* ``__main__``  what sudo runs
"""
