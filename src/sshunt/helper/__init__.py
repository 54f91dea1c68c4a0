"""The privileged process: root, standard library only, and as little of it as possible.

* ``protocol``  requests and replies, and their strict decoding; pure
* ``server``    one session's conversation: order, deadlines, undo at the end
* ``apply``     the only module that touches the kernel: nftables, cgroup, privileges
* ``__main__``  what sudo runs
"""
