"""sshunt: reach a remote network from unmodified programs over a plain ssh login.

The map of the package (each folder's own ``__init__`` maps the folder):

    mux/         the protocol, pure: bytes and ``now`` in, events and bytes out   (shipped)
    relay/       the only I/O shell around it, the same at both ends              (shipped)
    agent/       the program that runs on the far side                            (shipped)
    transport/   how bytes reach the agent: ssh, the bundle, the bootstrap
    capture/     what the kernel should redirect: plan -> rule text, pure
    helper/      the privileged process that applies it
    lab/         throw-away hosts for the demo, the tests and the benchmarks

    cli          the command line            config, model, errors   values that several share
    client       composition root: start order, supervision, stop
    listener     accepts what the kernel redirected
    routes       destination -> remote | direct; most specific wins
    elevate      starts the helper           privilege   talks to it
    peers        whom ssh is really connected to
    console      what a person sees          demo        the main job, shown
"""

__version__ = "0.1.0"
