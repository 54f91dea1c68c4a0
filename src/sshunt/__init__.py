"""sshunt: reach a remote network from unmodified programs over a plain ssh login.

The map of the package (each folder's own ``__init__`` maps the folder):

    commands/    what can be typed: each builds the parts and owns their lifetime
    config/      what a person asked for
    front/       where flows come from: listeners, DNS
    route/       who carries a flow, pure
    remote/      one far side: its session, its lanes, what keeps them up
    transport/   how bytes reach the agent: ssh, the bundle, the bootstrap
    host/        this host, asked and told, without privilege
    tell/        what people and programs see
    capture/     what the kernel should redirect: plan -> rule text, pure
    helper/      the privileged process that applies it
    direct/      what a host does itself for a flow                               (shipped)
    agent/       the program that runs on the far side                            (shipped)
    relay/       the only I/O shell around the protocol, the same at both ends    (shipped)
    mux/         the protocol, pure: bytes and ``now`` in, events and bytes out   (shipped)
    lab/         throw-away hosts for the demo, the tests and the benchmarks

    cli          words become a command
    model        values that everybody shares
    errors       errors for people, and exit codes
"""

__version__ = "0.1.0"
