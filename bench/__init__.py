"""Benchmarks beside the peers, in one run, interleaved: only ratios within a run mean anything.

    lan.py        throughput and CPU of bulk flows            ./dev bench lan
    conns.py      connections, idle memory, start-up time     ./dev bench conns
    wan.py        bulk and a keystroke on one emulated link   ./dev bench wan
    udp.py        datagrams, beside socat through ssh -L      ./dev bench udp
    behaviour.py  the pacer when things happen                ./dev bench behaviour
    peers.py      sshunt, ssh -L and sshuttle as things that can be started and connected through
    load.py       the load itself: bulk flows, echoing connections
    probe.py      the keystroke: small echoes beside a load
    processes.py  what each process of a tunnel costs: CPU time, memory, by role
    report.py     medians, tables, the JSON file in bench/out/
    plot.py       pictures of wan.py's timelines in docs/

Nothing here runs in the tests except with --smoke, which shows that it works and measures nothing.
"""
