"""Throw-away hosts for the demo, the tests and the benchmarks.

    world      ``Lab``: four hosts in network namespaces, built and taken down as one
    hosts      ``Host``: run programs and open sockets inside one of them
    accounts   the people who live there: home, ssh key, sudo rights, login shell
    sshd       a real sshd with a configuration of its own
    link       an emulated link: rate, delay, queue, loss, cuts
    leftovers  what killed labs left, and who may clean up after whom
    servers    a small web server, as a program of its own

Nothing here touches the machine's own network, /etc, accounts or ssh configuration.
"""
