"""Throw-away hosts for the demo, the tests and the benchmarks.

    world.py     ``Lab``: four hosts in network namespaces, built and taken down as one
    hosts.py     ``Host``: run programs and open sockets inside one of them
    accounts.py  the people who live there: home, ssh key, sudo rights, login shell
    sshd.py      a real sshd with a configuration of its own
    link.py      an emulated link: rate, delay, queue, loss, cuts
    servers.py   a small web server, as a program of its own

Nothing here touches the machine's own network, /etc, accounts or ssh configuration.
"""
