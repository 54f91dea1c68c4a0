"""The privileged process: root, standard library only, and as little of it as possible.

    __main__    what sudo runs
    protocol    requests and replies, and their limits; pure
    wire        how they are written, and their strict decoding; pure
    server      one session's conversation: order, deadlines, undo at the end
    pace        how fast requests are carried out; pure
    audit       a line in the host's log for each
    service     the names by which it is a service; pure
    starter     whose helper it is: the process that started it
    apply       what one session has made in the kernel, and how it is undone

The packet process, a child of the helper:

    packets          its life
    part             what a part of it is
    packet_protocol  what the client says to it, and it to the client; pure
    natlook          where a connection led before pf translated it; pure, not for Linux
    listening        whose the listener of datagrams is
    nflog            packets that rules log
    held_syns        SYNs that are held back until the far side has connected
    syn_messages     what is said about them; pure
    segments         the packets that answer them, as bytes; pure
    echoes           a part: echo requests, which it answers as the client says
    echo_messages    what the two say of them; pure
    echo_packets     requests and answers as bytes; pure
    udp_flows        its part for UDP: where flows lead, strangers' datagrams, errors
    udp_messages     what is said about them; pure
    conntrack        what the kernel knows of redirected flows
    in_their_name    sockets that send in the name of hosts over there
    injected         the sockets by which all packets leave that we make
    checksums        theirs; pure

These serve apply alone, and nothing else touches the kernel:

    nftables    tables
    blocks      kill switches
    changes     what is in their sets, replaced in place
    marks       which of our tables' owners are alive
    guard       the client's control group
    cgroups     control groups
    sweeper     who removes it all in the end
    processes   which process is which
    addresses   addresses that stay local
    interfaces  those that this host has, and by which link
    resolvers   whom this host asks names
    ruleset     what others do to our tables
    chains      firewalls of others
    iptables    the same as apply for a session that captures with iptables
    restorer    a child that runs iptables-restore, and outlives the helper
    traces      what iptables leaves of itself
    privileges  our own process: what it may
    netlink     how to speak to the kernel
"""
