"""The privileged process: root, standard library only, and as little of it as possible.

* ``protocol``  requests and replies, and their strict decoding; pure
* ``server``    one session's conversation: order, deadlines, undo at the end
* ``apply``     touches the kernel: nftables, cgroup, privileges
* ``addresses`` its other half: addresses that stay local; nothing else touches the kernel
* ``__main__``  what sudo runs
"""
